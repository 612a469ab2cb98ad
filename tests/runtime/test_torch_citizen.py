"""Ops are torch citizens: compiled whole, exported, transformed, checkpointed, under autocast."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import sma_compiler as sma
from sma_compiler.verify.samples import samples

SIZES = {"batch": 2, "time": 24, "head": 2, "key": 16, "value": 16, "mode": 4, "lag": 24, "level": 6, "group": 2}

COMPILED = [
    ("gla", "chunked"),
    ("mamba2", "recurrent"),
    ("sliding_window", "quadratic"),
    ("linear_attention_full", "global"),
    ("s4d", "toeplitz"),
    ("gated_delta_net", "recurrent"),
    ("rwkv4", "chunked"),
]
"""One op for each plan, and for each kind of normaliser and gate."""


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> None:
    """Else a function compiled for one op before is compiled for any size the second time, which takes long."""
    torch._dynamo.reset()


Given = dict[str, Tensor | int | float]


def arguments(op: sma.CompiledOp, dtype: torch.dtype = torch.float32, **sizes: int) -> Given:
    return dict(samples(op.ir, SIZES | sizes, dtype))


def length(op: sma.CompiledOp, plan: str) -> int:
    """What goes position by position is traced so: few positions then make a graph of bearable size."""
    return 3 if plan == "recurrent" or op.name == "rwkv4" else 24


def leaves(given: Given) -> dict[str, Tensor]:
    """The floating-point tensors, as leaves that take gradients."""
    found = {name: x for name, x in given.items() if isinstance(x, Tensor) and x.is_floating_point()}
    return {name: x.detach().clone().requires_grad_() for name, x in found.items()}


def gradients(run: Callable[..., Tensor], given: Given) -> tuple[Tensor, list[Tensor]]:
    own = leaves(given)
    y = run(**{**given, **own})
    return y, list(torch.autograd.grad(y.square().sum(), list(own.values())))


@pytest.mark.parametrize(("name", "plan"), COMPILED)
def test_compiles_whole_forward_and_backward(name: str, plan: str) -> None:
    op = sma.library(name)
    given = arguments(op, time=length(op, plan))

    def run(**tensors: Tensor | int | float) -> Tensor:
        y: Tensor = op(**tensors, plan=plan)
        return y

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    y, grads = gradients(run, given)
    compiled_y, compiled_grads = gradients(compiled, given)
    torch.testing.assert_close(compiled_y, y, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(compiled_grads, grads, rtol=1e-4, atol=1e-5)


def test_compiles_into_cpp() -> None:
    op = sma.library("retention")
    given = arguments(op)
    compiled = torch.compile(lambda **tensors: op(**tensors, plan="chunked"), fullgraph=True)
    y, grads = gradients(op, given)
    compiled_y, compiled_grads = gradients(compiled, given)
    torch.testing.assert_close(compiled_y, y, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(compiled_grads, grads, rtol=1e-4, atol=1e-5)


def test_one_graph_serves_many_lengths() -> None:
    op = sma.library("simple_gla")
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda **tensors: op(**tensors, plan="chunked"), fullgraph=True, backend=graphs)
    for time in (600, 1333, 900):
        given = arguments(op, time=time)
        if not graphs.frame_count:
            for x in given.values():
                torch._dynamo.mark_dynamic(x, 1)
        torch.testing.assert_close(compiled(**given), op(**given, plan="chunked"), rtol=1e-5, atol=1e-6)
    assert graphs.frame_count == 1


def test_states_pass_through_a_compiled_step() -> None:
    op = sma.library("mamba2")
    given = arguments(op)
    over_time = [decl.name for decl in op.params if "time" in decl.dims]

    def step(state: sma.State, **tensors: Tensor) -> tuple[Tensor, sma.State]:
        return op.step(**tensors, state=state)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    y, state = op(**given), op.empty_state(2, head=2, key=16, value=16)
    for t in range(3):
        now = {name: x[:, t] if name in over_time else x for name, x in given.items() if isinstance(x, Tensor)}
        y_t, state = compiled(state, **now)
        torch.testing.assert_close(y_t, y[:, t], rtol=1e-5, atol=1e-6)


def test_compiled_steps_in_place() -> None:
    op = sma.library("attention")
    given = arguments(op)
    compiled = torch.compile(
        lambda state, q, k, v: op.step(q, k, v, state=state, inplace=True)[0], fullgraph=True, backend="aot_eager"
    )
    y, state = op(**given), op.empty_state(2, capacity=5, head=2, key=16, value=16)
    addresses = [tensor.data_ptr() for tensor in state.values()]
    for t in range(3):
        y_t = compiled(state, *(x[:, t] for x in given.values() if isinstance(x, Tensor)))
        torch.testing.assert_close(y_t, y[:, t], rtol=1e-5, atol=1e-6)
    assert [tensor.data_ptr() for tensor in state.values()] == addresses
    assert state["position"].tolist() == [3, 3]


def test_compiles_packs_without_looking_at_their_values() -> None:
    op = sma.library("retention")
    given = arguments(op, batch=1)
    compiled = torch.compile(
        lambda bounds, **tensors: op(**tensors, cu_seqlens=bounds), fullgraph=True, backend="aot_eager"
    )
    for bounds in (torch.tensor([0, 3, 3, 24]), torch.tensor([0, 10, 11, 24])):
        expected = op(**given, cu_seqlens=bounds)
        torch.testing.assert_close(compiled(bounds, **given), expected, rtol=1e-5, atol=1e-6)


def test_numbers_change_between_compiled_calls() -> None:
    op = sma.compile("op scaled(q, k, v, w: int, s: real):\n    return s * attend(window(w), q, k, v)\n")
    given = [torch.randn(1, 6, 2, 3) for _ in range(3)]
    compiled = torch.compile(lambda w, s: op(*given, w, s), fullgraph=True, backend="aot_eager")
    for w, s in ((2, 2.0), (3, 3.5)):
        torch.testing.assert_close(compiled(w, s), op(*given, w, s))


def test_mistakes_in_compiled_calls_are_shown() -> None:
    op = sma.library("attention")
    x = torch.randn(1, 5, 2, 4)
    compiled = torch.compile(lambda q, k: op(q, k, k), fullgraph=True, backend="aot_eager")
    with pytest.raises(torch._dynamo.exc.Unsupported) as caught:
        compiled(x, x[:, :3])
    causes: list[BaseException] = [caught.value]
    while causes[-1].__cause__ or causes[-1].__context__:
        causes.append(causes[-1].__cause__ or causes[-1].__context__)
    assert "attention: the time size of 'k' is 3, but that of 'q' is 5" in str(causes[-1])
    assert isinstance(causes[-1], sma.CallError)


class Mixer(torch.nn.Module):
    """An op as a module; returns the state too."""

    def __init__(self, name: str, plan: str) -> None:
        super().__init__()
        self.op = sma.library(name)
        self.plan = plan

    def forward(self, *tensors: Tensor) -> tuple[Tensor, sma.State]:
        y, state = self.op(*tensors, plan=self.plan, return_state=True)
        return y, state


@pytest.mark.parametrize(("name", "plan"), [("gla", "chunked"), ("attention", "quadratic")])
def test_exports_saves_and_loads(name: str, plan: str) -> None:
    mixer = Mixer(name, plan)
    given = tuple(x for x in arguments(mixer.op).values() if isinstance(x, Tensor))
    program = torch.export.export(mixer, given)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    y, state = torch.export.load(file).module()(*given)
    expected, expected_state = mixer(*given)
    torch.testing.assert_close(y, expected)
    assert isinstance(state, sma.State)
    torch.testing.assert_close(dict(state), dict(expected_state))


def test_exports_with_any_batch_and_length() -> None:
    class Chunked(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            y: Tensor = op(*tensors, plan="chunked")
            return y

    op = sma.library("simple_gla")
    given = tuple(x for x in arguments(op, time=600).values() if isinstance(x, Tensor))
    dims = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    program = torch.export.export(Chunked(), given, dynamic_shapes=(tuple(dims for _ in given),))
    other = tuple(x for x in arguments(op, time=1333, batch=3).values() if isinstance(x, Tensor))
    torch.testing.assert_close(program.module()(*other), op(*other, plan="chunked"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "plan"), COMPILED)
def test_func_grad_and_vmap(name: str, plan: str) -> None:
    """Per-sample gradients by vmap of grad are the gradients of each sample."""
    op = sma.library(name)
    given = arguments(op, batch=1, time=length(op, plan))
    own = {name: x.detach() for name, x in leaves(given).items()}
    rest = {name: x for name, x in given.items() if name not in own}

    def loss(tensors: dict[str, Tensor]) -> Tensor:
        return op(**tensors, **rest, plan=plan).square().sum()

    samples = {name: torch.stack([x, 0.9 * x]) for name, x in own.items()}
    together = torch.func.vmap(torch.func.grad(loss))(samples)
    for index in range(2):
        one = torch.func.grad(loss)({name: x[index] for name, x in samples.items()})
        expected = gradients(lambda **t: op(**t, plan=plan), {**rest, **{n: x[index] for n, x in samples.items()}})[1]
        torch.testing.assert_close(list(one.values()), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close([x[index] for x in together.values()], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant: bool) -> None:
    op = sma.library("gla")
    given = arguments(op)
    own = leaves(given)
    y = checkpoint(lambda *tensors: op(*tensors), *own.values(), use_reentrant=reentrant)
    grads = torch.autograd.grad(y.square().sum(), list(own.values())) if not reentrant else None
    if grads is None:  # reentrant checkpoints take backward() alone
        y.square().sum().backward()
        grads = tuple(x.grad for x in own.values() if x.grad is not None)
    torch.testing.assert_close(list(grads), gradients(op, given)[1])


def test_autocast_casts_values_and_leaves_gates() -> None:
    op = sma.library("mamba2")
    given = arguments(op)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = op(**given)
    assert y.dtype == torch.bfloat16
    by_hand = {name: x.bfloat16() if name in "qkv" else x for name, x in given.items() if isinstance(x, Tensor)}
    assert torch.equal(y, op(**by_hand))
    rounded_gates = {name: x.bfloat16() for name, x in given.items() if isinstance(x, Tensor)}
    assert not torch.equal(y, op(**rounded_gates))


def test_autocast_takes_gradients_back_to_fp32() -> None:
    op = sma.library("gla")
    own = leaves(arguments(op))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = op(**own)
    for grad, x in zip(torch.autograd.grad(y.float().sum(), list(own.values())), own.values(), strict=True):
        assert grad.dtype == x.dtype == torch.float32
        assert grad.isfinite().all()


def test_autocast_leaves_fp64_alone() -> None:
    op = sma.library("retention")
    given = arguments(op, torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = op(**given)
    assert torch.equal(y, op(**given))


@pytest.mark.parametrize(("name", "plan"), COMPILED)
def test_forward_and_double_backward(name: str, plan: str) -> None:
    op = sma.library(name)
    given = arguments(op, torch.float64, batch=1, time=3, head=1, key=2, value=1, mode=1, lag=3, group=1)
    own = leaves(given)
    names = list(own)
    rest = {name: x for name, x in given.items() if name not in own}

    def run(*tensors: Tensor) -> Tensor:
        y: Tensor = op(**dict(zip(names, tensors, strict=True)), **rest, plan=plan)
        return y

    tensors = tuple(own.values())
    assert torch.autograd.gradcheck(run, tensors, check_forward_ad=True, check_backward_ad=False)
    assert torch.autograd.gradgradcheck(run, tensors)


def test_shapes_without_values() -> None:
    op = sma.library("gla")
    given = {name: x.to("meta") for name, x in arguments(op).items() if isinstance(x, Tensor)}
    y, state = op(**given, return_state=True)
    assert y.is_meta
    assert y.shape == (2, 24, 2, 16)
    assert state["position"].is_meta


@pytest.mark.parametrize(("name", "plan"), COMPILED)
def test_gradcheck(name: str, plan: str) -> None:
    op = sma.library(name)
    given = arguments(op, torch.float64, batch=1, time=5, head=1, key=4, value=2, mode=2, lag=5, group=1)
    own = leaves(given)
    names = list(own)
    rest = {name: x for name, x in given.items() if name not in own}
    assert torch.autograd.gradcheck(
        lambda *tensors: op(**dict(zip(names, tensors, strict=True)), **rest, plan=plan), tuple(own.values())
    )
