"""sma_compiler: write a sequence mixer as a structured masked attention equation, get an op that torch can train.

    import sma_compiler as sma

    op = sma.compile("mixer.sma")            # or the text of a spec
    op = sma.library("mamba2")               # or one that ships; sma.library() lists them
    y = op(q, k, v, dt=dt, a=a, bias=bias, d=d)
    y, state = op(..., return_state=True)
    y1, state = op.step(q1, k1, v1, ..., state=state)
    print(op.facts, op.explain())

The compiler is loaded by the first use of `compile`, `library` or `CompiledOp`; errors, and what torch must know before
it loads a saved program (`State` and the operators `sma::forward` and `sma::backward`), are there at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from sma_compiler.errors import CallError, SmaError, SpecError
from sma_compiler.runtime.operators import register
from sma_compiler.runtime.state import State

if TYPE_CHECKING:
    from sma_compiler.interface import compile, library
    from sma_compiler.runtime.load import cache_dir
    from sma_compiler.runtime.op import CompiledOp

register()

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

_LOADED_BY_USE = {
    "CompiledOp": "sma_compiler.runtime.op",
    "cache_dir": "sma_compiler.runtime.load",
    "compile": "sma_compiler.interface",
    "library": "sma_compiler.interface",
}


def __getattr__(name: str) -> object:
    if name not in _LOADED_BY_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LOADED_BY_USE[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
