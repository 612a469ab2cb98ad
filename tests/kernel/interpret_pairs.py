"""Runs quadratic files in Triton's interpreter against the fp64 reference; prints errors as JSON. A process of its own:
the interpreter is chosen when Triton is imported."""

from __future__ import annotations

import json
import math
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import torch
from kernel.pair_specs import LIBRARY, PAIR_SPECS, compiled
from torch import Tensor

from sma_compiler.ir.nodes import Kind, Op
from sma_compiler.kernel import config
from sma_compiler.oracle.values import named
from sma_compiler.reference import evaluate
from sma_compiler.runtime.op import CompiledOp
from sma_compiler.target.compile import load_text

Arguments = dict[str, Tensor | float]
TABLES = {"lag": 40, "level": 6}
"""Entries that masks look up: fewer than the longest sequence needs."""
SHAPES = {
    "odd": ("float32", {"batch": 1, "time": 75, "head": 2, "key": 20, "value": 24}, 1),
    "even": ("float16", {"batch": 1, "time": 80, "head": 1, "key": 16, "value": 16}, 1),
    "one": ("float32", {"batch": 1, "time": 1, "head": 1, "key": 3, "value": 5}, 1),
    "large": ("float16", {"batch": 1, "time": 80, "head": 1, "key": 16, "value": 16}, 1),
    "fading": ("float16", {"batch": 1, "time": 150, "head": 2, "key": 16, "value": 16}, 1),
}
"""dtype, sizes, and how many heads q, k and v have."""
HALF = (
    *LIBRARY[::2],
    "alibi",
    "document",
    "forgetting",
    "bias",
    "squared_relu",
    "relative",
    "strided",
    "both_levels",
    "fading_window",
)
"""The ops that are run in fp16 as well."""
ONCE = ("attention", "forgetting", "squared_relu")
"""The ops that are run at a single position."""
SHARP = ("attention", "forgetting")
"""The ops that are run with scores of some hundreds, so that one position outweighs all others of most rows."""
FADING = ("forgetting", "fading_window")
"""The ops that are run with gates so small that tiles are skipped."""
PACKED = ("prefix_in_document", "relative", "log_linear")
"""The ops that are run as a pack, with other strides, and for one gradient at a time."""
STARTS = (0, 1, 1, 20, 75)
"""Where the sequences of a pack begin, and its end."""
MUTANTS = {
    "flipped mask": ("attention", "t_n[None, :] < hi_m[:, None]", "t_n[None, :] >= hi_m[:, None]"),
    "late mask": ("sliding_window", "t_n[None, :] >= lo_m[:, None]", "t_n[None, :] > lo_m[:, None]"),
    "fewer tiles": ("attention", "tl.range(far, stop,", "tl.range(far, stop - 1,"),
    "no decay": ("forgetting", "b_row_m[:, None] - b_row_n[None, :]", "b_row_n[None, :] * 0.0"),
    "no totals": ("simple_gla", "tl.sum(before, 0) + inner", "inner"),
    "no shrinking": ("attention", "b_norm * b_shrink", "b_norm"),
    "no delta": ("attention", "b_dp - -b_delta[:, None]", "b_dp"),
    "no start": ("alibi", "tl.trans(b_dy), spread(b_delta, BN), ", "tl.trans(b_dy), "),
    "no scale": ("attention", "b_dq = b_dq * factor", "b_dq = b_dq"),
    "open path": ("forgetting", "early_dgate, True, False)", "early_dgate, False, False)"),
    "one head": ("alibi", "i_g * HEADS + i_r", "i_g * HEADS"),
    "late cuts": ("simple_gla", "== n_clear, b_row_n", ">= -99, b_row_n"),
    "own cuts": ("simple_gla", "== n_clear, b_row_m", ">= 0, b_row_m"),
    "other levels": ("log_linear", "tl.maximum(power - 126, 0)", "tl.maximum(power - 127, 0)"),
    "one level": ("log_linear", "tl.where(b_level == level, b_x, 0.0)", "b_x"),
    "fewer taps": ("relative", "range(tl.maximum(i_t - i_l - 1, 0)", "range(tl.maximum(i_t - i_l, 0)"),
    "no floor": ("strided", "q - 1, q", "q, q"),
    "no slope": ("alibi", "* b_apart", "* 0.0 * b_apart"),
    "no rows' exponents": ("forgetting", " + b_row_m_2.to(tl.float64)", ""),
    "cut rows": ("bias", 'tl.where(m_clear, b_inside + gap_2, -float("inf"))', "b_inside + gap_2"),
    "cuts inside": ("bias", "clear = cut == tl.load(", "clear = cut < 99 + tl.load("),
    "no gap": ("bias", "tl.load(p_low_col + at) - low_row_0", "row_0 - tl.load(p_col + at)"),
    "skipped rows": ("forgetting", "other=0.0) < least", "other=0.0) < 0.01 * least"),
    "skipped columns": ("forgetting", "- last_row < least", "- last_row < 0.01 * least"),
    "nothing lost": ("attention", "b_exact = b_delta - b_first", "b_exact = b_delta"),
}
"""For each the op, a text of its file and what takes its place."""
LARGE = ("nothing lost",)
"""Those of scores of some hundreds."""
SKIPPED = ("skipped rows", "skipped columns")
"""Those of gates so small that tiles are skipped."""
NARROW = ("no start", "no rows' exponents", "cut rows", "cuts inside", "no gap")
"""Those of fp16 files."""
RESULT = ("batch", "time", "head", "value")
TILE = 16


def arguments(op: Op, sizes: dict[str, int], dtype: str, group: int, shape: str = "") -> Arguments:
    """Random arguments; gates are log gates from 0 to -0.5, some of them -1e3 and -inf; ids make runs."""
    large = shape == "large"
    torch.manual_seed(0)
    found: Arguments = {}
    for decl in op.params:
        if decl.number:
            found[decl.name] = 21
            continue
        shape = [group if axis == "head" and decl.name in "qkv" else {**sizes, **TABLES}[axis] for axis in decl.dims]
        value = torch.randn(shape)
        if decl.kind is Kind.INT:
            value = (torch.arange(shape[1]).expand(shape) * 5 // 97) % 3
        elif decl.kind is Kind.BOOL:
            value = value > -0.5
        elif decl.name in ("g", "h", "a"):
            value = -0.5 * torch.rand(shape)
        elif decl.name in ("gamma", "s", "slope"):
            value = 0.5 + 0.4 * torch.rand(shape)
        elif decl.name == "f" and shape == "fading":
            value = value - 7
        elif decl.name in "qkv":
            value = (value * 28 if large and decl.name != "v" else value).to(getattr(torch, dtype))
        found[decl.name] = value
        if decl.name == "g" and sizes["time"] > 70:
            for position, gate in ((20, -math.inf), (41, -1e3), (65, -math.inf)):
                value[:, position] = gate
    return found


def module(op: CompiledOp, dtype: str, old: str = "", new: str = "") -> ModuleType:
    """An op's file with tiles of 32 by 16, so that short sequences have several; `old` replaced by `new`."""
    small = config.PairConfig(rows=2 * TILE, columns=TILE, warps=4, stages=1, chunk=TILE, held=True)
    config.pairs = lambda *_, **__: small
    turned = config.PairConfig(rows=TILE, columns=2 * TILE, warps=4, stages=1, chunk=TILE)
    square = config.PairConfig(rows=TILE, columns=TILE, warps=4, stages=1, chunk=TILE)
    config.pairs_backward = lambda *_, **__: {"again": small, "dq": small, "dkv": turned, "lags": square}
    text = op.source("quadratic", {}, dtype)
    assert old in text, old
    with tempfile.TemporaryDirectory() as folder:
        return load_text(text.replace(old, new) if old else text, Path(folder))


def error(found: Tensor, expected: Tensor, least: float = 0.3) -> float:
    """Relative error in the mean square, of what is less than `least` as of that; infinite where it is not finite."""
    if not bool(found.isfinite().all()):
        return math.inf
    return float((found.double() - expected).norm() / max(float(expected.norm()), least * expected.numel() ** 0.5))


def run(op: CompiledOp, made: ModuleType, shape: str) -> dict[str, float]:
    """The errors of the result and of every gradient."""
    dtype, sizes, group = SHAPES[shape]
    given = arguments(op.ir, sizes, dtype, group, shape)
    wide: Arguments = {}
    leaves: dict[str, Tensor] = {}
    for name, x in given.items():
        real = isinstance(x, Tensor) and x.is_floating_point()
        wide[name] = x.double().requires_grad_() if isinstance(x, Tensor) and real else x
        if real:
            leaves[name] = wide[name]
    expected = named(evaluate(op.ir, wide), op.ir.result.axes).aligned(RESULT)
    found = {"y": error(getattr(made, op.name)(**given), expected.detach())}
    dy = torch.randn(expected.shape, dtype=getattr(torch, dtype))
    wanted = torch.autograd.grad(
        expected, list(leaves.values()), dy.double(), allow_unused=True, materialize_grads=True
    )
    launched = getattr(made, f"{op.name}_backward")(dy, **given)
    names = [decl.name for decl in op.ir.params if not decl.number]
    grads = dict(zip(names, launched, strict=True))
    least = 0.0 if shape == "large" else 0.3
    return found | {name: error(grads[name], want, least) for name, want in zip(leaves, wanted, strict=True)}


def part(op: Op, given: Arguments, start: int, stop: int) -> Arguments:
    """The arguments of some positions."""
    long = {decl.name for decl in op.params if "time" in decl.dims}
    return {name: x[:, start:stop] if name in long and isinstance(x, Tensor) else x for name, x in given.items()}


def packed(op: CompiledOp, made: ModuleType, shape: str = "odd") -> dict[str, float]:
    """How far a pack is from its sequences alone, other strides from these, one gradient from all of them."""
    dtype, sizes, group = SHAPES[shape]
    given = arguments(op.ir, sizes, dtype, group, shape)
    launch, backward = getattr(made, op.name), getattr(made, f"{op.name}_backward")
    begun = [*STARTS[:-1], sizes["time"]]
    starts = torch.tensor(begun, dtype=torch.int32)
    spans = [span for span in pairwise(begun) if span[0] < span[1]]
    alone = torch.cat([launch(**part(op.ir, given, *span)) for span in spans], 1)
    dy = torch.randn(alone.shape).to(alone.dtype)
    found = {"y packed": error(launch(**given, cu_seqlens=starts), alone.double())}
    whole = backward(dy, **given, cu_seqlens=starts)
    pieces = [backward(dy[:, a:b], **part(op.ir, given, a, b)) for a, b in spans]
    tensors = [decl for decl in op.ir.params if not decl.number]
    for number, decl in enumerate(tensors):
        if decl.kind is Kind.REAL:
            parts = [piece[number] for piece in pieces]
            joined = torch.cat(parts, 1) if "time" in decl.dims else torch.stack(parts).sum(0)
            found[f"{decl.name} packed"] = error(whole[number], joined.double())
    strided = {name: spread(x) if isinstance(x, Tensor) else x for name, x in given.items()}
    plain, other = backward(dy, **given), backward(spread(dy), **strided)
    for number, decl in enumerate(tensors):
        if decl.kind is Kind.REAL:
            found[f"{decl.name} strided"] = error(other[number], plain[number].double())
            one = backward(dy, **given, needs=tuple(other is decl for other in tensors))
            assert [x is None for x in one] == [other is not decl for other in tensors]
            found[f"{decl.name} alone"] = error(one[number], plain[number].double())
    return found


def spread(x: Tensor) -> Tensor:
    """The same tensor with a stride of 2 along every dimension, and NaN or -1 between."""
    wide = torch.full([2 * n for n in x.shape], math.nan if x.is_floating_point() else -1, dtype=x.dtype)
    held = wide[tuple(slice(None, None, 2) for _ in x.shape)]
    held.copy_(x)
    return held


def main(names: list[str]) -> None:
    """Print the errors of every op and shape, of packs, and of mutants."""
    found: dict[str, dict[str, float]] = {}
    for name in names:
        if name in MUTANTS:
            mutated, old, new = MUTANTS[name]
            op = compiled(mutated)
            shape = "large" if name in LARGE else "even" if name in NARROW else "odd"
            shape = "fading" if name in SKIPPED else shape
            found[name] = run(op, module(op, SHAPES[shape][0], old, new), shape)
            continue
        op = compiled(name)
        made = {dtype: module(op, dtype) for dtype in ("float32", "float16")[: 1 + (name in HALF)]}
        for shape, (dtype, _, _) in SHAPES.items():
            if dtype in made and name in {"one": ONCE, "large": SHARP, "fading": FADING}.get(shape, (name,)):
                found[f"{name} {shape}"] = run(op, made[dtype], shape)
        if name in PACKED:
            found[f"{name} packed"] = packed(op, made["float32"])
        if name in FADING:
            found[f"{name} joined"] = packed(op, made["float16"], "fading")
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:] or [*LIBRARY, *PAIR_SPECS, *MUTANTS])
