"""Runs files of ops of several contractions in Triton's interpreter against fp64; prints errors as JSON.

Most are run whole, as a pack, and as two calls of which the second has the state of the first, and hands back its
cotangent. Gates are mixed: some from 0 to -0.5, some -30, some -inf. Mutants are files with one text changed.
"""

from __future__ import annotations

import json
import math
import sys
from itertools import pairwise
from types import ModuleType

import torch
from kernel import interpret_backward
from kernel.interpret import Arguments, error, part
from kernel.interpret_backward import combined, gradients, joined, module, reference
from torch import Tensor

from sma_compiler.interface import compile, library
from sma_compiler.ir.nodes import Op
from sma_compiler.reference import evaluate
from sma_compiler.runtime.op import CompiledOp

SIZES = {"batch": 1, "time": 21, "head": 2, "key": 6, "value": 5}
CHANNELS = ("kda", "rwkv7")
"""Ops whose gates differ by channel: slow to interpret, and so run whole and with one head alone."""
CUT = (0, 1, 1, 18, 21)
"""Where the sequences of a pack begin."""
SOLVE = """
op solve_alone(k, v, g: [time, head], beta: [time, head]):
    return solve(strict * decay(g), beta * k, k, v)
"""
RUNS = (
    ("solve_alone", "float32"),
    ("delta_net", "float32"),
    ("delta_net", "float16"),
    ("gated_delta_net", "float32"),
    ("kda", "float32"),
    ("rwkv7", "float32"),
)
MUTANTS = {
    "a part alone": ("delta_net", "sum_of(dk_attend0, dk_solve0, dtype=k.dtype)", "dk_attend0"),
    "no adjoint": ("delta_net", "b_n = tl.trans(", "b_n = 0.0 * tl.trans("),
    "no inverse": ("delta_net", "inverse_of_chunk(b_scores", "inverse_of_chunk(0.0 * b_scores"),
}
"""For each the op, a text of its file and what takes its place."""


def sizes_of(op: Op) -> dict[str, int]:
    return {**SIZES, "head": 1} if op.name in CHANNELS else SIZES


def arguments(op: Op, dtype: str) -> Arguments:
    """Random arguments: keys of length 1, one head of queries and keys for two of values where nothing else is said."""
    torch.manual_seed(0)
    found: Arguments = {}
    for decl in op.params:
        shape = [sizes_of(op)[axis] for axis in decl.dims]
        if decl.name in "qk":
            shape[decl.dims.index("head")] = 1
        value = torch.randn(shape)
        if decl.name in ("k", "a", "b"):
            value = torch.nn.functional.normalize(value, dim=-1)
        elif decl.name == "beta":
            value = 2 * torch.rand(shape)
        elif decl.name in ("g", "w"):
            value = -0.5 * torch.rand(shape)
            value[:, 3::5], value[:, 7], value[:, 19] = -1e-6, -30.0, -math.inf
        found[decl.name] = value.to(getattr(torch, dtype)) if decl.name in "qkv" else value
    return found


def run(op: CompiledOp, made: ModuleType, dtype: str) -> dict[str, float]:
    """The errors of the result and of all gradients."""
    given = arguments(op.ir, dtype)
    launch = getattr(made, op.name)
    dy = torch.randn([sizes_of(op.ir)[axis] for axis in op.ir.result.axes], dtype=getattr(torch, dtype))
    exact = evaluate(op.ir, {key: x.double() if isinstance(x, Tensor) else x for key, x in given.items()})
    wanted = {"y": exact, **reference(op.ir, given, dy)}

    def errors(found: dict[str, Tensor], wanted: dict[str, Tensor], kind: str) -> dict[str, float]:
        return {f"{key}{kind}": error(found[key], want) for key, want in wanted.items()}

    found = errors({"y": launch(**given), **gradients(op.ir, made, given, dy)}, wanted, "")
    if op.name in CHANNELS or dtype == "float16":
        return found
    first, state = launch(**part(op.ir, given, 0, 7), return_state=True)
    second = launch(**part(op.ir, given, 7, 21), initial_state=state)
    halves = {"y": torch.cat((first, second), 1), **joined(op.ir, made, given, dy)}
    found |= errors(halves, wanted, " joined")
    spans = [(begin, end) for begin, end in pairwise(CUT) if begin < end]
    pack = {"cu_seqlens": torch.tensor(CUT, dtype=torch.int32)}
    alone = [gradients(op.ir, made, part(op.ir, given, *span), dy[:, slice(*span)]) for span in spans]
    sequences = {"y": torch.cat([launch(**part(op.ir, given, *span)) for span in spans], 1)}
    sequences |= combined(op.ir, alone)
    packed = {"y": launch(**given, **pack), **gradients(op.ir, made, given, dy, **pack)}
    return found | errors(packed, sequences, " packed")


def main(names: list[str]) -> None:
    """Print the errors of every run and of every mutant."""
    found: dict[str, dict[str, float]] = {}
    interpret_backward.SIZES.update(SIZES)
    for name, dtype in RUNS:
        if name in names:
            op = compile(SOLVE) if name == "solve_alone" else library(name)
            found[f"{name} {dtype}"] = run(op, module(op, dtype), dtype)
    for mutant, (name, old, new) in MUTANTS.items():
        if mutant in names:
            op = library(name)
            found[mutant] = run(op, module(op, "float32", old, new), "float32")
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:] or [*(name for name, _ in RUNS), *MUTANTS])
