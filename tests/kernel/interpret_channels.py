"""Runs files of ops whose gates differ by channel in Triton's interpreter against fp64; prints errors as JSON.

Log gates of one chunk are mixed: some from 0 to -0.5, some -1e-6, some -80, some -inf.
"""

from __future__ import annotations

import json
import math
import re
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import torch
from kernel import interpret_backward
from kernel.channel_specs import compiled
from kernel.interpret import Arguments, error, part
from kernel.interpret_backward import combined, gradients, joined, reference, singly
from kernel.interpret_recurrent import steps
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from sma_compiler.ir.nodes import Op
from sma_compiler.kernel import config
from sma_compiler.reference import evaluate
from sma_compiler.runtime.op import CompiledOp
from sma_compiler.target.compile import load_text

SIZES = {"batch": 1, "time": 21, "head": 2, "key": 6, "value": 5}
STARTS = (0, 1, 1, 10)
"""Where the sequences of a pack begin."""
RUNS = {
    ("gla", "chunked", "float32"): 1,
    ("gla", "chunked", "float16"): 2,
    ("values", "chunked", "float32"): 1,
    ("rwkv6", "chunked", "float32"): 1,
    ("hgrn2", "recurrent", "float32"): 2,
    ("closed", "recurrent", "float32"): 1,
}
"""Ops, plans and dtypes, and how many heads q and k have."""
SCANS = {
    ("mamba1", "recurrent", "float32"): 1,
    ("scan", "recurrent", "float16"): 1,
    ("strict_both", "chunked", "float32"): 2,
    ("closed_both", "recurrent", "float32"): 1,
    ("late_both", "recurrent", "float32"): 1,
    ("rwkv4", "recurrent", "float32"): 2,
    ("rwkv4", "chunked", "float32"): 2,
    ("columns", "recurrent", "float32"): 2,
    ("columns", "chunked", "float16"): 2,
}
"""The same where gates have both axes."""
NARROW_MUTANTS = {
    "never again": (True, r"b_reach, 0\)", "b_reach, 0) * 0"),
    "no decay of the narrow state": (False, r"b_s = b_s \* b_across\[:, None\]", "b_s = b_s"),
    "pairs with themselves": (
        False,
        r"o_c\[:, None\] > o_c\[None, :\], b_scores",
        "o_c[:, None] >= o_c[None, :], b_scores",
    ),
    "no diagonal": (False, r"tl\.sum\(keep\(b_sum", "0 * tl.sum(keep(b_sum"),
}
"""For each whether some gates cut, a text of the file of rwkv6, and what takes its place."""
COLUMNS = ("rwkv4", "columns")
"""Ops whose sums are kept in units: their sequences are cut in parts by the chunked plan."""
CUT = ("mamba1", "strict_both")
"""Other ops whose sequences are cut in parts."""
SELDOM = ("mamba1", "closed_both", *COLUMNS)
"""Ops of whose states one is kept for every second tile."""
ENDS = ("closed_both", "late_both")
"""Ops that are there for the ends of their paths."""
MUTANTS = {
    "flipped halves": ("chunked", "o_r // size == o_c // size + 1", "o_r // size == o_c // size - 1"),
    "no decay of the state": ("chunked", "b_s * b_across[:, None]", "b_s"),
    "no decay to the end": ("chunked", "b_k * tl.exp2(sums_after(b_g_2, o_c, False, DOT, PRECISION))", "b_k"),
    "no anchor": ("chunked", "(b_anchor * tl.exp2(tl.sum(b_g_2, 0)))[None, :]", "0.0 * b_early"),
    "sums from the start": ("chunked", "sums_after(b_late - b_pairs,", "sums_before(b_late - b_pairs,"),
    "pairs twice": ("chunked", "y += more", "y += 2 * more"),
    "no late ends": ("recurrent", "b_across + b_late", "b_across"),
    "nothing across": ("recurrent", "b_across + b_late", "b_late"),
    "one decay": ("recurrent", "b_decay[None, :]", "1.0"),
}
"""For each the plan, a text of the file of gla and what takes its place."""
SCAN_MUTANTS = {
    "no state before the position": ("s = kept_at(e, r, s, at_position(u, c), c)", "s = at_position(u, c)"),
    "no decay from behind": ("kept_at(e, r, s, more, c)", "found"),
    "not from the end": ("c = e.shape[0] - 1 - i", "c = i"),
    "states before": ("b_before * b_out", "b_after * b_out"),
    "a tile too late": ("(tiles - 1 - m) * C", "(tiles - 1 - m) * C + 1"),
    "another kept state": ("(start - begin) // EVERY", "(start - begin) // (2 * EVERY)"),
    "one decay for all": ("decay_ptr + place * N + o_n", "decay_ptr + place * N + 0 * o_n"),
}
"""Texts of the file of mamba1 and what takes their place."""
COLUMN_MUTANTS = {
    "no decay": ("s, rest = plus_rest(m, g)", "s, rest = plus_rest(m, 0.0 * g)"),
    "no weight of its own": ("top, rest = plus_rest(score, more)", "top, rest = plus_rest(score, 0.0 * more)"),
    "no decay from behind either": ("a = row_of(e, t) * a + row_of(n, t)", "a = a + row_of(n, t)"),
    "the state's weight": ("b_past * b_over, b_past * b_under", "b_over, b_past * b_under"),
    "divisors alone": ("b_under = -b_over *", "b_under = 0.0 *"),
    "no gates between parts": ("total, lost = plus_rest(total, row_of(g, t))", "total, lost = plus_rest(total, 0.0)"),
    "parts hand back nothing": ("a = a + decay * row_of(n, t)", "a = a"),
    "parts in another unit": ("+ 2 * V, b_m, mask=m_v", "+ 2 * V, 0.0 * b_m, mask=m_v"),
}
"""The same of rwkv4's chunked plan."""
OF_BF16 = r"tl\.bfloat16(?= [!=]= DOT|:\n +(gla|rwkv6)_)"
"""Where a file asks whether products are of bf16."""


ALONE = {("closed", "recurrent")}
"""Ops whose gradients are asked for one by one as well."""


def arguments(op: Op, sizes: dict[str, int], dtype: str, group: int) -> Arguments:
    """Random arguments. group: heads of q and k."""
    torch.manual_seed(0)
    found: Arguments = {}
    for decl in op.params:
        shape = [group if axis == "head" and decl.name in "qk" else sizes[axis] for axis in decl.dims]
        value = torch.randn(shape)
        if decl.name in ("g", "h", "w", "a"):
            value = -0.5 * torch.rand(shape)
        elif decl.name == "s":
            value = torch.rand(shape)
        if decl.name in ("g", "w") and len(shape) == 4:
            value[:, ::6, :, 4:6] = -80.0
            value[:, 3::5, :, 2] = -1e-6
            value[:, 5::8, :, 3] = -math.inf
            value[:, 13, :, 1] = -1e3
        found[decl.name] = value.to(getattr(torch, dtype)) if decl.name in "qkv" else value
    return found


def module(op: CompiledOp, plan: str, dtype: str, old: str = "", new: str = "", *, narrow: bool = False) -> ModuleType:
    """An op's file with short chunks; what matches `old` replaced by `new`. narrow: see `changed`."""
    small = config.Config(chunk=8, outer=16, warps=4, stages=1, scores=op.name == "gla")
    config.forward = lambda *_, **__: small
    config.backward = lambda *_, **__: small
    cut = op.name in CUT or (op.name in COLUMNS and plan == "chunked")
    parts = {"chunk": 2, "programs": 64} if cut else {"chunk": 4}
    parts |= {"every": 2} if op.name in SELDOM else {}
    scan = config.Config(**{**vars(small), "outer": 4, **parts})
    config.scan = lambda *_, **__: scan
    config.columns = lambda *_, **__: scan
    config.recurrent_backward = lambda _, **__: config.Config(chunk=4, outer=4, warps=1, stages=1)
    text = op.source(plan, {}, dtype)
    assert re.search(old, text), old
    text = re.sub(OF_BF16, "tl.float32", text) if narrow else text
    with tempfile.TemporaryDirectory() as folder:
        return load_text(re.sub(old, new, text) if old else text, Path(folder))


def run(op: CompiledOp, plan: str, dtype: str, group: int) -> dict[str, float]:
    """The errors of a call, of two calls joined by a state, of a pack and of steps, and those of all gradients."""
    made, given = module(op, plan, dtype), arguments(op.ir, SIZES, dtype, group)
    launch, expected, time = getattr(made, op.name), evaluate(op.ir, given), SIZES["time"]
    errors = {"y": error(launch(**given), expected)}
    if op.name in ENDS:
        dy = torch.randn(expected.shape)
        want, got = reference(op.ir, given, dy), gradients(op.ir, made, given, dy)
        return errors | {f"d{name}": interpret_backward.error(got[name], want[name]) for name in want}
    y, state = launch(**part(op.ir, given, 0, time // 3), return_state=True)
    after = launch(**part(op.ir, given, time // 3, time), initial_state=state)
    errors["y joined"] = error(torch.cat([y, after], 1), expected)
    if hasattr(made, f"{op.name}_step"):
        few = evaluate(op.ir, part(op.ir, given, 0, 7))
        errors["steps"] = error(steps(made, op.ir, part(op.ir, given, 0, 7), inplace=True), few)
    starts = (*STARTS, time)
    spans = [span for span in pairwise(starts) if span[0] < span[1]]
    alone = [evaluate(op.ir, part(op.ir, given, *span)) for span in spans]
    cu = torch.tensor(starts, dtype=torch.int32)
    errors["y packed"] = error(launch(**given, cu_seqlens=cu), torch.cat(alone, 1))
    if not hasattr(made, f"{op.name}_backward"):
        return errors
    dy = torch.randn(expected.shape).to(y.dtype)
    want = reference(op.ir, given, dy)
    found = {
        "": gradients(op.ir, made, given, dy),
        " joined": joined(op.ir, made, given, dy),
    }
    if (op.name, plan) in ALONE:
        found[" alone"] = singly(op.ir, made, given, dy)
    for how, got in found.items():
        errors |= {f"d{name}{how}": interpret_backward.error(got[name], want[name]) for name in want}
    apart = [reference(op.ir, part(op.ir, given, *span), dy[:, span[0] : span[1]]) for span in spans]
    want = combined(op.ir, apart)
    got = gradients(op.ir, made, given, dy, cu_seqlens=cu)
    errors |= {f"d{name} packed": interpret_backward.error(got[name], want[name]) for name in want}
    return errors


def mutants() -> dict[str, float]:
    """The largest error that every planted mistake makes."""
    found = {name: changed(plan, re.escape(old), new) for name, (plan, old, new) in MUTANTS.items()}
    for name, (strong, old, new) in NARROW_MUTANTS.items():
        found[name] = changed("chunked", old, new, strong, "rwkv6", narrow=True)
    return found


def scan_mutants() -> dict[str, float]:
    """The same of ops whose kernels pass some positions at a time."""
    every = [("mamba1", "recurrent", SCAN_MUTANTS), ("rwkv4", "chunked", COLUMN_MUTANTS)]
    found = {}
    for op, plan, planted in every:
        for name, (old, new) in planted.items():
            found[name] = changed(plan, re.escape(old), new, name=op, time=40)  # three parts
    return found


def large() -> dict[str, float]:
    """The errors of scores of a thousand either way, and with what rounding takes of their units left out.

    One gate is weak, and the first row of each kept state weighs more than all before it.
    """
    op, found = compiled("rwkv4"), {}
    given = arguments(op.ir, SIZES, "float32", 2)
    given["k"] = 1e3 * torch.sign(given["k"]) + given["k"]
    given["k"][:, ::4] += 5.0
    given["w"] = torch.tensor([-1e-6, -0.4])
    expected = evaluate(op.ir, given)
    dy = torch.randn(expected.shape)
    want = reference(op.ir, given, dy)
    for plan in ("recurrent", "chunked"):
        made = module(op, plan, "float32")
        found[f"{plan} y"] = error(made.rwkv4(**given), expected)
        got = gradients(op.ir, made, given, dy)
        found |= {f"{plan} d{name}": interpret_backward.error(got[name], want[name]) for name in want}
    wrong = module(op, "recurrent", "float32", r"r \+= rest", "r += 0.0")
    return found | {"no rest": error(wrong.rwkv4(**given), expected)}


def steady() -> dict[str, float]:
    """The errors of weak gates that are alike at all positions, and with what rounding takes of decays left out.

    As on a GPU, `tl.fma` rounds once.
    """

    def fused(_: object, x: TensorHandle, y: TensorHandle, z: TensorHandle) -> TensorHandle:
        exact = x.data.astype("float64") * y.data + z.data
        return TensorHandle(exact.astype(x.data.dtype), x.dtype.scalar)

    InterpreterBuilder.create_fma = fused
    op, found = compiled("mamba1"), {}
    given = arguments(op.ir, {**SIZES, "time": 120}, "float32", 2)
    given |= {name: 1.0 + torch.rand(given[name].shape) for name in "qkv"}
    given["dt"] = torch.ones_like(given["dt"])
    decays = torch.linspace(-2e-3, -1e-3, 999).double()
    taken = decays.float().double().exp() - decays.float().double().exp().float()
    given["a"] = decays[taken.argmax()].float().expand(given["a"].shape).contiguous()
    expected = evaluate(op.ir, given)
    dy = 1.0 + torch.rand(expected.shape)
    want = reference(op.ir, given, dy)
    rest = r"tl\.fma\(at_position\(r, c\), s, u\)"
    for name, old, new in (("", "", ""), ("no rest ", rest, "u")):
        made = module(op, "recurrent", "float32", old, new)
        got = gradients(op.ir, made, given, dy)
        found[f"{name}y"] = error(made.mamba1(**given), expected)
        found |= {f"{name}d{key}": interpret_backward.error(got[key], want[key]) for key in want}
    return found


def changed(
    plan: str,
    old: str,
    new: str,
    strong: bool = True,
    name: str = "gla",
    narrow: bool = False,
    time: int = SIZES["time"],
) -> float:
    """The largest error of an op with what matches `old` changed.

    strong: whether some gates cut. narrow: whether the file takes its operands for those of bf16.
    """
    op = compiled(name)
    given = arguments(op.ir, {**SIZES, "time": time}, "float32", 2)
    gate = "w" if name == "rwkv6" else "g"
    if not strong:
        given[gate] = -torch.rand(given[gate].shape)
    expected = evaluate(op.ir, given)
    dy = torch.randn(expected.shape)
    want = reference(op.ir, given, dy)
    made = module(op, plan, "float32", old, new, narrow=narrow)
    got: dict[str, Tensor] = gradients(op.ir, made, given, dy)
    y = getattr(made, name)(**given)
    return max(error(y, expected), *(interpret_backward.error(got[x], want[x]) for x in want))


def main() -> None:
    """Print all errors of every run, and of the one product that bf16 operands take."""
    found = {" ".join(one): run(compiled(one[0]), one[1], one[2], heads) for one, heads in RUNS.items()}
    for name, strong in (("gla", False), ("rwkv6", False), ("rwkv6", True)):
        largest = changed("chunked", "", "", strong, name, narrow=True)
        found[f"{name} {'strong ' if strong else ''}from the start"] = {"all": largest}
    print(json.dumps(found))


def scans() -> dict[str, dict[str, float]]:
    """All errors of every op whose gates have both axes."""
    return {" ".join(one): run(compiled(one[0]), one[1], one[2], heads) for one, heads in SCANS.items()}


MODES = {"mutants": mutants, "scans": scans, "scan_mutants": scan_mutants, "large": large, "steady": steady}

if __name__ == "__main__":
    print(json.dumps(MODES[sys.argv[1]]())) if sys.argv[1:] else main()
