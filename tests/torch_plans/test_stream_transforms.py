"""Gradients of streams, and torch's transforms of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo import nonstrict_trace
from torch_plans.stream_cases import Case, expanded, frame_of, meaning, random_case, run

from sma_compiler.ir.nodes import Kind
from sma_compiler.mask.nodes import Gate, Stream, Turn
from sma_compiler.torch_plans import chunked, scan, strided
from sma_compiler.torch_plans.named import Named
from sma_compiler.torch_plans.streams import run_streams

Q, V = ("batch", "time", "head", "key"), ("batch", "time", "head", "value")


def layer(
    gate_axes: tuple[str, ...], plan: str = "chunked", degree: int = 0, turn: bool = False
) -> Callable[..., Tensor]:
    """Gated linear attention as a function of q, k, v and the log gates; the result and the state in one vector."""
    case = Case()
    log = case.graph.param("g", Kind.REAL, gate_axes, False)
    turns = (Turn("cos", case.graph.const(0.3)),) if turn else ()
    case.streams = [Stream("lower", 0, (), (), (Gate(case.graph.at(log, "t"), False, True),), (), degree, turns)]

    def call(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
        case.sizes.update(batch=q.shape[0], head=q.shape[2], key=q.shape[3], value=v.shape[3])
        frame = frame_of(case, {"g": Named(g, gate_axes)}, v.dtype, v.shape[1])
        named = Named(q, Q), Named(k, Q), Named(v, V)
        found, state = run_streams(plan, case.streams, *named, frame, None, q.shape[3])
        return torch.cat((found.data.flatten(), state["S0"].flatten()))

    return call


def tensors(length: int, vector: bool, dtype: torch.dtype = torch.float64, width: int = 3) -> list[Tensor]:
    shapes = [(2, length, 2, width)] * 3 + [(2, length, 2, width) if vector else (2, length, 2)]
    found = [torch.randn(shape, dtype=dtype) for shape in shapes]
    return [*found[:3], -found[3].abs()]


GATES = {"scalar": ("batch", "time", "head"), "vector": Q}


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "CHUNK", 4)
    monkeypatch.setattr(strided, "SIZE", 3)
    monkeypatch.setattr(scan, "WIDTH", 2)
    monkeypatch.setattr(chunked, "_NARROW", 4)


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("plan", ["chunked", "recurrent"])
@given(seed=st.integers(0, 10**6))
@example(seed=2514)
@settings(max_examples=40)
def test_gradients_are_those_of_the_sum_over_all_pairs(plan: str, seed: int) -> None:
    case = random_case(seed)
    names = [name for name, x in case.data.items() if x.data.is_floating_point()]
    for name in names:
        case.data[name].data.requires_grad_()
    found, wanted = run(case, plan)[0], meaning(case)
    leaves = [case.data[name].data for name in names]
    results = [expanded(x, case.sizes["time"], case.sizes["batch"]).data for x in (found, wanted)]
    weights = torch.randn(results[1].shape, generator=torch.Generator().manual_seed(seed)).double()
    totals = [(result * weights).sum() for result in results]
    # rows that see nothing at all are constant
    none = [None for _ in leaves]
    pairs = [torch.autograd.grad(x, leaves, allow_unused=True) if x.requires_grad else none for x in totals]
    for name, ours, theirs in zip(names, *pairs, strict=True):
        if theirs is not None:
            ours = torch.zeros_like(theirs) if ours is None else ours
            scale = max(theirs.abs().max().item(), 1e-3)
            assert (ours - theirs).abs().max().item() <= 1e-9 * scale, name


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("kind", ["scalar", "vector"])
@pytest.mark.parametrize(("degree", "turn"), [(0, False), (1, True)])
def test_gradients_and_their_gradients(kind: str, degree: int, turn: bool) -> None:
    call = layer(GATES[kind], degree=degree, turn=turn)
    inputs = [x[:1].requires_grad_() for x in tensors(7, kind == "vector", width=2)]
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("kind", ["scalar", "vector"])
def test_func_transforms(kind: str) -> None:
    call = layer(GATES[kind])
    inputs = tensors(70, kind == "vector")
    many = [torch.stack((x, x / 2, x / 3)) for x in inputs]
    rows = torch.stack([call(*(x[n] for x in many)) for n in range(3)])
    torch.testing.assert_close(torch.func.vmap(call)(*many), rows)
    alone = torch.func.vmap(lambda g: call(*inputs[:3], g))(many[3])
    torch.testing.assert_close(alone, torch.stack([call(*inputs[:3], g) for g in many[3]]))
    whole = torch.func.grad(lambda *x: call(*x).sum(), argnums=(0, 1, 2, 3))(*inputs)
    leaves = [x.clone().requires_grad_() for x in inputs]
    for ours, theirs in zip(whole, torch.autograd.grad(call(*leaves).sum(), leaves), strict=True):
        torch.testing.assert_close(ours, theirs)
    _, forward = torch.func.jvp(lambda *x: call(*x).sum(), tuple(inputs), tuple(inputs))
    torch.testing.assert_close(forward, sum((g * x).sum() for g, x in zip(whole, inputs, strict=True)))


@pytest.mark.parametrize("kind", ["scalar", "vector"])
def test_compiles_into_one_graph(kind: str) -> None:
    torch._dynamo.reset()
    call = layer(GATES[kind])
    inputs = [x.requires_grad_() for x in tensors(150, kind == "vector", width=12)]
    graph = torch.compile(nonstrict_trace(call), fullgraph=True, backend="aot_eager")
    found, wanted = graph(*inputs), call(*inputs)
    torch.testing.assert_close(found, wanted)
    pairs = [torch.autograd.grad(y.square().sum(), inputs) for y in (found, wanted)]
    for ours, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, theirs)


LOGS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: 0 * x,
    "from 1e-6 to 80": lambda x: -(10 ** (x * 7.9 - 6)),
    "some of -1e3": lambda x: torch.where(x < 0.1, -1e3, -0.1 * x),
    "some of -inf": lambda x: torch.where(x < 0.1, -torch.inf, -0.1 * x),
    "all of -inf": lambda x: torch.full_like(x, -torch.inf),
    "the lowest number": lambda x: torch.where(x < 0.1, torch.finfo(x.dtype).min, -0.1 * x),
    "rising": lambda x: 0.02 * x,
}


@pytest.mark.parametrize("kind", ["scalar", "vector"])
@pytest.mark.parametrize("logs", list(LOGS))
@pytest.mark.parametrize("plan", ["chunked", "recurrent"])
def test_accuracy_and_finite_gradients(kind: str, logs: str, plan: str) -> None:
    length = 333
    q, k, v, _ = tensors(length, False, torch.float32, 16)
    shape = (2, length, 2, 16) if kind == "vector" else (2, length, 2)
    g = LOGS[logs](torch.rand(shape, dtype=torch.float64).float())
    inputs = [x.requires_grad_() for x in (q, k, v, g)]
    exact = [x.detach().double().clamp(min=-1e30).requires_grad_() for x in inputs]
    found, wanted = layer(GATES[kind], plan)(*inputs), layer(GATES[kind], "recurrent")(*exact)
    finite = torch.where(g.detach() < -1e30, 0, g.detach()).double().abs()
    most = torch.nn.functional.pad(finite.movedim(1, -1), (0, -length % 64)).unflatten(-1, (-1, 64)).sum(-1).max()
    bound = 2e-6 + 2**-24 * (most.item() + math.sqrt(length))
    assert error(found, wanted) <= bound
    gradients = [torch.autograd.grad(y.square().sum(), x) for y, x in ((found, inputs), (wanted, exact))]
    for ours, theirs in zip(*gradients, strict=True):
        assert ours.isfinite().all()
        assert error(ours, theirs) <= 4 * bound


def error(ours: Tensor, theirs: Tensor) -> float:
    """Relative root mean square."""
    scale = theirs.square().mean().sqrt().item()
    return (ours.double() - theirs).square().mean().sqrt().item() / scale if scale else ours.abs().max().item()
