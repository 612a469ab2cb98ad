"""Runs packs of sequences in Triton's interpreter, against each sequence alone; prints errors as JSON.

The forward pass against the fp64 reference, final states and gradients against those of every sequence.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import torch
from kernel.interpret import Arguments, arguments, error, part
from kernel.specs import compiled
from torch import Tensor

from sma_compiler.ir.nodes import Op
from sma_compiler.reference import evaluate
from sma_compiler.target.compile import load_text

SIZES = {"batch": 1, "time": 190, "head": 2, "key": 20, "value": 24}
SHORT = {**SIZES, "time": 22}
STARTS = (0, 0, 17, 17, 21, 22, 170, 190, 190)
FEW = (0, 0, 7, 8, 20, 20, 22)
"""Where sequences begin, some of them empty, and the end."""
CASES = {
    "mamba2": ("chunked", "split", "recurrent"),
    "two_streams": ("chunked", "recurrent"),
    "linear_attention_normalized": ("chunked", "split", "recurrent"),
    "retention": ("chunked",),
}


def poisoned(empty: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.empty whose memory holds NaN where it can."""

    def made(*shape: object, **options: object) -> Tensor:
        found = empty(*shape, **options)
        return found.fill_(math.nan) if found.is_floating_point() else found

    return made


def parts_of(state: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The tensors of a state."""
    return state if isinstance(state, tuple) else (state,)


def forward(module: ModuleType, op: Op, given: Arguments, starts: tuple[int, ...]) -> float:
    """The largest error of the result, and of states against those of the sequences alone."""
    launch = getattr(module, op.name)
    for dtype in (torch.int32, torch.int64):
        y, states = launch(**given, cu_seqlens=torch.tensor(starts, dtype=dtype), return_state=True)
    rows, errors = [], []
    for number, (begin, end) in enumerate(pairwise(starts)):
        alone = part(op, given, begin, end)
        rows.append(evaluate(op, alone) if end > begin else y[:, begin:end].double())
        _, last = launch(**alone, return_state=True)
        for found, expected in zip(parts_of(states), parts_of(last), strict=True):
            errors.append(error(found[number], expected[0].double()))
    return max(error(y, torch.cat(rows, 1)), *errors)


def backward(module: ModuleType, op: Op, given: Arguments, starts: tuple[int, ...]) -> float:
    """The largest error of a gradient against those of the sequences alone, initial states and final ones included."""
    launch = getattr(module, f"{op.name}_backward")
    tensors = [decl for decl in op.params if not decl.number]
    dy = torch.randn(1, starts[-1], SIZES["head"], SIZES["value"]).to(given["v"].dtype)
    _, like = getattr(module, op.name)(**given, cu_seqlens=torch.tensor(starts), return_state=True)
    initial, dstate = (tuple(torch.randn_like(x) for x in parts_of(like)) for _ in range(2))

    def call(dy: Tensor, given: Arguments, rows: slice, **options: Tensor) -> tuple[Tensor, ...]:
        states = (tuple(x[rows] for x in state) for state in (initial, dstate))
        before, after = (state if len(state) > 1 else state[0] for state in states)
        *found, last = launch(dy, **given, initial_state=before, dstate=after, **options)
        return *found, *parts_of(last)

    packed = call(dy, given, slice(None), cu_seqlens=torch.tensor(starts))
    expected: list[list[Tensor]] = [[] for _ in packed]
    for number, (begin, end) in enumerate(pairwise(starts)):
        alone = call(dy[:, begin:end], part(op, given, begin, end), slice(number, number + 1))
        for held, x in zip(expected, alone, strict=True):
            held.append(x)
    errors = []
    for n, (found, held) in enumerate(zip(packed, expected, strict=True)):
        if n >= len(tensors):
            whole = torch.cat(held)
        elif "time" in tensors[n].dims:
            whole = torch.cat(held, 1)
        else:
            whole = torch.stack(held).sum(0)
        errors.append(error(found, whole.double()))
    return max(errors)


def main(cases: dict[str, tuple[str, ...]]) -> None:
    """Print the errors of every op and plan."""
    torch.empty = poisoned(torch.empty)
    found = {}
    for name, plans in cases.items():
        op = compiled(name)
        for plan in plans:
            sizes, starts = (SHORT, FEW) if plan == "recurrent" else (SIZES, STARTS)
            chosen = {**sizes, "time": 65536 if plan == "split" else sizes["time"]}
            with tempfile.TemporaryDirectory() as folder:
                text = op.source("recurrent" if plan == "recurrent" else "chunked", chosen, "float32")
                module = load_text(text, Path(folder))
            given = arguments(op.ir, sizes, "float32", SIZES["head"])
            if isinstance(given.get("g"), Tensor):
                given["g"] = given["g"].clamp(min=-20.0)
            found[f"{name} {plan}"] = [
                forward(module, op.ir, given, starts),
                backward(module, op.ir, given, starts),
            ]
    print(json.dumps(found))


if __name__ == "__main__":
    main({name: plans for name, plans in CASES.items() if name in (sys.argv[1:] or CASES)})
