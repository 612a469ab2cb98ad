"""The library under every legal plan: against the reference, cut and joined, in rows of different lengths."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sma_compiler.ir.check import check_file
from sma_compiler.ir.nodes import Op
from sma_compiler.reference import evaluate
from sma_compiler.syntax.locate import library_names, library_source
from sma_compiler.torch_plans.run import empty_state
from tests.torch_plans.calls import Arguments, between, error, make_arguments, make_op, plans_of, run, sizes_of

NEGATIVE = {
    *("mamba1.a", "mamba2.a", "hydra.a", "mamba3.adt", "rwkv4.w", "rwkv6.w", "rwkv7.w"),
    *(f"{name}.g" for name in ("gla", "kda", "hgrn2", "simple_gla", "gated_delta_net", "log_linear")),
}
POSITIVE = {"mamba1.dt", "hydra.dt", "hydra.dt2", "s4d.a", "h3.a", "lightning.s", "retention.gamma", "mamba3.dt"}
LENGTH = 37
CUTS = (0, 5, 6, 6, 20, 37)


@cache
def library_op(name: str) -> Op:
    (op,) = check_file(library_source(name))
    return op


@cache
def library_arguments(name: str) -> Arguments:
    """Arguments for which the recurrences are stable."""
    op = library_op(name)
    found = make_arguments(op, w=6, n=9, time=LENGTH, lag=7)
    for key, value in found.items():
        if not isinstance(value, Tensor):
            continue
        if f"{name}.{key}" in NEGATIVE:
            found[key] = -value.abs()
        elif f"{name}.{key}" in POSITIVE or key == "beta":
            found[key] = value.sigmoid()
        elif key in ("k", "a", "b") and name in ("delta_net", "gated_delta_net", "kda", "rwkv7"):
            found[key] = functional.normalize(value, dim=-1)
    return found


@cache
def expected_of(name: str) -> Tensor:
    return evaluate(library_op(name), library_arguments(name))


CASES = [
    pytest.param(name, plan.name, id=f"{name}-{plan.name}")
    for name in library_names()
    for plan in plans_of(library_op(name)).legal
]
CAUSAL = [case for case in CASES if plans_of(library_op(str(case.values[0]))).causal]


@pytest.mark.parametrize(("name", "plan"), CASES)
def test_library(name: str, plan: str) -> None:
    found = run(library_op(name), library_arguments(name), plan)
    assert found.result.shape == expected_of(name).shape
    assert error(found.result, expected_of(name)) < 2e-6


@pytest.mark.parametrize(("name", "plan"), CAUSAL)
def test_cut_and_joined(name: str, plan: str) -> None:
    op, arguments = library_op(name), library_arguments(name)
    state, parts = None, []
    for start, stop in pairwise(CUTS):
        found = run(op, between(op, arguments, start, stop), plan, state=state, want_state=True)
        state = found.state
        parts.append(found.result)
    assert error(torch.cat(parts, 1), expected_of(name)) < 2e-6


@pytest.mark.parametrize(("name", "plan"), CAUSAL)
def test_any_plan_takes_the_state_of_any_other(name: str, plan: str) -> None:
    op, arguments = library_op(name), library_arguments(name)
    sizes = sizes_of(op, arguments)
    numbers = {param.name: arguments[param.name] for param in op.params if param.number}
    empty = empty_state(op, plans_of(op), sizes, numbers, capacity=LENGTH)
    first = run(op, between(op, arguments, 0, 20), state=empty, want_state=True, fixed=True)
    second = run(op, between(op, arguments, 20, 36), plan, state=first.state, want_state=True, fixed=True)
    third = run(op, between(op, arguments, 36, 37), state=second.state, want_state=True, fixed=True)
    for state in (first.state, second.state, third.state):
        assert state is not None
        assert {key: (x.shape, x.dtype) for key, x in state.items()} == {
            key: (x.shape, x.dtype) for key, x in empty.items()
        }
    found = torch.cat((first.result, second.result, third.result), 1)
    assert error(found, expected_of(name)) < 2e-6


@pytest.mark.parametrize(("name", "plan"), CASES)
def test_rows_of_different_lengths(name: str, plan: str) -> None:
    op, arguments = library_op(name), library_arguments(name)
    found = run(op, arguments, plan, lengths=torch.tensor([LENGTH, 11])).result
    alone = evaluate(op, between(op, arguments, 0, 11))
    assert error(found[0], expected_of(name)[0]) < 2e-6
    assert error(found[1, :11], alone[1]) < 2e-6


@pytest.mark.parametrize("length", [0, 1])
@pytest.mark.parametrize(("name", "plan"), CASES)
def test_short(name: str, plan: str, length: int) -> None:
    op = library_op(name)
    arguments = between(op, library_arguments(name), 0, length)
    found, expected = run(op, arguments, plan).result, evaluate(op, arguments)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def windowed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    op = library_op("sliding_window")
    return run(op, {"q": q, "k": k, "v": v, "w": 6}).result


def tensors() -> list[Tensor]:
    arguments = library_arguments("sliding_window")
    return [arguments[name].clone() for name in "qkv"]


def test_traces_into_one_graph() -> None:
    call = torch._dynamo.allow_in_graph(windowed)
    compiled = torch.compile(lambda *args: call(*args), fullgraph=True, backend="aot_eager")
    ours, theirs = ([x.requires_grad_() for x in tensors()] for _ in range(2))
    found, expected = compiled(*ours), windowed(*theirs)
    assert torch.equal(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_functional_transforms() -> None:
    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return windowed(q, k, v).square().sum()

    leaves = [x.requires_grad_() for x in tensors()]
    loss(*leaves).backward()
    plain = [x.detach() for x in leaves]
    for found, leaf in zip(torch.func.grad(loss, argnums=(0, 1, 2))(*plain), leaves, strict=True):
        torch.testing.assert_close(found, leaf.grad)
    doubled = [torch.stack((x, 2 * x)) for x in plain]
    rows = torch.func.vmap(loss)(*doubled)
    torch.testing.assert_close(rows, torch.stack([loss(*plain), loss(*(2 * x for x in plain))]))
    tangents = [torch.ones_like(x) for x in plain]
    _, slope = torch.func.jvp(loss, tuple(plain), tuple(tangents))
    torch.testing.assert_close(slope, sum(leaf.grad.sum() for leaf in leaves if leaf.grad is not None))


def test_exports() -> None:
    class Module(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return windowed(q, k, v)

    arguments = tuple(tensors())
    exported = torch.export.export(Module(), arguments, strict=False)
    torch.testing.assert_close(exported.module()(*arguments), windowed(*arguments))


def test_result_has_the_dtype_of_the_first_tensor() -> None:
    op = make_op("doc: int[time], k, v, w: int", "return attend(window(w), 1, k, v) + doc")
    arguments = make_arguments(op, w=3, dtype=torch.bfloat16)
    assert run(op, arguments).result.dtype == torch.bfloat16
    op = make_op("q: [time], doc: int[time]", "return cumsum(doc) + 0 * doc + 0 * q")
    assert run(op, make_arguments(op, dtype=torch.float16)).result.dtype == torch.float16
    op = make_op("doc: int[time]", "return cumsum(doc)")
    assert run(op, make_arguments(op)).result.dtype == torch.int64


def test_fp64_throughout() -> None:
    op = library_op("forgetting")
    arguments = {key: value.double() for key, value in library_arguments("forgetting").items()}
    found = run(op, arguments).result
    assert found.dtype == torch.float64
    assert error(found, evaluate(op, arguments)) < 1e-14


def test_strides_do_not_matter() -> None:
    op, arguments = library_op("attention"), library_arguments("attention")
    strided = {
        key: value.transpose(1, 2).contiguous().transpose(1, 2) if isinstance(value, Tensor) else value
        for key, value in arguments.items()
    }
    torch.testing.assert_close(run(op, strided).result, run(op, arguments).result)


@pytest.mark.parametrize(
    ("signature", "result"),
    [
        ("q, k, v, y: [time, head]", "attend((i < j) * y[j], q, k, v)"),
        ("q, k, v, y: [time, head]", "attend(y[i] * (i <= j) * exp(sum(y[t], i <= t < j)), q, k, v, normalize=max1)"),
        ("k, v", "attend((i - j) * (i - j), 1, k, v, normalize=softmax)"),
        ("k, v, g: [time, head]", "attend(exp(-abs(i - j)) * exp(g[j]), 1, sum(k, key), v, normalize=softmax)"),
        ("v, g: [time, head]", "(decay(g) + transpose(decay(g)) + (i - j) * full) @ v"),
    ],
)
def test_streams_that_look_ahead_end_with_their_row(signature: str, result: str) -> None:
    op = make_op(signature, f"return {result}")
    arguments = make_arguments(op, time=13, dtype=torch.float64)
    arguments = {key: -x.abs() if key == "y" else x for key, x in arguments.items()}
    for plan in plans_of(op).legal:
        found = run(op, arguments, plan.name, lengths=torch.tensor([13, 6])).result
        assert error(found[0], evaluate(op, arguments)[0]) < 1e-12
        assert error(found[1, :6], evaluate(op, between(op, arguments, 0, 6))[1]) < 1e-12
