"""The Triton backend: whether an op has a kernel for a call, and the call by that kernel, states in and out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sma_compiler.backend_errors import NoDoublePrecision, NoKernel, TritonMissing, TritonNeedsGPU
from sma_compiler.errors import CallError
from sma_compiler.ir.nodes import ParamDecl
from sma_compiler.kernel.errors import NoTritonKernel
from sma_compiler.kernel.linear import STATE_ROWS
from sma_compiler.runtime.args import Arguments
from sma_compiler.runtime.job import Job, aligned, find_kernel, flat, joined, on
from sma_compiler.runtime.kernels import Carried, Kernel, Kernels, has_triton, interpreted
from sma_compiler.runtime.opaque import run
from sma_compiler.runtime.program import Program
from sma_compiler.runtime.replay import ALIGNMENT, plain
from sma_compiler.torch_plans.run import Result, result_dtype

GRID = 65535
"""How many programs a GPU starts along the second and third axis of a grid."""


class Wanted(NamedTuple):
    """What a call needs of a kernel. training: gradients; lse: the log-sum-exp of its rows.

    sequences: how many a pack has; None: it is none. tuned: whether plan and backend are those of a record, or
    of the cost model. states: whether one comes in or goes out.
    """

    plan: str
    backend: str
    training: bool
    sequences: int | None
    lse: bool
    tuned: bool = False
    states: bool = False

    @property
    def packed(self) -> bool:
        """Whether there are `cu_seqlens`."""
        return self.sequences is not None


def kernel_for(program: Program, wanted: Wanted, arguments: Arguments) -> Kernel | None:
    """The kernel for a call; None: the torch backend makes it.

    Raises:
        CallError: `backend` is "triton", and there is none.
    """
    if wanted.backend == "torch":
        return None
    why: CallError | None = _unfit(program, wanted.backend, arguments)
    if why is None:
        try:
            return _find(program, wanted, arguments)
        except NoTritonKernel as error:
            why = NoKernel(program.op.label, wanted.plan, error.reason)
    if wanted.backend != "triton":
        return None
    raise why


def _unfit(program: Program, backend: str, arguments: Arguments) -> CallError | None:
    """Why no kernel at all takes these tensors. Where Triton interprets kernels, those of the CPU are for who asks."""
    name, device = program.op.label, arguments.device
    if device.type != "cuda" and not (backend == "triton" and device.type == "cpu" and interpreted()):
        return TritonNeedsGPU(name, device)
    if not has_triton():
        return TritonMissing(name)
    for given, tensor in arguments.tensors.items():
        if tensor.dtype == torch.float64:
            return NoDoublePrecision(name, given)
    return None


def _find(program: Program, wanted: Wanted, arguments: Arguments) -> Kernel:
    def refuse(reason: str) -> NoTritonKernel:
        return NoTritonKernel(program.op.name, wanted.plan, reason)

    if arguments.sizes["batch"] == 0:
        raise refuse("an empty batch needs none")
    if arguments.sizes["batch"] > GRID:
        raise refuse(f"a launch takes a batch of {GRID} at most")
    if (wanted.sequences or 0) > GRID:
        raise refuse(f"a launch takes a pack of {GRID} sequences at most")
    found = find_kernel(program, wanted.plan, arguments.sizes, list(arguments.tensors.values()))
    if wanted.states and "initial_state" not in found.keywords:
        _check_cached(wanted, found, arguments, refuse)
    if wanted.lse and found.kept != "lse":
        raise refuse("return_lse has none")
    if wanted.packed and "cu_seqlens" not in found.keywords:
        raise refuse("packs have none")
    if wanted.training and found.backward is None:
        raise refuse("gradients have none")
    if wanted.training and wanted.packed and "cu_seqlens" not in found.backward_keywords:
        raise refuse("gradients of packs have none")
    return found


def _check_cached(wanted: Wanted, found: Kernel, arguments: Arguments, refuse: Callable[[str], NoTritonKernel]) -> None:
    """Refuse a call with a state that no kernel after a cache makes."""
    if found.cached is None:
        raise refuse("states have none")
    if wanted.training:
        raise refuse("gradients of calls with a cache have none")
    if wanted.packed:
        raise refuse("packs with a cache have none")
    if not plain(tuple(arguments.tensors.values())):
        raise refuse("calls with a cache that torch traces or maps have none")


def run_kernel(
    program: Program,
    plan: str,
    precision: str,
    kernel: Kernel,
    arguments: Arguments,
    state: Mapping[str, Tensor] | None,
    bounds: Tensor | None,
    want_state: bool,
    want_lse: bool = False,
) -> Result:
    """A call by its kernel, differentiable. bounds: `cu_seqlens` of a pack."""
    kernels = program.kernels
    params = whole(program, arguments)
    states = [] if state is None else _states_in(state, kernels)
    packs = [] if bounds is None else [bounds]
    training = torch.is_grad_enabled() and any(x.requires_grad for x in (*params, *states))
    job = make_job(
        program,
        plan,
        precision,
        kernel,
        arguments,
        keep=training or want_lse,
        want_state=want_state,
        states=len(states),
        packed=bool(packs),
        want_lse=training and want_lse,
    )
    result, *others = run(job, (*params, *states, *packs))
    result = result.to(result_dtype(program.op, arguments.tensors, torch.float32))
    if not want_state:
        return Result(result, None, others[0].float() if want_lse else None)
    after = {"position": _position(state, arguments.sizes, bounds, result.device)}
    return Result(result, after | _states_out(others, kernels), None)


def make_job(
    program: Program,
    plan: str,
    precision: str,
    kernel: Kernel,
    arguments: Arguments,
    *,
    keep: bool,
    want_state: bool = False,
    states: int = 0,
    packed: bool = False,
    want_lse: bool = False,
) -> Job:
    """A job for these arguments. keep: whether what rows are divided by is wanted. Other arguments: see `Job`."""
    numbers = tuple(arguments.numbers[decl.name] for decl in program.op.params if decl.number)
    norm = keep and bool(kernel.kept)
    return Job(program, plan, precision, numbers, want_state, norm, states, packed, kernel, want_lse)


def whole(program: Program, arguments: Arguments) -> list[Tensor]:
    """The tensors in the order of the spec, as launchers take them."""
    merged = program.kernels.merged
    return [_whole(decl, arguments, merged) for decl in program.op.params if not decl.number]


def run_step(
    program: Program, kernel: Kernel, arguments: Arguments, state: Mapping[str, Tensor] | None, inplace: bool
) -> Result:
    """A step in one launch, not differentiable; its result has no time axis.

    inplace: the new state lies where the old one did.
    """
    kernels, launch = program.kernels, kernel.step
    assert launch is not None
    params = iter(whole(program, arguments))
    given = []
    for decl in program.op.params:
        x = arguments.numbers[decl.name] if decl.number else next(params)
        x = x.select(decl.dims.index("time"), 0) if isinstance(x, Tensor) and "time" in decl.dims else x
        given.append(aligned([x])[0] if isinstance(x, Tensor) else x)
    held = {} if state is None else {name: state[name] for one in kernels.carried for name in one.names}
    copied = not inplace and kernels.normalised  # the matrix and the sum of keys are parts of one tensor
    own = dict(held)
    for name, x in held.items():
        if copied or x.stride(-1) != 1 or x.data_ptr() % ALIGNMENT:
            held[name] = x.clone(memory_format=torch.contiguous_format)
    within = bool(held) and (copied or inplace)
    before = joined(program, _states_in(held, kernels)) if held else None
    with on(arguments.device, program, "recurrent"):
        result, states = launch(*given, state=before, inplace=within)
    for name, x in own.items() if inplace else ():
        if held[name] is not x:
            held[name] = x.copy_(held[name])
    found = held if within else _states_out(list(flat(states)), kernels)
    if state is None:
        position = torch.ones(arguments.sizes["batch"], dtype=torch.int64, device=arguments.device)
    else:
        position = state["position"].add_(1) if inplace else state["position"] + 1
    return Result(
        result.to(result_dtype(program.op, arguments.tensors, torch.float32)), {"position": position} | found, None
    )


def _whole(decl: ParamDecl, arguments: Arguments, merged: bool) -> Tensor:
    """A tensor as launchers take it: the whole batch, and all heads where it has neither keys nor values.

    merged: whether heads are channels, of which launchers take all of every tensor.
    """
    x = arguments.tensors[decl.name]
    if x.is_neg():
        x = x.resolve_neg()
    shape = list(x.shape)
    if "batch" in decl.dims:
        shape[decl.dims.index("batch")] = arguments.sizes["batch"]
        x = x.expand(shape) if shape != list(x.shape) else x
    if "head" in decl.dims and (merged or not {"key", "value"} & set(decl.dims)):
        head = decl.dims.index("head")
        times = arguments.sizes["head"] // shape[head]
        x = x.repeat_interleave(times, head) if times != 1 else x
    return x


def _states_in(state: Mapping[str, Tensor], kernels: Kernels) -> list[Tensor]:
    """The states of every contraction, see `_state_in`."""
    return [x for one in kernels.carried for x in _state_in(state, one)]


def _state_in(state: Mapping[str, Tensor], carried: Carried) -> list[Tensor]:
    """The state of each stream: a matrix [B, H, K, V], and from its last column the sum of keys [B, H, K].

    Where heads are the channels of one, [B, H, K] is a matrix [B, 1, K, H] in the same memory. Sums in units of an
    exponential, [B, H, 2], and its logarithm, [B, H], are the first rows of such a matrix.
    """
    (first, *_) = carried.names
    if carried.stabilised:
        rows = torch.cat((state[f"{first}.sums"], state[f"{first}.top"][..., None]), -1)
        return [functional.pad(rows, (0, STATE_ROWS - rows.shape[-1])).transpose(1, 2)[:, None]]
    found: list[Tensor] = []
    for name in carried.names:
        own = state[name]
        own = own.transpose(1, 2)[:, None] if carried.merged else own
        found += [own[..., :-1], own[..., -1]] if carried.normalised else [own]
    return found


def _states_out(tensors: list[Tensor], kernels: Kernels) -> dict[str, Tensor]:
    """The other way."""
    found: dict[str, Tensor] = {}
    left = iter(tensors)
    for one in kernels.carried:
        if one.stabilised:
            rows = next(left)[:, 0].transpose(1, 2)
            found |= {f"{one.names[0]}.sums": rows[..., :2], f"{one.names[0]}.top": rows[..., 2].detach()}
            continue
        for name in one.names:
            matrix = next(left)
            if one.normalised:
                found[name] = torch.cat((matrix, next(left)[..., None]), -1)
            else:
                found[name] = matrix[:, 0].transpose(1, 2) if one.merged else matrix
    return found


def _position(
    state: Mapping[str, Tensor] | None, sizes: Mapping[str, int], bounds: Tensor | None, device: torch.device
) -> Tensor:
    """[rows] int64: the positions seen after the call."""
    if bounds is not None:
        new = (bounds[1:] - bounds[:-1]).to(torch.int64)
    else:
        new = torch.full((sizes["batch"],), sizes["time"], dtype=torch.int64, device=device)
    return new if state is None else state["position"] + new
