"""Runs emitted gradients in Triton's interpreter against autograd of the fp64 reference; prints errors as JSON.

Each op is run whole, and as two calls of which the second hands the cotangent of its initial state to the first. Some
are run for one parameter at a time, as a pack against its sequences alone, and with sequences cut in parts. Mutants are
files with one line changed.
"""

from __future__ import annotations

import inspect
import json
import math
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import torch
from kernel.gradient_specs import GRADIENT_SPECS
from kernel.interpret import SPLIT, Arguments, arguments, part
from kernel.specs import LIBRARY, SPECS, compiled
from torch import Tensor

from sma_compiler.ir.nodes import Op
from sma_compiler.kernel import config
from sma_compiler.oracle.values import named
from sma_compiler.reference import evaluate
from sma_compiler.runtime.op import CompiledOp
from sma_compiler.target.compile import load_text

CHUNK = 16
SIZES = {"batch": 1, "head": 2, "key": 20, "value": 24}
LENGTHS = (1, 50)
EDGES = ("mamba2", "open_ends", "closed_ends")
"""The ops that are run with as many positions as a chunk, one fewer, one more; packed; and for one parameter."""
MUTANTS = {
    "no anchor": (
        "mamba2",
        "anchors_ptr + (i_b * H + i_h) * SLOTS + slot,\n        True,",
        "anchors_ptr,\n        False,",
    ),
    "no keys": ("simple_gla", "(tl.cumsum(b_through, 0) - b_through)", "0.0"),
    "forward sums": ("mamba2", "tl.cumsum(b_net + b_inter, 0, reverse=True)", "tl.cumsum(b_net + b_inter, 0)"),
    "flipped mask": ("simple_gla", "o_c[None, :] >= o_c[:, None]", "o_c[None, :] <= o_c[:, None]"),
    "strict mask": ("mamba2", "o_c[None, :] >= o_c[:, None]", "o_c[None, :] > o_c[:, None]"),
    "no decay": ("mamba2", "b_s * b_across", "b_s"),
    "no columns": ("mamba2", "b_cols = b_columns + b_through", "b_cols = b_columns"),
    "one part": ("three_attends", "sum_of(dv_attend1, dv_attend0, dtype=v.dtype)", "dv_attend1"),
    "no value": ("one_in_another", "dattend0 = dattend0_attend1", "dattend0 = dy"),
    "no pairs": ("mamba2", "tl.cumsum(b_net + b_inter, 0, reverse=True)", "tl.cumsum(b_inter, 0, reverse=True)"),
}
"""For each the op, a text of its file and what takes its place."""
STARTS = (0, 1, 1, 20)
"""Where the sequences of a pack begin."""
RESULT = ("batch", "time", "head", "value")


def module(op: CompiledOp, dtype: str, old: str = "", new: str = "", programs: int = 0) -> ModuleType:
    """An op's file with chunks of 16, so that short sequences have several; `old` replaced by `new`.

    programs: how many should run at once, where sequences are cut in parts for it.
    """
    small = config.Config(chunk=CHUNK, outer=16, warps=4, stages=1, programs=programs)
    config.forward = lambda *_, **__: small
    config.backward = lambda *_, **__: small
    text = op.source("chunked", {}, dtype)
    assert old in text, old
    with tempfile.TemporaryDirectory() as folder:
        return load_text(text.replace(old, new) if old else text, Path(folder))


def given_to(op: Op, time: int, dtype: str) -> Arguments:
    """Random arguments: one head of q and k for two of v, log gates from 0 to -0.5 and some of -30, -1e3, -inf."""
    found = arguments(op, {**SIZES, "time": time}, dtype, 1)
    for name, x in found.items():
        if isinstance(x, Tensor) and name == "g" and time >= 40:
            x[:, 7], x[:, 33] = -30.0, -30.0
            if "exp(g)" not in op.text:
                x[:, 20], x[:, 35], x[:, 38] = -math.inf, -math.inf, -1e3
    return found


def reference(op: Op, given: Arguments, dy: Tensor) -> dict[str, Tensor]:
    """The gradients in fp64."""
    wide = {key: x.double().requires_grad_() if isinstance(x, Tensor) else x for key, x in given.items()}
    leaves = {key: x for key, x in wide.items() if isinstance(x, Tensor)}
    axes = tuple(axis for axis in RESULT if axis in op.result.axes)
    y = named(evaluate(op, wide), op.result.axes).aligned(axes)
    found = torch.autograd.grad(y, list(leaves.values()), dy.double(), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def gradients(op: Op, made: ModuleType, given: Arguments, dy: Tensor, **options: object) -> dict[str, Tensor]:
    """What the emitted file gives; the gradient of the initial state is called `state`."""
    found = getattr(made, f"{op.name}_backward")(dy, **given, **options)
    names = [decl.name for decl in op.params if not decl.number]
    return dict(zip([*names, "state"], found, strict=False))


def joined(op: Op, made: ModuleType, given: Arguments, dy: Tensor) -> dict[str, Tensor]:
    """The same by two calls."""
    time, launch = dy.shape[1], getattr(made, op.name)
    middle = time // 3
    halves = [(part(op, given, 0, middle), dy[:, :middle]), (part(op, given, middle, time), dy[:, middle:])]
    if op.name.startswith("anticausal"):
        halves.reverse()
    (first, early), (second, late) = halves
    state = launch(**first, return_state=True)[1]
    taken = inspect.signature(getattr(made, f"{op.name}_backward")).parameters
    saved: dict[str, object] = {}
    if "norm" in taken:
        saved = dict(zip(("y", "norm"), launch(**second, initial_state=state, return_norm=True), strict=True))
    saved = {key: x for key, x in saved.items() if key in taken}
    after = gradients(op, made, second, late, initial_state=state, **saved)
    before = gradients(op, made, first, early, dstate=after["state"])
    pair = [after, before] if op.name.startswith("anticausal") else [before, after]
    return combined(op, pair)


def combined(op: Op, parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The gradients of sequences that follow one another, from those of each."""
    long = {decl.name for decl in op.params if "time" in decl.dims}
    names = [name for name in parts[0] if name != "state"]
    every = {name: [one[name] for one in parts] for name in names}
    return {name: torch.cat(x, 1) if name in long else torch.stack(x).sum(0) for name, x in every.items()}


def packed(op: Op, made: ModuleType, given: Arguments, dy: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The gradients of a pack, and of its sequences alone."""
    starts = (*STARTS, dy.shape[1])
    spans = [(begin, end) for begin, end in pairwise(starts) if begin < end]
    alone = [gradients(op, made, part(op, given, *span), dy[:, span[0] : span[1]]) for span in spans]
    pack = gradients(op, made, given, dy, cu_seqlens=torch.tensor(starts, dtype=torch.int32))
    return pack, combined(op, alone)


def singly(op: Op, made: ModuleType, given: Arguments, dy: Tensor) -> dict[str, Tensor]:
    """The gradients asked for one by one."""
    names = [decl.name for decl in op.params if not decl.number]
    found: dict[str, Tensor] = {}
    for name in names:
        needs = tuple(other == name for other in names)
        one = gradients(op, made, given, dy, needs=needs)
        assert all(one[other] is None for other in names if other != name)
        found[name] = one[name]
    return found


def error(found: Tensor, expected: Tensor) -> float:
    """Relative error in the mean square, of a gradient that vanishes the absolute one; infinite where not finite."""
    if not bool(found.isfinite().all()):
        return math.inf
    return float((found.double() - expected).norm() / max(float(expected.norm()), 0.3 * expected.numel() ** 0.5))


def run(op: CompiledOp, made: ModuleType, dtype: str, time: int) -> dict[str, float]:
    """The errors of every gradient, at one length."""
    given = given_to(op.ir, time, dtype)
    dy = torch.randn(SIZES["batch"], time, SIZES["head"], SIZES["value"], dtype=getattr(torch, dtype))
    expected = reference(op.ir, given, dy)
    whole = gradients(op.ir, made, given, dy)
    found = {key: error(whole[key], want) for key, want in expected.items()}
    if time < 50:
        return found
    halves = joined(op.ir, made, given, dy)
    found |= {f"{key} joined": error(halves[key], want) for key, want in expected.items()}
    if op.name in EDGES:
        alone = singly(op.ir, made, given, dy)
        pack, sequences = packed(op.ir, made, given, dy)
        for key, want in expected.items():
            found[f"{key} alone"] = error(alone[key], want)
            found[f"{key} packed"] = error(pack[key], sequences[key].double())
    return found


def main(names: list[str]) -> None:
    """Print the errors of every op, dtype and length, and of every mutant."""
    found: dict[str, dict[str, float]] = {}
    for name in names:
        if name in MUTANTS:
            mutated, old, new = MUTANTS[name]
            op = compiled(mutated)
            found[name] = run(op, module(op, "float32", old, new), "float32", 50)
            continue
        op = compiled(name)
        made = module(op, "float32")
        for time in (*LENGTHS, *((CHUNK - 1, CHUNK, CHUNK + 1) if name in EDGES else ())):
            found[f"{name} float32 {time}"] = run(op, made, "float32", time)
        if name in LIBRARY:
            found[f"{name} float16 40"] = run(op, module(op, "float16"), "float16", 40)
        if name in SPLIT:
            made = module(op, "float32", programs=64)
            found[f"{name} float32 split"] = run(op, made, "float32", 90)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:] or [*LIBRARY, *SPECS, *GRADIENT_SPECS, *MUTANTS])
