"""Whole calls of an op that were made before with tensors of the same form, without gradients: see `replay`.

Only calls on a GPU that a kernel makes are replayed; `execute` makes every other call, and the first two of each form.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import Parameter

from sma_compiler.runtime.args import self_check
from sma_compiler.runtime.execute import Call, execute
from sma_compiler.runtime.program import Program
from sma_compiler.runtime.replay import form, plain
from sma_compiler.runtime.state import State

DEVICES = frozenset({"cuda"})
"""Where calls are replayed: elsewhere, values of arguments are checked in every call."""

Outputs = tuple[Tensor | State, ...]


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
    training = torch.is_grad_enabled()
    for x in (*positional, *named.values(), *own, *packs):
        kind = type(x)
        if kind is Tensor or kind is Parameter:
            tensor = cast(Tensor, x)
            if (training and tensor.requires_grad) or tensor.layout is not torch.strided:
                return run()
            inputs.append(tensor)
            parts.append(form(tensor))
        elif kind is int or kind is float:
            parts.append((kind, x))
        else:
            return run()
    if not inputs or inputs[0].device.type not in DEVICES:
        return run()
    device = inputs[0].device.type
    casting = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
    held = None if state is None else (state.spec_hash, *state)
    key = call, len(positional), tuple(named), held, len(packs), casting, tuple(parts)
    found: Outputs = program.replays.call(key, inputs, run)
    return found
