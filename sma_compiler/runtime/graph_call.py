"""Calls that `torch.compile` takes whole: Dynamo leaves `execute` alone, and AOTAutograd traces through it.

Dynamo would otherwise interpret the checks, the choice of plans and the evaluation of expressions, all plain Python
over constants, and could stumble over any of it. `torch._dynamo` takes a second to import, so it is asked only once
it runs: the first call that it traces registers `execute` with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sma_compiler.runtime.again import execute_again
from sma_compiler.runtime.execute import Call, execute
from sma_compiler.runtime.program import Program
from sma_compiler.runtime.state import State

_execute = execute
_registered = False


def _register() -> bool:
    """Runs while Dynamo traces, once, and leaves a constant in its graph."""
    global _execute, _registered
    if not _registered:
        from torch._dynamo import nonstrict_trace

        _execute = nonstrict_trace(execute)
        _registered = True
    return True


_register.__dict__["_dynamo_marked_constant"] = True  # as torch.compiler.assume_constant_result, which loads Dynamo


def in_graph(
    program: Program,
    call: Call,
    positional: Sequence[object],
    named: Mapping[str, object],
    states: Sequence[State],
    packs: Sequence[Tensor],
) -> tuple[Tensor | State, ...]:
    """`execute`, as one node of the graph where `torch.compile` traces the caller."""
    if torch.compiler.is_dynamo_compiling():
        _register()
        return _execute(program, call, positional, named, states, packs)
    return execute_again(program, call, positional, named, states, packs)
