from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sma_compiler.reference import evaluate
from sma_compiler.torch_plans import contractions
from sma_compiler.torch_plans.toeplitz import fast_size
from tests.torch_plans.calls import between, error, make_arguments, make_op, plans_of, run

OPS = {
    "table": ("v, c: [lag, head, value]", "c[i - j] @ v"),
    "table_over_keys": ("k, c: [lag, head, key]", "c[i - j] @ k"),
    "two_sided": ("v, c: [lag, head]", "(c[i - j] + c[j - i] * 0.5) @ v"),
    "ahead": ("v, c: [lag, head]", "c[j - i] @ v"),
    "decay": ("v, a: [head]", "(causal * exp(-a * a * (i - j))) @ v"),
    "oscillation": ("v, a, m: [head, mode]", "(causal * sum(exp(-a * a * (i - j)) * cos(m * (i - j)), mode)) @ v"),
    "per_mode": ("v, a: [head, mode]", "sum((causal * exp(-a * a * (i - j))) @ v, mode)"),
    "static_gate": ("v, g: [head]", "decay(g) @ v"),
    "window": ("v, w: int", "window(w) @ v"),
    "attend": ("x: [time, head], y: [time, head], v, c: [lag, head]", "attend(c[i - j], x, y, v, scale=0.5)"),
    "attend_static": ("x: [head], v, c: [lag, head]", "attend(c[i - j], x, 1, v)"),
    "attend_static_value": ("x: [time, head], v: [head, value], c: [lag, head]", "attend(c[i - j], x, 1, v)"),
}


@pytest.fixture(autouse=True)
def _always_fft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contractions, "SHORT", 0)


@pytest.mark.parametrize("length", [0, 1, 2, 17, 64])
@pytest.mark.parametrize("name", OPS)
def test_against_the_reference(name: str, length: int) -> None:
    signature, result = OPS[name]
    op = make_op(signature, f"return {result}")
    assert "toeplitz" in [plan.name for plan in plans_of(op).legal]
    arguments = make_arguments(op, w=5, time=length)
    found, expected = run(op, arguments, "toeplitz").result, evaluate(op, arguments)
    assert found.shape == expected.shape
    if length:
        assert error(found, expected) < 2e-6


@pytest.mark.parametrize("name", ["table", "two_sided", "oscillation", "attend"])
def test_gradients(name: str) -> None:
    signature, result = OPS[name]
    op = make_op(signature, f"return {result}")
    arguments = make_arguments(op, time=19)
    grads = []
    for plan in ("toeplitz", "quadratic"):
        leaves = {key: value.clone().requires_grad_() for key, value in arguments.items() if isinstance(value, Tensor)}
        run(op, {**arguments, **leaves}, plan).result.square().sum().backward()
        grads.append([leaf.grad for leaf in leaves.values()])
    for ours, theirs in zip(*grads, strict=True):
        assert ours is not None
        assert theirs is not None
        assert error(ours, theirs) < 1e-5


def test_history_of_a_table() -> None:
    op = make_op("v, c: [lag, head]", "return c[i - j] @ v")
    arguments = make_arguments(op)
    whole = run(op, arguments, "toeplitz").result
    state, parts = None, []
    for start, stop in ((0, 3), (3, 4), (4, 15), (15, 23)):
        found = run(op, between(op, arguments, start, stop), "toeplitz", state=state, want_state=True)
        state = found.state
        parts.append(found.result)
    assert state is not None
    assert state["times0.cache.x"].shape[1] == 5  # a table of 6 lags reaches 5 positions back
    torch.testing.assert_close(torch.cat(parts, 1), whole)


def test_padding_does_not_leak() -> None:
    op = make_op("v, c: [lag, head]", "return c[j - i] @ v")
    arguments = make_arguments(op)
    lengths = torch.tensor([23, 9])
    found = run(op, arguments, "toeplitz", lengths=lengths).result
    alone = evaluate(op, between(op, arguments, 0, 9))[1]
    torch.testing.assert_close(found[1, :9].double(), alone, rtol=1e-5, atol=1e-5)


def test_sizes_of_transforms() -> None:
    assert [fast_size(least) for least in (2, 3, 4, 5, 6, 7, 9, 12, 13, 1000, 1500)] == [
        *(2, 3, 4, 6, 6, 8, 12, 12, 16, 1024, 1536)
    ]
