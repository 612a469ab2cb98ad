"""Carries out one call of a compiled op: checks everything, chooses plans, unpacks packs, runs a backend.

`execute` is one function of tensors and constants, so that `torch.compile` can put it into a graph as one call and
trace through it, however the checks and the plans are written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from sma_compiler.backend_errors import KernelTooLarge
from sma_compiler.call_errors import NoLogSumExp, UnknownBackend, UnknownPrecision
from sma_compiler.ir.nodes import Op
from sma_compiler.runtime.args import Arguments, bind, check_pack, check_turns, check_values, self_check
from sma_compiler.runtime.cached import run_cached
from sma_compiler.runtime.kernels import Kernel
from sma_compiler.runtime.pack import Bucket, Pack, make_pack
from sma_compiler.runtime.program import Program, row_of
from sma_compiler.runtime.replay import plain
from sma_compiler.runtime.self_check import check_kernel
from sma_compiler.runtime.state import State
from sma_compiler.runtime.state_layout import (
    alike,
    all_heads,
    check_state,
    empty_state,
    fit_slots,
    in_order,
    join_rows,
    own_memory,
)
from sma_compiler.runtime.triton import Wanted, kernel_for, run_kernel, run_step
from sma_compiler.runtime.tuned import foreseen, tuned
from sma_compiler.torch_plans.run import Result, run_op

BACKENDS = ("torch", "triton")
PRECISIONS = ("ieee", "tf32")

Tensors = Mapping[str, Tensor]


class Call(NamedTuple):
    """The options of a call: see `CompiledOp.__call__`.

    step: the tensors lack their time axis. inplace: the new state has as many slots in its caches as the old one.
    """

    plan: str = "auto"
    backend: str = "auto"
    precision: str = "ieee"
    want_state: bool = False
    want_lse: bool = False
    step: bool = False
    inplace: bool = False


def execute(
    program: Program,
    call: Call,
    positional: Sequence[object],
    named: Mapping[str, object],
    states: Sequence[State],
    packs: Sequence[Tensor],
) -> tuple[Tensor | State, ...]:
    """The result of a call, then the new state where wanted, then the log-sum-exp where wanted.

    `states` and `packs` hold the initial state and `cu_seqlens` where they are given.
    """
    op = program.op
    check_options(program, call)
    arguments = bind(op, positional, named, step=call.step)
    check_turns(op, program.roles, arguments)
    check_values(op, program.roles, arguments)
    kind = arguments.device.type
    autocasting = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    arguments = autocast(program, arguments) if autocasting else arguments
    bounds = packs[0] if packs else None
    wanted = wanted_kernel(program, call, arguments, states, sequences=None if bounds is None else len(bounds) - 1)
    kernel = kernel_for(program, wanted, arguments)
    if bounds is not None:
        check_pack(op, arguments, bounds, cut_by_values=kernel is None)
    rows = arguments.sizes["batch"] if bounds is None else bounds.shape[0] - 1
    if states:
        program.check_causal("a state")
        check_state(program, arguments, rows, states[0])
    if call.want_state:
        program.check_causal("return_state")
    state = states[0] if states else None
    with torch.autocast(kind, enabled=False) if autocasting else nullcontext():
        if arguments.sizes["time"] == 0:
            found = _run_nothing(program, call, arguments, rows, state)
        elif kernel is not None:
            found = _run_kernel(program, call, wanted, kernel, arguments, state, bounds)
        else:
            by_torch = call._replace(plan=wanted.plan) if wanted.tuned and wanted.backend == "torch" else call
            found = _run_torch(program, by_torch, arguments, state, bounds)
    outputs: list[Tensor | State] = [_without_time(op, found.result) if call.step else found.result]
    if call.want_state:
        assert found.state is not None
        after = found.state if state is None else alike(program, found.state, state)
        after = fit_slots(op.label, after, state) if call.inplace and state is not None else after
        kept = state if call.inplace and state is not None else {}
        tensors = {name: x if x is kept.get(name) else own_memory(x) for name, x in after.items()}
        outputs.append(State(program.spec_hash, tensors))
    if call.want_lse:
        assert found.lse is not None
        outputs.append(found.lse)
    return tuple(outputs)


def _without_time(op: Op, result: Tensor) -> Tensor:
    """The result of a step, which a kernel for steps gives as it should be."""
    axes = op.result.axes
    return result.squeeze(axes.index("time")) if result.dim() == len(axes) else result


def check_options(program: Program, call: Call) -> None:
    """Refuse options that no call can have, or that this op cannot."""
    name = program.op.label
    program.check_plan(call.plan)
    if call.backend not in (*BACKENDS, "auto"):
        raise UnknownBackend(name, call.backend, BACKENDS)
    if call.precision not in PRECISIONS:
        raise UnknownPrecision(name, call.precision, PRECISIONS)
    if call.want_lse and program.softmaxes != 1:
        raise NoLogSumExp(name, program.softmaxes)


def autocast(program: Program, arguments: Arguments) -> Arguments:
    """The arguments as autocast wants them where it is on: queries, keys and values cast, gates as they are."""
    dtype = torch.get_autocast_dtype(arguments.device.type)
    cast = {
        name: tensor.to(dtype) if name in program.roles.cast and tensor.dtype != torch.float64 else tensor
        for name, tensor in arguments.tensors.items()
    }
    return replace(arguments, tensors=cast)


def wanted_kernel(
    program: Program, call: Call, arguments: Arguments, states: Sequence[State], *, sequences: int | None
) -> Wanted:
    """The kernel that a call would like: what was tuned, where there is a record, else what the cost model says.

    sequences: of a pack; None: it is none. Packs and calls with states are for the usual kernels, which take them all.
    A step without gradients is one launch of the recurrent plan.
    """
    leaves = [*arguments.tensors.values(), *(x for state in states if isinstance(state, State) for x in state.values())]
    training = torch.is_grad_enabled() and any(x.requires_grad for x in leaves)
    carries = bool(states) or call.want_state
    if call.plan == "auto" and not call.step and arguments.sizes["time"] and arguments.sizes["batch"]:
        pick = tuned(program, arguments, training)
        if pick is None and arguments.device.type == "cuda" and not (carries or call.want_lse or sequences is not None):
            pick = foreseen(program, arguments, training)
        if pick is not None and call.backend in ("auto", pick.backend):
            backend = "torch" if pick.backend == "torch" else call.backend
            return Wanted(pick.plan, backend, training, sequences, call.want_lse, tuned=True, states=carries)
    steps = any(plan.name == "recurrent" for plan in program.plans.legal)
    plan = "recurrent" if call.step and not training and steps else call.plan
    return Wanted(plan, call.backend, training, sequences, call.want_lse, states=carries)


def _run_kernel(
    program: Program,
    call: Call,
    wanted: Wanted,
    kernel: Kernel,
    arguments: Arguments,
    state: Tensors | None,
    bounds: Tensor | None,
) -> Result:
    """A call by its Triton kernel; by torch, where that proves too large for the GPU and nothing else was asked for."""
    if self_check():
        check_kernel(program, wanted.plan, kernel, arguments)
    try:
        if kernel.cached is not None and wanted.states:
            wants = {"want_state": call.want_state, "want_lse": call.want_lse, "inplace": call.inplace}
            return run_cached(program, wanted.plan, call.precision, kernel, arguments, state, **wants)
        if call.step and kernel.step is not None and plain(tuple(arguments.tensors.values())):
            return run_step(program, kernel, arguments, state, call.inplace)
        asked = call.want_state, call.want_lse
        return run_kernel(program, wanted.plan, call.precision, kernel, arguments, state, bounds, *asked)
    except KernelTooLarge as error:
        if (call.plan, call.backend) != ("auto", "auto"):
            raise
        program.kernels.refuse(kernel, error.reason)
        return _run_torch(program, call, arguments, state, bounds)


def _run_torch(
    program: Program, call: Call, arguments: Arguments, state: Tensors | None, bounds: Tensor | None
) -> Result:
    state = None if state is None else all_heads(program, arguments, in_order(state))
    if bounds is None:
        return _run(program, call, arguments, state)
    return _run_pack(program, call, arguments, state, make_pack(bounds, arguments.sizes["time"]))


def _run(
    program: Program, call: Call, arguments: Arguments, state: Tensors | None, lengths: Tensor | None = None
) -> Result:
    """One batch of sequences; `lengths` [B]: how many positions of each are there."""
    return run_op(
        program.op,
        program.plans,
        program.choose(call.plan, arguments.sizes, arguments.numbers, row_of(arguments.device)),
        arguments.values,
        arguments.sizes,
        compute=arguments.compute,
        lengths=lengths,
        state=state,
        want_state=call.want_state,
    )


def _run_pack(program: Program, call: Call, arguments: Arguments, state: Tensors | None, pack: Pack) -> Result:
    """A pack, one bucket of padded rows after the other."""
    found = []
    for bucket in pack.buckets:
        own = None if state is None else {name: bucket.pick(tensor) for name, tensor in state.items()}
        found.append(_run(program, call, _padded(program, arguments, bucket), own, bucket.lengths))
    time = program.op.result.axes.index("time")
    result = pack.unpad([part.result for part in found], time)
    after = join_rows([part.state or {} for part in found], pack) if call.want_state else None
    lses = [part.lse for part in found if part.lse is not None]
    return Result(result, after, pack.unpad(lses, 1) if lses else None)


def _padded(program: Program, arguments: Arguments, bucket: Bucket) -> Arguments:
    tensors = {
        decl.name: bucket.pad(arguments.tensors[decl.name], decl.dims.index("time"))
        for decl in program.op.params
        if "time" in decl.dims
    }
    rows, columns = bucket.places.shape
    return Arguments(
        {**arguments.tensors, **tensors}, arguments.numbers, {**arguments.sizes, "batch": rows, "time": columns}
    )


def _run_nothing(program: Program, call: Call, arguments: Arguments, rows: int, state: Tensors | None) -> Result:
    """A call without positions: an empty result with zero gradients, and the state as it was."""
    tensors = {
        decl.name: _one_position(arguments.tensors[decl.name], decl.dims.index("time"))
        for decl in program.op.params
        if "time" in decl.dims
    }
    one = replace(arguments, tensors={**arguments.tensors, **tensors}, sizes={**arguments.sizes, "time": 1})
    lengths = torch.zeros(arguments.sizes["batch"], dtype=torch.int64, device=arguments.device)
    with torch.no_grad():
        shaped = _run(program, call._replace(want_state=False), one, None, lengths)
    result = shaped.result.narrow(program.op.result.axes.index("time"), 0, 0)
    for tensor in arguments.tensors.values():
        if tensor.requires_grad:
            result = result + tensor.flatten()[:0].sum().to(result.dtype)
    if not call.want_state:
        after = None
    elif state is not None:
        after = {name: tensor.clone() for name, tensor in state.items()}
    else:
        after = empty_state(program, arguments.sizes, arguments.numbers, rows, arguments.compute, arguments.device)
    return Result(result, after, None if shaped.lse is None else shaped.lse.narrow(1, 0, 0))


def _one_position(x: Tensor, time: int) -> Tensor:
    shape = list(x.shape)
    shape[time] = 1
    return torch.ones(shape, dtype=x.dtype, device=x.device)
