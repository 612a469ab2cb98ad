"""Runs emitted files in Triton's interpreter against the fp64 reference; prints errors as JSON. A process of its own:
the interpreter is chosen when Triton is imported."""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path

import torch
from kernel.specs import LIBRARY, SPECS, compiled
from torch import Tensor

from sma_compiler.ir.nodes import Op
from sma_compiler.reference import evaluate
from sma_compiler.target.compile import load_text

Arguments = dict[str, Tensor | float]

SHAPES = [
    # dtype, sizes, heads of q and k, the length that chooses the configuration
    ("float32", {"batch": 1, "time": 77, "head": 2, "key": 20, "value": 24}, 1, 77),
    ("float32", {"batch": 1, "time": 130, "head": 1, "key": 16, "value": 16}, 1, 65536),
    ("float16", {"batch": 2, "time": 128, "head": 2, "key": 16, "value": 16}, 2, 128),
    ("float32", {"batch": 1, "time": 1, "head": 1, "key": 3, "value": 5}, 1, 1),
]


SPLIT = ("retention", "simple_gla", "linear_attention_normalized", "two_streams", "anticausal")
"""The ops whose sequences are cut into parts here: the parts do not depend on the rest of an op."""


def arguments(op: Op, sizes: dict[str, int], dtype: str, group: int) -> Arguments:
    """Random arguments; gates are log gates from 0 to -0.5, some of them -1e3 and -inf."""
    torch.manual_seed(0)
    found: Arguments = {}
    for decl in op.params:
        if decl.number:
            found[decl.name] = 0.7
            continue
        shape = [group if axis == "head" and decl.name in "qk" else sizes[axis] for axis in decl.dims]
        value = torch.randn(shape)
        if decl.name in ("g", "h", "a"):
            value = -0.5 * torch.rand(shape)
        elif decl.name in ("gamma", "s"):
            value = 0.5 + 0.4 * torch.rand(shape)
        elif decl.name in "qkv":
            value = value.to(getattr(torch, dtype))
        found[decl.name] = value
        if decl.name == "g" and sizes["time"] > 70:
            for position, gate in ((20, -math.inf), (41, -1e3), (65, -math.inf)):
                value[:, position] = gate
    return found


def error(y: Tensor, expected: Tensor) -> float:
    """Relative error in the mean square, of 0 the absolute one; infinite where y is not finite."""
    if not bool(y.isfinite().all()):
        return math.inf
    return float((y.double() - expected).norm() / (expected.norm() or 1.0))


def part(op: Op, given: Arguments, start: int, stop: int) -> Arguments:
    """The arguments of some positions."""
    long = {decl.name for decl in op.params if "time" in decl.dims}
    return {name: x[:, start:stop] if name in long and isinstance(x, Tensor) else x for name, x in given.items()}


def main(names: list[str]) -> None:
    """Print, for every op and shape, the error of a whole call and that of two calls joined by the state."""
    found = {}
    for name in names:
        op = compiled(name)
        for number, (dtype, sizes, group, length) in enumerate(SHAPES):
            if number == 1 and name not in SPLIT:
                continue
            with tempfile.TemporaryDirectory() as folder:
                text = op.source("chunked", {**sizes, "time": length}, dtype)
                launch = getattr(load_text(text, Path(folder)), name)
            given = arguments(op.ir, sizes, dtype, group)
            expected = evaluate(op.ir, given)
            middle = sizes["time"] // 3
            halves = [part(op.ir, given, 0, middle), part(op.ir, given, middle, sizes["time"])]
            if name.startswith("anticausal"):
                halves.reverse()
            first, state = launch(**halves[0], return_state=True)
            both = [first, launch(**halves[1], initial_state=state)]
            if name.startswith("anticausal"):
                both.reverse()
            found[f"{name} {number}"] = [
                error(launch(**given), expected),
                error(torch.cat(both, 1), expected),
            ]
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:] or [*LIBRARY, *SPECS])
