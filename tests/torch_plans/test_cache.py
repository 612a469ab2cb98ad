"""The two laws for contractions that no stream carries: their state is a cache."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sma_compiler.ir.nodes import Op
from sma_compiler.reference import evaluate
from sma_compiler.torch_plans import dense
from sma_compiler.torch_plans.run import empty_state
from tests.torch_plans.calls import Arguments, between, error, make_arguments, make_op, plans_of, run, sizes_of

OPS = {
    "softmax": ("q, k, v", "attend(causal, q, k, v, normalize=softmax)"),
    "window": ("q, k, v, w: int", "attend(window(w), q, k, v, normalize=softmax)"),
    "diagonals": ("q, k, v", "attend(band(0, 3), q, k, v, normalize=softmax)"),
    "window_of_one": ("q, k, v", "attend(i == j, q, k, v, normalize=softmax)"),
    "gate": ("q, k, v, g: [time, head]", "attend(decay(g), q, k, v, normalize=softmax)"),
    "gate_in_a_window": ("q, k, v, g: [time, head], w: int", "attend(window(w) * decay(g), q, k, v)"),
    "gate_per_key": ("q, k, v, g: [time, head, key], w: int", "attend(window(w) * decay(g), q, k, v, normalize=max1)"),
    "documents": ("q, k, v, doc: int[time]", "attend(causal * documents(doc), q, k, v, normalize=softmax)"),
    "returning": ("q, k, v, doc: int[time]", "attend(causal * (doc[i] == doc[j]), q, k, v)"),
    "rows_and_columns": (
        "q, k, v, x: [time, head], on: bool[time]",
        "attend(causal * on[i] * x[j], q, k, v, activation=relu)",
    ),
    "positions": ("q, k, v, s: [head]", "attend(causal * exp(-s * s * j / (i + 1)), q, k, v, normalize=softmax)"),
    "levels": ("q, k, v, w: [time, head, level]", "attend(levels(w), q, k, v)"),
    "two_parts": (
        "q, k, v, on: bool[time], w: int",
        "attend(window(w) + causal * (on[i] == on[j]), q, k, v, normalize=softmax)",
    ),
    "phases": ("q, k, v, x: [time, head]", "attend(causal * (2 + cos(99 * (x[i] - x[j]))), q, k, v, activation=relu)"),
    "impossible_part": (
        "q, k, v, g: [time, head]",
        "attend(band(1, 4) * where(i < j, exp(sum(g[t], j < t <= i)), 0.5), q, k, v, activation=relu)",
    ),
    "static_key": ("q, v, k: [head, key]", "attend(causal, q, k, v, activation=relu)"),
    "table": ("v, c: [lag, head]", "c[i - j] @ v"),
    "integers": ("v, doc: int[time]", "v + (causal * (i - j)) @ doc"),
    "product": ("v, g: [time, head], w: int", "(window(w) @ decay(g)) @ v"),
    "solve_window": ("k, v, g: [time, head], w: int", "solve(band(1, w) * decay(g), k / key, k, v)"),
    "solve_diagonal": ("k, v", "solve(i - j == 1, k / key, k, v)"),
    "two_contractions": (
        "q, k, v, w: int",
        "u = attend(window(w), q, k, v, normalize=softmax)",
        "attend(causal, q, k, u, normalize=softmax)",
    ),
}
CUTS = (0, 4, 5, 5, 12, 13, 23)


def case(name: str) -> tuple[Op, Arguments]:
    signature, *lines, result = OPS[name]
    op = make_op(signature, *lines, f"return {result}")
    return op, make_arguments(op, w=4)


def joined(op: Op, arguments: Arguments, cuts: tuple[int, ...], **options: object) -> Tensor:
    """The result of the pieces between cuts, each with the state of the one before."""
    state, parts = options.pop("state", None), []
    for start, stop in pairwise(cuts):
        found = run(op, between(op, arguments, start, stop), state=state, want_state=True, **options)
        state = found.state
        parts.append(found.result)
    return torch.cat(parts, 1)


@pytest.mark.parametrize("small", [False, True], ids=["one_block", "blocks"])
@pytest.mark.parametrize("name", OPS)
def test_cut_and_joined(name: str, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if small:
        monkeypatch.setattr(dense, "BLOCK", 3)
    op, arguments = case(name)
    assert error(joined(op, arguments, CUTS), evaluate(op, arguments)) < 2e-6


@pytest.mark.parametrize("name", OPS)
def test_one_by_one_in_fixed_slots(name: str) -> None:
    op, arguments = case(name)
    plans, sizes = plans_of(op), sizes_of(op, arguments)
    numbers = {param.name: arguments[param.name] for param in op.params if param.number}
    empty = empty_state(op, plans, sizes, numbers, capacity=23)
    first = run(op, between(op, arguments, 0, 1), state=empty, want_state=True, fixed=True)
    assert first.state is not None
    assert {key: (x.shape, x.dtype) for key, x in first.state.items()} == {
        key: (x.shape, x.dtype) for key, x in empty.items()
    }
    found = joined(op, arguments, tuple(range(24)), state=empty, fixed=True)
    assert error(found, evaluate(op, arguments)) < 2e-6


@pytest.mark.parametrize("name", OPS)
def test_rows_of_different_lengths(name: str) -> None:
    op, arguments = case(name)
    lengths = torch.tensor([6, 0])
    padded = {key: poisoned(op, key, value, lengths) for key, value in arguments.items()}
    first = run(op, between(op, padded, 0, 9), lengths=lengths, want_state=True)
    assert first.state is not None
    expected = evaluate(op, arguments)
    assert error(first.result[0, :6], expected[0, :6]) < 2e-6
    shifted = {key: torch.stack([x[0, 6:15], x[1, 0:9]]) if timed(op, key) else x for key, x in arguments.items()}
    second = run(op, shifted, state=first.state)
    assert error(second.result[0], expected[0, 6:15]) < 2e-6
    assert error(second.result[1], expected[1, :9]) < 2e-6


def timed(op: Op, name: str) -> bool:
    return any(param.name == name and "time" in param.dims for param in op.params)


def poisoned(op: Op, name: str, value: Tensor | float, lengths: Tensor) -> Tensor | float:
    """NaN (integers: a large number) past the end of each row."""
    if not isinstance(value, Tensor) or not timed(op, name):
        return value
    found = value.clone()
    for row, length in enumerate(lengths.tolist()):
        found[row, length:] = torch.nan if value.is_floating_point() else 77
    return found


def test_gradients_flow_through_the_state() -> None:
    op, arguments = case("gate")
    leaves = {key: value.clone().requires_grad_() for key, value in arguments.items() if isinstance(value, Tensor)}
    grads = []
    for cuts in ((0, 23), CUTS):
        joined(op, {**arguments, **leaves}, cuts).square().sum().backward()
        grads.append([leaf.grad.clone() for leaf in leaves.values() if leaf.grad is not None])
        for leaf in leaves.values():
            leaf.grad = None
    for whole, pieces in zip(*grads, strict=True):
        torch.testing.assert_close(whole, pieces, rtol=1e-4, atol=1e-5)


def test_a_band_bounds_the_cache() -> None:
    op, arguments = case("window")
    state = run(op, arguments, want_state=True).state
    assert state is not None
    assert state["attend0.cache.pos"].tolist() == [[20, 21, 22]] * 2
    assert state["attend0.cache.k"].shape == (2, 3, 4, 4)


def test_only_what_columns_need_is_kept() -> None:
    op, arguments = case("rows_and_columns")
    state = run(op, arguments, want_state=True).state
    assert state is not None
    assert sorted(state) == [
        "attend0.cache.k",
        "attend0.cache.mask2",
        "attend0.cache.pos",
        "attend0.cache.v",
        "position",
    ]
