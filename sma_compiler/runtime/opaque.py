"""What the operators `sma::forward` and `sma::backward` do, and the autograd function that joins them.

To torch an emitted file is opaque: it sees one operator, with tensors and with strings that say which op and how.
Tracing, `torch.compile` and export put these operators into their graphs, and transforms map them; a plain call on
plain tensors does what they do without passing through them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function
from typing_extensions import Unpack

from sma_compiler.backend_errors import NoDoubleBackward, NoForwardMode
from sma_compiler.ir.nodes import Kind
from sma_compiler.kernel.inputs import tensors_of
from sma_compiler.kernel.linear import STATE_ROWS
from sma_compiler.runtime import job as launches
from sma_compiler.runtime.job import Given, Job, Number
from sma_compiler.runtime.program import program_of
from sma_compiler.runtime.replay import plain
from sma_compiler.torch_plans.run import COARSEST_FIRST

Dims: TypeAlias = "int | Sequence[Dims] | None"
"""Where a mapped tensor has its mapped dimension, None where it has none; lists of these for lists of tensors."""
Call: TypeAlias = tuple[str, str, list[Tensor], list[int], list[float], list[Tensor], list[Tensor]]
"""What `sma::forward` takes: the op's handle, how it runs (`_names`), tensors, integers, reals, states, packs."""
Gradient: TypeAlias = tuple[Tensor, list[Tensor], list[Tensor], list[bool]]
"""What `sma::backward` takes after these: the cotangent, what was saved, cotangents of states, which are needed."""


class Context(Protocol):
    """What autograd hands to the functions here, with the job that is kept there."""

    job: Job
    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep tensors for the gradients."""

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        """Say which results have no gradients."""

    def set_materialize_grads(self, value: bool) -> None:
        """Whether cotangents that nobody gave are zeros, and not None."""


class Mapped(Protocol):
    """What `vmap` says of itself. batch_size: of the mapped dimension."""

    batch_size: int


class Forward(Function):
    """An op as autograd sees it. Takes a job and its tensors; gives what `launches.forward` gives."""

    generate_vmap_rule = True

    @staticmethod
    def forward(job: Job, *tensors: Tensor) -> tuple[Tensor, ...]:
        return run_forward(job, tensors)

    @staticmethod
    def setup_context(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        job, *tensors = inputs
        saved: list[Tensor] = []
        if job.want_norm:
            kept = output[len(output) - launches.kept(job, tensors) :]
            saved = [*([output[0]] if job.keeps_result else []), *kept]
            ctx.mark_non_differentiable(*kept[1 if job.want_lse else 0 :])
        ctx.job = job
        ctx.save_for_backward(*tensors, *saved)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Context, dy: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
        job = ctx.job
        needs = tuple(ctx.needs_input_grad[1:])
        count = len(needs)
        held = ctx.saved_tensors  # once: checkpoints give them once
        tensors, saved = held[:count], held[count:]
        dstates = list(others[: len(others) - launches.kept(job, tensors)])
        dlse = [grad for grad in others[len(dstates) :][:1] if job.want_lse and grad is not None]
        if dy is None and not dlse and all(grad is None for grad in dstates):
            return (None,) * (1 + count)
        given = job.split(tensors)
        if dy is None:
            dy = torch.zeros_like(saved[0]) if job.keeps_result else zero_result(job, given)
        if any(grad is not None for grad in dstates):
            shaped = zero_states(job, given)
            dstates = [zero if grad is None else grad for grad, zero in zip(dstates, shaped, strict=True)]
        else:
            dstates = []
        grads = iter(Backward.apply(job, needs, dy, *tensors, *saved, *dstates, *dlse))
        return (None, *(next(grads) if need else None for need in needs))

    @staticmethod
    def jvp(ctx: Context, *tangents: Tensor | None) -> None:
        raise NoForwardMode(ctx.job.program.op.label)


class Backward(Function):
    """The gradients of an op as autograd sees them: without derivatives of their own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(job: Job, needs: tuple[bool, ...], dy: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return run_backward(job, needs, dy, tensors)

    @staticmethod
    def setup_context(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.job = inputs[0]

    @staticmethod
    def backward(ctx: Context, *grads: Tensor | None) -> None:
        raise NoDoubleBackward(ctx.job.program.op.label)

    @staticmethod
    def jvp(ctx: Context, *tangents: Tensor | None) -> None:
        raise NoForwardMode(ctx.job.program.op.label)


def run(job: Job, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """A job, differentiable: its result, then the state where wanted, then what is kept for gradients."""
    if plain(tensors) and not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors)):
        return run_forward(job, tensors)
    found: tuple[Tensor, ...] = Forward.apply(job, *tensors)
    return found


def run_forward(job: Job, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Launch, or put the operator into what is being traced."""
    given = job.split(tensors)
    if plain(tensors):
        return launches.forward(job, job.kernel_for(given.params), tensors)
    return tuple(torch.ops.sma.forward(*_names(job), *_tensors(job, given)))


def run_backward(job: Job, needs: Sequence[bool], dy: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Launch, or put the operator into what is being traced. tensors: of the job, what was saved, cotangents."""
    own, saved, dstates = cut_backward(job, tensors)
    given = job.split(own)
    if plain((dy, *tensors)):
        return launches.backward(job, job.kernel_for(given.params), own, dy, saved, dstates, needs)
    return tuple(
        torch.ops.sma.backward(*_names(job), *_tensors(job, given), dy, list(saved), list(dstates), list(needs))
    )


def cut_backward(
    job: Job, tensors: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The tensors of a job, what was saved, and the cotangents of the state, one after the other."""
    own = job.params + job.states + job.packed
    end = own + job.keeps_result + launches.kept(job, tensors)
    return tuple(tensors[:own]), tuple(tensors[own:end]), tuple(tensors[end:])


def _names(job: Job) -> tuple[str, str]:
    known = ("state", job.want_state), ("norm", job.want_norm), ("lse", job.want_lse)
    wanted = [name for name, want in known if want]
    return job.program.handle, " ".join([job.plan, job.precision, *wanted])


def _tensors(job: Job, given: Given) -> tuple[list[Tensor], list[Number], list[Number], list[Tensor], list[Tensor]]:
    decls = [decl for decl in job.program.op.params if decl.number]
    integers: list[Number] = []
    reals: list[Number] = []
    for decl, number in zip(decls, job.numbers, strict=True):
        (integers if decl.kind is Kind.INT else reals).append(number)
    return list(given.params), integers, reals, list(given.states), list(given.packs)


def _called(call: Call) -> tuple[Job, Given]:
    op, how, params, integers, reals, states, packs = call
    program = program_of(op)
    plan, precision, *wanted = how.split()
    left: dict[Kind, Iterator[Number]] = {Kind.INT: iter(integers), Kind.REAL: iter(reals)}
    numbers = tuple(next(left[decl.kind]) for decl in program.op.params if decl.number)
    asked = "state" in wanted, "norm" in wanted
    job = Job(program, plan, precision, numbers, *asked, len(states), bool(packs), want_lse="lse" in wanted)
    return job, Given(tuple(params), tuple(states), tuple(packs))


def zero_result(job: Job, given: Given) -> Tensor:
    """Zeros of the form of the result."""
    sizes = job.sizes(given.params)
    first = given.params[0]
    return first.new_zeros([sizes[axis] for axis in job.program.op.result.axes])


def zero_states(job: Job, given: Given) -> list[Tensor]:
    """Zeros of the form of the state: for each stream a matrix, and where there is a divisor the sum of the keys."""
    sizes = job.sizes(given.params)
    rows = given.packs[0].shape[0] - 1 if given.packs else sizes["batch"]
    kinds = ("key", "value"), ("key",)
    shapes = []
    for one in job.program.kernels.carried:
        own = sizes | ({"head": 1, "value": sizes["head"]} if one.merged else {})
        own |= {"key": STATE_ROWS} if one.stabilised else {}
        for _ in range(one.streams):
            shapes += [[rows, *(own[axis] for axis in ("head", *axes))] for axes in kinds[: 1 + one.normalised]]
    return [given.params[0].new_zeros(shape, dtype=torch.float32) for shape in shapes]


def zero_values(job: Job, given: Given) -> list[Tensor]:
    """Zeros of the form of what the contractions of an op hand on, and of what was inverted for them."""
    sizes = job.sizes(given.params)
    names = [decl.name for decl in job.program.op.params if not decl.number]
    dtypes = {name: x.dtype for name, x in zip(names, given.params, strict=True)}
    found = []
    for stage in job.program.kernels.stages:
        if stage.value is not None:
            first = next(decl.name for decl in stage.op.params if not decl.number)
            dtypes[stage.value.name] = dtypes[first]
            shape = [sizes[axis] for axis in stage.value.dims]
            found.append(given.params[0].new_zeros(shape, dtype=dtypes[first]))
        if stage.right is not None:
            member = job.program.kernels.members[stage.site]
            read = {dtypes[node.name] for node in tensors_of((member.q, member.k, stage.right))}
            coarsest = next(dtype for dtype in COARSEST_FIRST if dtype in read)
            shape = [*(sizes[axis] for axis in ("batch", "head", "time")), launches.chunk_of(job, given, stage)]
            found.append(given.params[0].new_zeros(shape, dtype=coarsest))
    return found


def launch_forward(*call: Unpack[Call]) -> list[Tensor]:
    """What `sma::forward` gives: the result, then the state and the divisors where they are wanted."""
    job, given = _called(call)
    return list(launches.forward(job, job.kernel_for(given.params), (*given.params, *given.states, *given.packs)))


def fake_forward(*call: Unpack[Call]) -> list[Tensor]:
    """The forms of what `sma::forward` gives."""
    job, given = _called(call)
    found = [zero_result(job, given)]
    if job.want_state:
        found += zero_states(job, given)
    if job.want_norm and job.program.kernels.stages:
        found += zero_values(job, given)
    elif job.want_norm:
        sizes = job.sizes(given.params)
        batch, time, heads = (sizes[axis] for axis in ("batch", "time", "head"))
        dtype = launches.divisors_dtype(job.program, given.params)
        found.append(given.params[0].new_zeros([batch, time, heads], dtype=dtype))
        if launches.kept(job, given.params) > 1:
            found.append(given.params[0].new_zeros([batch, heads, time], dtype=torch.float32))
    return found


def launch_backward(*call: Unpack[tuple[Unpack[Call], Unpack[Gradient]]]) -> list[Tensor]:
    """What `sma::backward` gives: the gradients that are needed, of parameters, then of the initial state.

    Inductor holds operators to what their fakes promise: contiguous tensors that begin at a multiple of 16 bytes.
    """
    job, given = _called(call[:7])
    dy, saved, dstates, needs = call[7:]
    own = (*given.params, *given.states, *given.packs)
    found = launches.backward(job, job.kernel_for(given.params), own, dy, saved, dstates, needs)
    wanted = [x for x, need in zip(own, needs, strict=True) if need]
    return launches.aligned([grad.to(x.dtype).contiguous() for grad, x in zip(found, wanted, strict=True)])


def fake_backward(*call: Unpack[tuple[Unpack[Call], Unpack[Gradient]]]) -> list[Tensor]:
    """The forms of what `sma::backward` gives."""
    _, given = _called(call[:7])
    own = (*given.params, *given.states, *given.packs)
    needs = call[10]
    return [x.new_empty(x.shape) for x, need in zip(own, needs, strict=True) if need]


def differentiate_forward(keys: torch._C.DispatchKeySet, *call: Unpack[Call]) -> list[Tensor]:
    """The operator as it stands in a program that was exported, where no autograd function is around it."""
    job, given = _called(call)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (*given.params, *given.states)):
        return list(Forward.apply(job, *given.params, *given.states, *given.packs))
    return _below(torch.ops.sma.forward.default, keys, *call)


def differentiate_backward(keys: torch._C.DispatchKeySet, *args: object) -> list[Tensor]:
    """The operator without derivatives: `Backward` is around it."""
    return _below(torch.ops.sma.backward.default, keys, *args)


def _below(operator: torch._ops.OpOverload, keys: torch._C.DispatchKeySet, *args: object) -> list[Tensor]:
    with torch._C._AutoDispatchBelowAutograd():
        found: list[Tensor] = operator.redispatch(keys & torch._C._after_autograd_keyset, *args)
        return found


def map_forward(info: Mapped, in_dims: Sequence[Dims], *args: object) -> tuple[list[Tensor], list[int]]:
    """The rule of `vmap` for `sma::forward`."""
    return _each(torch.ops.sma.forward, info.batch_size, in_dims, args)


def map_backward(info: Mapped, in_dims: Sequence[Dims], *args: object) -> tuple[list[Tensor], list[int]]:
    """The rule of `vmap` for `sma::backward`."""
    return _each(torch.ops.sma.backward, info.batch_size, in_dims, args)


def _each(
    operator: Callable[..., list[Tensor]], count: int, in_dims: Sequence[Dims], args: Sequence[object]
) -> tuple[list[Tensor], list[int]]:
    """One call for each entry of the mapped dimension."""
    calls = [
        operator(*(_entry(arg, dim, number) for arg, dim in zip(args, in_dims, strict=True))) for number in range(count)
    ]
    found = [torch.stack(parts) for parts in zip(*calls, strict=True)]
    return found, [0] * len(found)


def _entry(arg: object, dim: Dims, index: int) -> object:
    """An argument's part in one call; what has no mapped dimension takes part in all."""
    if isinstance(arg, list | tuple) and isinstance(dim, list | tuple):
        return [_entry(x, own, index) for x, own in zip(arg, dim, strict=True)]
    return arg.select(dim, index) if isinstance(arg, Tensor) and isinstance(dim, int) else arg
