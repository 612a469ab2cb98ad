"""sma_compiler: write a sequence mixer as a structured masked attention equation, get an op that torch can train.

import sma_compiler as sma

op = sma.compile("mixer.sma")            # or the text of a spec
op = sma.library("mamba2")               # or one that ships; sma.library() lists them
y = op(q, k, v, dt=dt, a=a, bias=bias, d=d)
y, state = op(..., return_state=True)
y1, state = op.step(q1, k1, v1, ..., state=state)
print(op.facts, op.explain())
"""

from __future__ import annotations

from sma_compiler.errors import CallError, SmaError, SpecError
from sma_compiler.interface import cache_dir, compile, library
from sma_compiler.runtime.op import CompiledOp
from sma_compiler.runtime.state import State

__version__ = "0.1.0"

__all__ = [
    "CallError",
    "CompiledOp",
    "SmaError",
    "SpecError",
    "State",
    "cache_dir",
    "compile",
    "library",
]
