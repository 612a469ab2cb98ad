"""Runs kernels that invert chunks in Triton's interpreter against fp64; prints errors as JSON.

Log gates are mixed: weak, strong, and some that cut. Keys are those of a delta rule: of length 1, or all alike.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import torch
from kernel.inverses import SPECS, compiled, text
from torch import Tensor

from sma_compiler.ir.nodes import Op
from sma_compiler.target.compile import load_text

Arguments = dict[str, Tensor]
CASES = {
    # dtype, length, positions of a chunk, heads of k, where sequences begin
    "float32": ("float32", 21, 0, 2, ()),
    "float16": ("float16", 70, 64, 1, ()),
    "pack": ("float16", 45, 32, 2, (0, 1, 1, 10)),
}
NARROW = "narrow"
"""The pack, by the kernel that products in bf16 have, in fp16."""
MUTANTS = {
    "no products": ("float16", "below += tl.dot(last, below, input_precision=rounding)", "below += 0.0"),
    "wrong half": ("float16", "tl.dot(below, first,", "tl.dot(below, last,"),
    "own position": ("float32", "o_c[:, None] > o_c[None, :]", "o_c[:, None] >= o_c[None, :]"),
    "not solved": ("float32", "b_inverse = inverse_of_chunk(b_scores, DOT, PRECISION, True)", "b_inverse = -b_scores"),
}
"""For each a case, a text of the file of `gated` and what takes its place."""


def arguments(op: Op, dtype: str, length: int, group: int, alike: bool) -> Arguments:
    """Random arguments. alike: all keys are the same, and nothing decays: what cancels most."""
    torch.manual_seed(0)
    found: Arguments = {}
    shape = {"batch": 1, "time": length, "head": 2, "key": 16, "value": 16}
    for decl in op.params:
        sizes = [group if axis == "head" and decl.name in "kv" else shape[axis] for axis in decl.dims]
        value = torch.randn(sizes)
        if decl.name in "ka":
            value = torch.nn.functional.normalize(value, dim=-1)
            value = value[:, :1].expand(sizes) if alike else value
        elif decl.name == "beta":
            value = torch.full(sizes, 1.9) if alike else 2 * torch.rand(sizes)
        elif decl.name == "gamma":
            value = 0.9 + 0.1 * torch.rand(sizes)
        elif decl.name == "g":
            value = 0.0 * value if alike else -0.3 * torch.rand(sizes)
            for position, gate in ((5, -math.inf), (20, -30.0), (64, -math.inf)):
                value[:, position : position + 1] = value[:, position : position + 1] if alike else gate
        found[decl.name] = value.to(getattr(torch, dtype)) if decl.name in "kva" else value
    return found


def expected(name: str, given: Arguments, starts: tuple[int, ...], chunk: int) -> Tensor:
    """N [B, H, T, C] in fp64."""
    wide = {key: x.double() for key, x in given.items()}
    keys = wide["k"].expand(-1, -1, 2, -1)
    rows = wide.get("a", keys)
    length = keys.shape[1]
    g = wide.get("g", torch.zeros(1, length, 2, dtype=torch.float64))
    row, column = wide.get("beta", torch.ones(1, length, 2)), torch.ones(1, length, 2, dtype=torch.float64)
    open_end = name in ("open_ends", "per_key_open")
    if name == "open_ends":
        rows = rows / (rows.square().sum(-1, keepdim=True) + 1e-6).sqrt()
        row, column = -wide["c"], wide["c"].sigmoid()
    if name == "per_key_open":
        row = -row
    if name == "static":
        g = wide["gamma"].log().expand(1, length, 2)
    found = torch.zeros(1, 2, length, chunk, dtype=torch.float64)
    for begin, end in pairwise((*starts, length) if starts else (0, length)):
        for first in range(begin, end, chunk):
            last = min(first + chunk, end)
            for head in range(2):
                matrix = torch.zeros(last - first, last - first, dtype=torch.float64)
                for i in range(first, last):
                    for j in range(first, i):
                        path = g[0, j + 1 : i if open_end else i + 1, head].sum(0).exp()
                        pair = (rows[0, i, head] * keys[0, j, head] * path).sum()
                        matrix[i - first, j - first] = row[0, i, head] * pair * column[0, j, head]
                own = torch.eye(last - first, dtype=torch.float64)
                found[0, head, first:last, : last - first] = torch.linalg.inv(own + matrix) - own
    return found


def error(name: str, case: str, folder: Path, mutant: tuple[str, str] = ("", ""), *, alike: bool = False) -> float:
    """The largest error of an entry, over the largest entry."""
    dtype, length, chunk, group, starts = CASES["pack" if case == NARROW else case]
    op = compiled(name)
    made = text(op, dtype, chunk=chunk)
    if case == NARROW:
        made = made.replace("tl.bfloat16", "tl.float16")
    assert mutant[0] in made, (name, mutant)
    launch = getattr(load_text(made.replace(*mutant), folder), name)
    given = arguments(op.ir, dtype, length, group, alike)
    pack = {"cu_seqlens": torch.tensor((*starts, length))} if starts else {}
    found = launch(**given, **pack).double()
    right = expected(name, given, starts, chunk or 16)
    return float((found - right).abs().max() / right.abs().max()) if bool(found.isfinite().all()) else math.inf


def main(names: list[str]) -> None:
    """Print the error of every spec and case, and those of the mutants."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            channels = name.startswith("per_key")
            for case in CASES if not channels else ("float32", "pack"):
                found[f"{name} {case}"] = error(name, case, Path(folder))
            if name in ("delta", "per_key"):
                case = NARROW if channels else "float16"
                found[f"{name} {case} alike"] = error(name, case, Path(folder), alike=True)
        for mutant, (case, *texts) in MUTANTS.items():
            found[mutant] = error("gated", case, Path(folder), (texts[0], texts[1]))
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:] or [*SPECS])
