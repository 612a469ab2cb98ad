from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sma_compiler.ir.nodes import Op
from sma_compiler.reference import evaluate, evaluate_with_lse
from sma_compiler.torch_plans import dense, solve_dense
from sma_compiler.torch_plans.named import Named
from sma_compiler.torch_plans.pairs import Pairs
from tests.torch_plans.calls import Arguments, error, make_arguments, make_op, run

GATED = "q, k, v, g: [time, head]"
OPS = {
    "softmax": ("q, k, v", "attend(causal, q, k, v, normalize=softmax, scale=1 / sqrt(key))"),
    "softmax_window": ("q, k, v, w: int", "attend(window(w), q, k, v, normalize=softmax)"),
    "softmax_diagonals": ("q, k, v", "attend(band(-1, 2), q, k, v, normalize=softmax)"),
    "softmax_prefix": ("q, k, v, w: int", "attend(prefix(w), q, k, v, normalize=softmax)"),
    "softmax_gated": (GATED, "attend(decay(g), q, k, v, normalize=softmax)"),
    "softmax_documents": ("q, k, v, doc: int[time]", "attend(strict * documents(doc), q, k, v, normalize=softmax)"),
    "softmax_one": ("k, v, g: [time, head]", "attend(decay(g), 1, k, v, normalize=softmax)"),
    "softmax_per_value": ("q, k, v, g: [time, head, value]", "attend(decay(g), q, k, v, normalize=softmax)"),
    "softmax_scaled": ("q, k, v, s: [head]", "attend(causal, q, k, v, normalize=softmax, scale=s)"),
    "softmax_levels": (
        "q, k, v, w: [time, head, level]",
        "attend(levels(w * w), q, k, v, normalize=softmax)",
    ),
    "none": (GATED, "attend(decay(g), q, k, v, scale=0.3)"),
    "sum": (GATED, "attend(decay(g), elu(q) + 1, elu(k) + 1, v, normalize=sum)"),
    "max1": (GATED, "attend(decay(g), q, k, v, normalize=max1, scale=2)"),
    "sum_full": ("q, k, v", "attend(full, elu(q) + 1, elu(k) + 1, v, normalize=sum)"),
    "activation": (GATED, "attend(decay(g), q, k, v, activation=relu)"),
    "activation_sum": ("q, k, v", "attend(causal, q, k, v, activation=sigmoid, normalize=sum)"),
    "activation_diagonals": ("q, k, v", "attend(band(0, 3), q, k, v, activation=silu)"),
    "per_key": ("q, k, v, g: [time, head, key]", "attend(decay(g), q, k, v)"),
    "per_key_window": ("q, k, v, g: [time, head, key], w: int", "attend(window(w) * decay(g), q, k, v)"),
    "per_value": ("q, k, v, g: [time, head, value]", "attend(decay(g), exp(q), exp(k), v, normalize=sum)"),
    "per_key_and_value": (
        "q, k, v, g: [time, head, key], h: [time, head, value]",
        "attend(decay(g) * decay(-h * h), q, k, v, normalize=max1)",
    ),
    "no_value": ("q, k, v: [time, head]", "attend(causal, q, k, v)"),
    "no_key": ("v, g: [time, head]", "attend(decay(g), 1, 1, v, normalize=sum)"),
    "static_key": ("q, v, k: [head, key]", "attend(causal, q, k, v)"),
    "static_value": ("q, k, v: [head, value]", "attend(causal, q, k, v)"),
    "static_everything": ("x: [time], v: [head, value]", "attend(full, 1, 1, v) + x"),
    "shared_query": ("q: [time, key], k, v", "attend(causal, q, k, v)"),
    "boolean_tensor": ("q, k, v, on: bool[time]", "attend(causal * on[j], exp(q), exp(k), v, normalize=sum)"),
    "times": ("v, g: [time, head]", "decay(g) @ v"),
    "times_window": ("v, w: int", "window(w) @ v"),
    "times_full": ("v", "(full * 0.1) @ v"),
    "times_per_mode": ("v: [time, head], a: [head, mode]", "sum((causal * exp(-a * a * (i - j))) @ v, mode)"),
    "times_product": ("v, g: [time, head]", "(decay(g) @ window(3) @ strict) @ v"),
    "times_table": ("v, c: [lag, head]", "c[i - j] @ v"),
    "solve": ("k, v, b: [time, head]", "solve(strict, sigmoid(b) * k / key, k, v)"),
    "solve_gated": (
        "k, v, b: [time, head], g: [time, head]",
        "solve(strict * decay(g), sigmoid(b) * k, k, sigmoid(b) * v)",
    ),
    "solve_per_key": ("k, v, g: [time, head, key]", "solve(strict * decay(g), k / key, k, v)"),
    "solve_per_value": ("k, v, g: [time, head, value]", "solve(strict * decay(g), k / key, k, v)"),
    "solve_window": ("k, v, w: int", "solve(band(1, w), k / key, k, v)"),
    "solve_diagonal": ("k, v", "solve(i - j == 1, k / key, k, v)"),
    "solve_no_value": ("k, v: [time]", "solve(strict, k / key, k, v)"),
}


@pytest.fixture(params=["one_block", "blocks"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks wider than the sequence, and blocks that do not divide it."""
    if request.param == "blocks":
        monkeypatch.setattr(dense, "BLOCK", 8)
        monkeypatch.setattr(solve_dense, "BLOCK", 8)


def case(name: str, **options: object) -> tuple[Op, Arguments]:
    signature, result = OPS[name]
    op = make_op(signature, f"return {result}")
    return op, make_arguments(op, w=5, **options)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("name", OPS)
def test_against_the_reference(name: str) -> None:
    op, arguments = case(name)
    found = run(op, arguments).result
    assert found.dtype == torch.float32
    assert error(found, evaluate(op, arguments)) < 2e-6


@pytest.mark.parametrize("length", [1, 2, 7])
@pytest.mark.parametrize("name", OPS)
def test_short_sequences(name: str, length: int) -> None:
    op, arguments = case(name, time=length)
    torch.testing.assert_close(
        run(op, arguments).result.double(), evaluate(op, arguments), rtol=1e-5, atol=1e-6, check_dtype=False
    )


@pytest.mark.parametrize("name", OPS)
def test_no_positions(name: str) -> None:
    op, arguments = case(name, time=0)
    found = run(op, arguments).result
    assert found.shape == evaluate(op, {**arguments}).shape


@pytest.mark.parametrize("name", OPS)
def test_gradients(name: str) -> None:
    op, arguments = case(name, time=11)
    ours, theirs = (tracked(arguments, dtype) for dtype in (torch.float32, torch.float64))
    found, expected = run(op, ours).result, evaluate(op, theirs)
    upstream = torch.randn(expected.shape, dtype=torch.float64)
    found.backward(upstream.float())
    expected.backward(upstream)
    for key, value in ours.items():
        if isinstance(value, Tensor) and value.requires_grad:
            theirs_grad = theirs[key].grad
            assert theirs_grad is not None
            assert value.grad is not None
            torch.testing.assert_close(value.grad.double(), theirs_grad, rtol=2e-4, atol=2e-5)


def tracked(arguments: Arguments, dtype: torch.dtype) -> Arguments:
    """Copies that gradients flow to."""
    return {
        name: value.to(dtype).clone().requires_grad_()
        if isinstance(value, Tensor) and value.is_floating_point()
        else value
        for name, value in arguments.items()
    }


@pytest.mark.parametrize("name", ["softmax", "sum", "per_key", "solve_gated", "softmax_documents", "max1"])
def test_gradcheck(name: str) -> None:
    op, arguments = case(name, time=4, batch=1, head=2, key=2, value=2)
    names = [key for key, value in arguments.items() if isinstance(value, Tensor) and value.is_floating_point()]
    leaves = [arguments[key].double().requires_grad_() for key in names]

    def call(*values: Tensor) -> Tensor:
        return run(op, {**arguments, **dict(zip(names, values, strict=True))}).result

    assert torch.autograd.gradcheck(call, leaves)


@pytest.mark.parametrize("name", ["softmax", "softmax_gated", "softmax_documents", "softmax_one"])
def test_log_sum_exp(name: str) -> None:
    op, arguments = case(name)
    found = run(op, arguments).lse
    expected = evaluate_with_lse(op, arguments)[1]
    assert found is not None
    assert torch.equal(found == -torch.inf, expected == -torch.inf)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_rows_without_columns_are_zero() -> None:
    op = make_op("q, k, v", "return attend(i - j >= 3, q, k, v, normalize=softmax)")
    arguments = tracked(make_arguments(op), torch.float32)
    found = run(op, arguments)
    assert (found.result[:, :3] == 0).all()
    assert found.lse is not None
    assert (found.lse[:, :3] == -torch.inf).all()
    found.result.sum().backward()
    for value in arguments.values():
        assert isinstance(value, Tensor)
        assert value.grad is not None
        assert value.grad.isfinite().all()


@pytest.mark.parametrize("name", ["softmax_documents", "softmax_window", "none", "per_key_window", "softmax_diagonals"])
def test_forbidden_columns_change_no_bit(name: str) -> None:
    op, arguments = case(name)
    clean = run(op, arguments).result
    poisoned = {key: value.clone() if isinstance(value, Tensor) else value for key, value in arguments.items()}
    for key in "kv":
        poisoned[key][:, 20:] = 1e4
    found = run(op, poisoned).result
    seen_by = 18 if name == "softmax_diagonals" else 20
    assert torch.equal(found[:, :seen_by], clean[:, :seen_by])
    assert not torch.equal(found[:, 20:], clean[:, 20:])


def test_integers_are_summed_exactly() -> None:
    op = make_op("doc: int[time]", "return (causal * (i - j + 1)) @ doc")
    ids = torch.full((1, 40), 2**40 + 1)
    found = run(op, {"doc": ids}).result
    assert torch.equal(found, evaluate(op, {"doc": ids}))
    assert found[0, -1] == (2**40 + 1) * 820


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["softmax", "none", "sum", "per_key", "times", "solve_gated"])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    op, arguments = case(name, time=256, key=16, value=16, dtype=dtype)
    found = run(op, arguments).result
    expected = evaluate(op, arguments)
    assert found.dtype == dtype
    rounding = (expected.to(dtype).double() - expected).square().mean().sqrt()
    unit = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    allowed = 2 * rounding + unit * expected.square().mean().sqrt()
    assert (found.double() - expected).square().mean().sqrt() <= allowed


def test_operands_are_rounded_to_the_coarsest() -> None:
    op = make_op("q, k, v", "return attend(causal, q, k, v)")
    arguments = make_arguments(op)
    mixed = {**arguments, "k": arguments["k"].to(torch.bfloat16)}
    rounded = {name: value.to(torch.bfloat16).float() for name, value in arguments.items()}
    assert error(run(op, mixed).result, run(op, rounded).result) < 3e-3
    assert error(run(op, mixed).result, run(op, arguments).result) > 1e-3


def test_heads_in_groups() -> None:
    op = make_op("q, k, v", "return attend(causal, q, k, v, normalize=softmax)")
    arguments = make_arguments(op, k_head=2, v_head=1)
    assert error(run(op, arguments).result, evaluate(op, arguments)) < 1e-6


def test_a_batch_of_one_serves_all() -> None:
    op = make_op("q, k, v", "return attend(causal, q, k, v, normalize=softmax)")
    arguments = make_arguments(op, k_batch=1)
    assert error(run(op, arguments).result, evaluate(op, arguments)) < 1e-6


def test_windows_visit_few_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    visited = []
    original = dense.full_pairs

    def counted(x: Named, pairs: Pairs) -> Named:
        visited.append(pairs.points["i"].size * pairs.points["j"].size)
        return original(x, pairs)

    monkeypatch.setattr(dense, "full_pairs", counted)
    op = make_op("q, k, v, w: int", "return attend(window(w), q, k, v, normalize=softmax)")
    run(op, make_arguments(op, w=64, time=1024, batch=1, head=1))
    assert sum(visited) <= 1024 * (64 + dense.BLOCK)
    visited.clear()
    run(op, make_arguments(op, w=4, time=1024, batch=1, head=1))
    assert sum(visited) == 1024 * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_gradient_of_a_rounded_operand_is_not_rounded(dtype: torch.dtype) -> None:
    """A softmax over one column is 1, so its score has no gradient: the two parts of it cancel."""
    op = make_op("q, k, v", "return attend(i == j, q, k, v, normalize=softmax)")
    arguments = make_arguments(op, dtype=dtype)
    leaves = {name: x.clone().requires_grad_() for name, x in arguments.items() if isinstance(x, Tensor)}
    found = run(op, dict(leaves)).result
    grads = torch.autograd.grad(found, list(leaves.values()), torch.randn_like(found))
    assert all(float(grad.abs().max()) < 1e-5 for grad in grads[:2])

    def call(k: Tensor) -> Tensor:
        return run(op, {**arguments, "v": k.float(), "k": k}).result

    k = leaves["k"].detach()
    _, slope = torch.func.jvp(call, (k,), (torch.ones_like(k),))
    assert float((slope.float() - 1).abs().max()) < 0.03
