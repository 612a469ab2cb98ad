"""Whole calls of an op that were made before with tensors of the same form: see `replay` and `direct`.

Only calls on a GPU that a kernel makes are replayed; `execute` makes every other call, and the first of each form.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from sma_compiler.runtime.args import bind, self_check
from sma_compiler.runtime.direct import Direct
from sma_compiler.runtime.execute import Call, autocast, execute, wanted_kernel
from sma_compiler.runtime.program import Outputs, Program
from sma_compiler.runtime.replay import TAPES, alike, form, plain
from sma_compiler.runtime.state import State
from sma_compiler.runtime.triton import kernel_for, make_job, whole
from sma_compiler.torch_plans.run import result_dtype


def replayable(x: Tensor) -> bool:
    """Whether a call on the device of a tensor is replayed: on the CPU, every call looks at values."""
    return x.is_cuda


def execute_again(
    program: Program,
    call: Call,
    positional: Sequence[object],
    named: Mapping[str, object],
    states: Sequence[State],
    packs: Sequence[Tensor],
) -> Outputs:
    """What `execute` gives."""

    def run() -> Outputs:
        return execute(program, call, positional, named, states, packs)

    if not plain(()) or self_check():
        return run()
    state = states[0] if states else None
    own = state.values() if type(state) is State else states
    inputs: list[Tensor] = []
    parts: list[Hashable] = []
    enabled = torch.is_grad_enabled()
    training = False
    for x in (*positional, *named.values(), *own, *packs):
        kind = type(x)
        if isinstance(x, Tensor):
            if (kind is not Tensor and kind is not Parameter) or x.layout is not torch.strided:
                return run()
            training = training or (enabled and x.requires_grad)
            inputs.append(x)
            parts.append(form(x))
        elif kind is int or kind is float:
            parts.append((kind, x))
        else:
            return run()
    if not inputs or not replayable(inputs[0]):
        return run()
    device = inputs[0].device.type
    casting = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
    held = None if state is None else (state.spec_hash, *state)
    key = call, len(positional), tuple(named), held, len(packs), casting, tuple(parts)
    if not training:
        return program.replays.call(key, inputs, run)
    if held or packs or call.want_state or call.want_lse or call.step:
        return run()
    known = key, alike(inputs)
    direct = program.direct.get(known)
    if direct is not None:
        return (direct(inputs),)
    outputs = run()
    if known not in program.direct:
        if len(program.direct) >= TAPES:
            program.direct.clear()
        program.direct[known] = _direct(program, call, positional, named, inputs, casting=bool(casting))
    return outputs


def _direct(
    program: Program,
    call: Call,
    positional: Sequence[object],
    named: Mapping[str, object],
    inputs: Sequence[Tensor],
    *,
    casting: bool,
) -> Direct | None:
    """What makes such a call again; None: its arguments are not what a kernel takes."""
    arguments = bind(program.op, positional, named)
    arguments = autocast(program, arguments) if casting else arguments
    wanted = wanted_kernel(program, call, arguments, (), sequences=None)
    kernel = kernel_for(program, wanted, arguments)
    if kernel is None or arguments.sizes["time"] == 0:
        return None
    params = whole(program, arguments)
    places = {id(x): at for at, x in enumerate(inputs)}
    if (
        any(id(x) not in places for x in params)
        or result_dtype(program.op, arguments.tensors, torch.float32) != params[0].dtype
    ):
        return None
    job = make_job(program, wanted.plan, call.precision, kernel, arguments, keep=True)
    return Direct(job, kernel, [places[id(x)] for x in params])
