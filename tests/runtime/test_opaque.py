"""Ops behind kernels are torch citizens: operators checked, compiled whole, exported, transformed, checkpointed."""

from __future__ import annotations

import functools
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from runtime.stand_in import SPEC, gated, gated_backward, use
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import sma_compiler as sma
from sma_compiler.backend_errors import NoDoubleBackward, NoForwardMode
from sma_compiler.driver import compile_source
from sma_compiler.runtime import opaque
from sma_compiler.runtime.job import Job
from sma_compiler.runtime.program import program_of
from sma_compiler.source import Source

SCALE = 0.5
Tensors = tuple[Tensor, ...]


@pytest.fixture(params=[None, pytest.param("cuda", marks=pytest.mark.gpu)], ids=["stand_in", "gpu"])
def op(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[sma.CompiledOp]:
    """The op behind a stand-in for its kernels, and on a GPU behind the kernels themselves."""
    torch._dynamo.reset()
    torch.set_default_device(request.param)
    yield compile_source(Source(SPEC, "gated.sma")) if request.param else use(monkeypatch)
    torch.set_default_device(None)


def inputs(batch: int = 2, time: int = 7, heads: int = 2) -> Tensors:
    q, k = torch.randn(2, batch, time, heads, 4)
    return q, k, torch.randn(batch, time, heads, 3), -torch.rand(batch, time, heads)


def leaves(given: Tensors) -> Tensors:
    return tuple(x.clone().requires_grad_() for x in given)


def state_of(op: sma.CompiledOp, given: Tensors) -> sma.State:
    _, state = op(*given, SCALE, return_state=True, backend="torch")
    assert isinstance(state, sma.State)
    return state


def loss(y: Tensor, state: sma.State) -> Tensor:
    return y.square().sum() + state["attend0.S0"].sin().sum()


@pytest.mark.parametrize("initial", [False, True])
def test_gradients_are_those_of_torch(op: sma.CompiledOp, initial: bool) -> None:
    found = []
    given, earlier = inputs(), state_of(op, inputs())
    for backend in ("triton", "torch"):
        own = leaves(given)
        start = earlier.map(lambda x: x.clone().requires_grad_(x.is_floating_point())) if initial else None
        y, state = op(*own, SCALE, initial_state=start, return_state=True, backend=backend)
        wanted = (*own, *([start["attend0.S0"]] if start is not None else []))
        found.append([y, state["attend0.S0"], *torch.autograd.grad(loss(y, state), wanted)])
        assert torch.equal(state["position"], torch.full((2,), 14 if initial else 7))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_kernels_are_given_tensors_that_begin_at_16_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[int] = []

    def noted(run: Callable[..., object]) -> Callable[..., object]:
        def noting(*args: object, **keywords: object) -> object:
            places.extend(x.data_ptr() % 16 for x in args if isinstance(x, Tensor))
            return run(*args, **keywords)

        return functools.wraps(run)(noting)

    module = ModuleType("noted")
    module.gated, module.gated_backward = noted(gated), noted(gated_backward)
    op = use(monkeypatch, module)
    given = inputs()
    shifted = tuple(torch.cat((x.flatten()[:1], x.flatten()))[1:].view(x.shape).requires_grad_() for x in given)
    own = leaves(given)
    found = []
    for tensors in (own, shifted):
        y = op(*tensors, SCALE, backend="triton")
        dy = torch.cat((y.flatten()[:1], y.flatten()))[1:].view(y.shape).detach()
        found.append((y, *torch.autograd.grad(y, tensors, dy)))
    torch.testing.assert_close(found[0], found[1])
    assert len(places) == 18
    assert places == [0] * 18


def test_the_operator_gives_gradients_that_begin_at_16_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    def shift(x: Tensor | None) -> Tensor | None:
        return None if x is None else torch.cat((x.flatten()[:2], x.flatten()))[2:].view(x.shape)

    @functools.wraps(gated_backward)
    def shifted(*args: Tensor, **keywords: object) -> tuple[Tensor | None, ...]:
        return tuple(shift(x) for x in gated_backward(*args, **keywords))

    module = ModuleType("shifted")
    module.gated, module.gated_backward = gated, shifted
    op, given = use(monkeypatch, module), inputs()
    job = Job(op.program, "chunked", "ieee", (SCALE,), want_state=False, want_norm=False, states=0, packed=False)
    arguments = (*opaque._names(job), *opaque._tensors(job, job.split(given)))
    found = torch.ops.sma.backward(*arguments, torch.randn(2, 7, 2, 3), [], [], [True] * 4)
    assert [x.data_ptr() % 16 for x in found] == [0] * 4


def test_only_what_is_needed_is_asked_for(op: sma.CompiledOp) -> None:
    q, k, v, g = inputs()
    g.requires_grad_()
    (grad,) = torch.autograd.grad(op(q, k, v, g, SCALE, backend="triton").sum(), [g])
    (expected,) = torch.autograd.grad(op(q, k, v, g, SCALE, backend="torch").sum(), [g])
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-4)


def test_heads_and_batches_that_are_shared(op: sma.CompiledOp) -> None:
    q, k, v, g = inputs()
    given = leaves((q, k, v[:1], g[..., :1]))
    found = [
        torch.autograd.grad(op(*given, SCALE, backend=backend).square().sum(), given) for backend in ("triton", "torch")
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_operators_pass_the_checks_of_torch(op: sma.CompiledOp) -> None:
    given, state = inputs(), torch.randn(2, 2, 4, 3)
    job = Job(op.program, "chunked", "ieee", (SCALE,), want_state=True, want_norm=False, states=1, packed=False)
    arguments = (*opaque._names(job), *opaque._tensors(job, job.split((*given, state))))
    torch.library.opcheck(torch.ops.sma.forward.default, arguments)
    needs = [True, True, False, True, True]
    backward = (*arguments, torch.randn(2, 7, 2, 3), [], [state], needs)
    torch.library.opcheck(torch.ops.sma.backward.default, backward)
    own = leaves(given)
    training = (*opaque._names(job), *opaque._tensors(job, job.split((*own, state))))
    torch.library.opcheck(torch.ops.sma.forward.default, training)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_whole_forward_and_backward(op: sma.CompiledOp, backend: str) -> None:
    def run(*tensors: Tensor) -> Tensor:
        y, state = op(*tensors, SCALE, return_state=True, backend="triton")
        return loss(y, state)

    given = inputs()
    found = []
    for each in (run, torch.compile(run, fullgraph=True, backend=backend)):
        own = leaves(given)
        found.append(torch.autograd.grad(each(*own), own))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_handles_are_one_line_without_quotes() -> None:
    text = "# 100 % 'plain'; \u03bb\n" + SPEC.replace("attend(", "attend(\n        ") + '# it\'s "said"\n'
    program = compile_source(Source(text, "gated.sma")).program
    assert program.handle.startswith("gated ")
    assert program.handle.isascii()
    assert not set("\n'\"\\") & set(program.handle)
    program_of.__globals__["_programs"].pop(program.handle)
    assert program_of(program.handle) == program


def test_one_graph_serves_many_lengths(op: sma.CompiledOp) -> None:
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda *tensors: op(*tensors, SCALE, backend="triton"), fullgraph=True, backend=graphs)
    for time in (5, 9, 30):
        own = leaves(inputs(time=time))
        if not graphs.frame_count:
            for x in own:
                torch._dynamo.mark_dynamic(x, 1)
        grads = torch.autograd.grad(compiled(*own).square().sum(), own)
        expected = torch.autograd.grad(op(*own, SCALE, backend="torch").square().sum(), own)
        torch.testing.assert_close(grads, expected, rtol=1e-4, atol=1e-4)
    assert graphs.frame_count == 1


def test_numbers_change_between_compiled_calls(op: sma.CompiledOp) -> None:
    given = inputs()
    compiled = torch.compile(lambda s: op(*given, s, backend="triton"), fullgraph=True, backend="aot_eager")
    for s in (1.0, 0.25, 0.125):
        torch.testing.assert_close(compiled(s), op(*given, s, backend="torch"), rtol=1e-4, atol=1e-4)


class Mixer(torch.nn.Module):
    """The op as a module; returns the state too."""

    def __init__(self, op: sma.CompiledOp) -> None:
        super().__init__()
        self.op = op

    def forward(self, *tensors: Tensor) -> tuple[Tensor, sma.State]:
        y, state = self.op(*tensors, SCALE, backend="triton", return_state=True)
        return y, state


def test_exports_saves_and_loads(op: sma.CompiledOp) -> None:
    given = inputs()
    dims = {1: torch.export.Dim.AUTO}
    program = torch.export.export(Mixer(op), given, dynamic_shapes=(tuple(dims for _ in given),))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    other = inputs(time=12)
    y, state = loaded(*other)
    expected, expected_state = Mixer(op)(*other)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(dict(state), dict(expected_state))


def test_exported_programs_can_be_trained(op: sma.CompiledOp) -> None:
    given = inputs()
    loaded = torch.export.export(Mixer(op), given).module()
    found = []
    for mixer in (loaded, Mixer(op)):
        own = leaves(given)
        found.append(torch.autograd.grad(loss(*mixer(*own)), own))
    torch.testing.assert_close(found[0], found[1])


def test_exported_programs_load_before_anything_is_compiled(op: sma.CompiledOp, tmp_path: Path) -> None:
    torch.export.save(torch.export.export(Mixer(op), inputs()), tmp_path / "mixer.pt2")
    code = "import torch, sma_compiler; print(torch.export.load('mixer.pt2').graph_module.code)"
    path = str(Path(sma.__file__).parents[1])
    command = [sys.executable, "-W", "ignore", "-c", code]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "torch.ops.sma.forward.default('gated" in done.stdout


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints(op: sma.CompiledOp, reentrant: bool) -> None:
    given = inputs()
    found = []
    for wrapped in (False, True):
        own = leaves(given)

        def run(*tensors: Tensor) -> Tensor:
            y: Tensor = op(*tensors, SCALE, backend="triton")
            return y

        y = checkpoint(run, *own, use_reentrant=reentrant) if wrapped else run(*own)
        y.square().sum().backward()
        found.append([x.grad for x in own])
    torch.testing.assert_close(found[0], found[1])


def test_autocast_casts_values_and_leaves_gates(op: sma.CompiledOp) -> None:
    q, k, v, g = own = leaves(inputs())
    with torch.autocast(q.device.type, dtype=torch.bfloat16):
        y = op(*own, SCALE, backend="triton")
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, op(q.bfloat16(), k.bfloat16(), v.bfloat16(), g, SCALE, backend="triton"))
    assert all(x.dtype == torch.float32 for x in torch.autograd.grad(y.float().sum(), own))


def test_gradients_by_transform(op: sma.CompiledOp) -> None:
    def run(*tensors: Tensor) -> Tensor:
        return op(*tensors, SCALE, backend="triton").square().sum()

    given = inputs()
    own = leaves(given)
    expected = torch.autograd.grad(run(*own), own)
    torch.testing.assert_close(torch.func.grad(run, argnums=(0, 1, 2, 3))(*given), expected)


def test_gradients_for_each_sample(op: sma.CompiledOp) -> None:
    def run(g: Tensor, *tensors: Tensor) -> Tensor:
        return op(*(x[None] for x in tensors), g[None], SCALE, backend="triton").square().sum()

    q, k, v, g = inputs()
    found = torch.func.vmap(torch.func.grad(run), in_dims=(None, 0, 0, 0))(g[0], q, k, v)
    expected = [torch.func.grad(run)(g[0], *one) for one in zip(q, k, v, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected))


def test_maps_over_any_dimension(op: sma.CompiledOp) -> None:
    given = inputs()
    stacked = [torch.stack([x, 0.5 * x], 1) for x in given]
    found = torch.func.vmap(lambda *tensors: op(*tensors, SCALE, backend="triton"), in_dims=1)(*stacked)
    for number in range(2):
        torch.testing.assert_close(found[number], op(*(x[:, number] for x in stacked), SCALE, backend="triton"))


def test_double_backward_is_refused(op: sma.CompiledOp) -> None:
    own = leaves(inputs())
    grads = torch.autograd.grad(op(*own, SCALE, backend="triton").square().sum(), own, create_graph=True)
    with pytest.raises(NoDoubleBackward, match=r"gated: Triton kernels have first derivatives only"):
        grads[0].sum().backward()
    twice = torch.func.grad(
        lambda q: torch.func.grad(lambda x: op(x, *own[1:], SCALE, backend="triton").square().sum())(q).sum()
    )
    with pytest.raises(NoDoubleBackward):
        twice(own[0])


def test_forward_mode_is_refused(op: sma.CompiledOp) -> None:
    q, *others = inputs()
    with pytest.raises(NoForwardMode, match=r"call the op with backend=\"torch\""):
        torch.func.jvp(lambda x: op(x, *others, SCALE, backend="triton"), (q,), (q,))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NoForwardMode):
        op(torch.autograd.forward_ad.make_dual(q, q), *others, SCALE, backend="triton")
