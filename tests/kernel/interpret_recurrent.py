"""Runs emitted recurrent files in Triton's interpreter against the fp64 reference; prints errors as JSON.

A process of its own: the interpreter is chosen when Triton is imported.
"""

from __future__ import annotations

import json
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import torch
from kernel.interpret import Arguments, arguments, error, part
from kernel.specs import LIBRARY, SPECS, compiled
from torch import Tensor

from sma_compiler.ir.nodes import Op
from sma_compiler.reference import evaluate
from sma_compiler.target.compile import load_text

SHAPES = [
    # dtype, sizes, heads of q and k
    ("float32", {"batch": 2, "time": 23, "head": 2, "key": 20, "value": 24}, 1),
    ("float16", {"batch": 1, "time": 72, "head": 2, "key": 16, "value": 16}, 2),
    ("float32", {"batch": 1, "time": 1, "head": 1, "key": 3, "value": 5}, 1),
    ("float32", {"batch": 1, "time": 3, "head": 1, "key": 256, "value": 40}, 1),
]
MUTANTS = {
    "no decay": ("b_s * b_decay + ", "b_s + "),
    "read before it is added": ("b_y = sum_first(b_q[:, None] * b_s)", "b_y = sum_first(b_q[:, None] * b_s * b_decay)"),
    "a sequence begins too late": ("begin = tl.load(cu_ptr + i_s)", "begin = 1 + tl.load(cu_ptr + i_s)"),
    "a sequence ends too early": ("end = tl.load(cu_ptr + i_s + 1)", "end = -1 + tl.load(cu_ptr + i_s + 1)"),
    "no step": ("b_u = b_v * b_softplus", "b_u = b_v"),
    "softplus without its tail": ("tl.maximum(x, 0.0) + log1p(", "tl.maximum(x, 0.0) + 0.0 * log1p("),
}
"""Mistakes planted in the emitted text."""
PACK = (0, 0, 7, 8, 20, 20)
"""Where sequences begin, some of them empty; the last ends at the end."""


def tensors(state: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The tensors of a state."""
    return state if isinstance(state, tuple) else (state,)


def steps(module: ModuleType, op: Op, given: Arguments, inplace: bool) -> Tensor:
    """The rows that one step after another gives."""
    step = getattr(module, f"{op.name}_step")
    long = {decl.name for decl in op.params if "time" in decl.dims}
    time = next(x.shape[1] for name, x in given.items() if name in long and isinstance(x, Tensor))
    rows: list[Tensor] = []
    state: Tensor | tuple[Tensor, ...] | None = None
    for t in range(time):
        at = {name: x[:, t] if name in long and isinstance(x, Tensor) else x for name, x in given.items()}
        before = state
        y, state = step(**at, state=state, inplace=inplace and state is not None)
        if inplace and before is not None and state is not None:
            assert all(a is b for a, b in zip(tensors(before), tensors(state), strict=True))
        rows.append(y)
    return torch.stack(rows, 1)


def pack(module: ModuleType, op: Op, given: Arguments, length: int) -> float:
    """The error of a pack against its sequences alone; infinite where a state is wrong."""
    one = {name: x[:1] if isinstance(x, Tensor) and "batch" in dims(op, name) else x for name, x in given.items()}
    launch = getattr(module, op.name)
    starts = [*PACK, length]
    y, state = launch(**one, cu_seqlens=torch.tensor(starts), return_state=True)
    rows = []
    for number, (begin, end) in enumerate(pairwise(starts)):
        alone = part(op, one, begin, end)
        rows.append(evaluate(op, alone) if end > begin else y[:, begin:end].double())
        _, last = launch(**alone, return_state=True)
        for found, expected in zip(tensors(state), tensors(last), strict=True):
            if not torch.equal(found[number], expected[0]):
                return float("inf")
    return error(y, torch.cat(rows, 1))


def dims(op: Op, name: str) -> tuple[str, ...]:
    """The dimensions of a parameter."""
    return next(decl.dims for decl in op.params if decl.name == name)


def mutants() -> dict[str, float]:
    """The largest error that every planted mistake makes."""
    op, sizes = compiled("mamba2"), {"batch": 1, "time": 22, "head": 2, "key": 16, "value": 16}
    text = op.source("recurrent", sizes, "float32")
    given = arguments(op.ir, sizes, "float32", 1)
    found = {}
    for name, (old, new) in MUTANTS.items():
        assert old in text, name
        with tempfile.TemporaryDirectory() as folder:
            module = load_text(text.replace(old, new), Path(folder))
        stepped = error(steps(module, op.ir, given, inplace=True), evaluate(op.ir, given))
        found[name] = max(stepped, pack(module, op.ir, given, sizes["time"]))
    return found


def main(names: list[str]) -> None:
    """Print, for every op and shape, the errors of a call, of two joined by the state, of steps, and of a pack."""
    found = {}
    for name in names:
        op = compiled(name)
        for number, (dtype, sizes, group) in enumerate(SHAPES):
            if number == 3 and name not in ("mamba2", "mixed"):
                continue
            with tempfile.TemporaryDirectory() as folder:
                module = load_text(op.source("recurrent", sizes, dtype), Path(folder))
            launch = getattr(module, name)
            given = arguments(op.ir, sizes, dtype, group)
            expected = evaluate(op.ir, given)
            middle = sizes["time"] // 3
            halves = [part(op.ir, given, 0, middle), part(op.ir, given, middle, sizes["time"])]
            first, second = halves if op.causal else reversed(halves)
            early, state = launch(**first, return_state=True)
            late = launch(**second, initial_state=state)
            few = min(sizes["time"], 24) if op.causal else 0
            stepped = [steps(module, op.ir, part(op.ir, given, 0, few), inplace) for inplace in (False, True) if few]
            found[f"{name} {number}"] = [
                error(launch(**given), expected),
                error(torch.cat([early, late] if op.causal else [late, early], 1), expected),
                *(error(y, expected[:, :few]) for y in stepped),
                pack(module, op.ir, given, sizes["time"]) if sizes["time"] > PACK[-1] else 0.0,
            ]
    print(json.dumps(found))


if __name__ == "__main__" and sys.argv[1:] == ["mutants"]:
    print(json.dumps(mutants()))
elif __name__ == "__main__":
    main(sys.argv[1:] or [*LIBRARY, *SPECS])
