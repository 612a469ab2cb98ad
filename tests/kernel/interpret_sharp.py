"""Runs quadratic files in Triton's interpreter where scores are some 1e4, with products as Hopper's tensor cores round
them, and compares them with the torch backend by the accuracy contract; prints the worst ratio of error and bound of
every tensor as JSON. A process of its own: the interpreter is chosen when Triton is imported."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

import sma_compiler as sma
from sma_compiler.reference import Argument
from sma_compiler.runtime.op import CompiledOp
from sma_compiler.target.compile import load_text
from sma_compiler.verify.cases import Case, Run, make_case
from sma_compiler.verify.check import compare_backends
from sma_compiler.verify.samples import samples

LENGTH, WIDTH = 160, 64
SIZES = {"batch": 1, "time": LENGTH, "head": 1, "key": WIDTH, "value": WIDTH}
LARGE = 80.0
"""The size of the entries of q and k that makes scores of some 1e4."""
OPS = ("attention", "alibi", "forgetting")
DTYPES = ("float16", "bfloat16")
MUTANTS = {
    "rounded delta": ("b_exact = b_delta - b_first", "b_exact = b_delta"),
    "rounded scores": ("total = tl.dot(x_low, tl.trans(y.to(DOT)), total)", "pass"),
    "rounded logarithms": ("tl.where(b_total_2 > 0.0, 1.0 / b_total_2, 1.0)", "b_total_2 * 0.0 + 1.0"),
    "nothing low": (" + spread(b_low, BN)", ""),
    "no care": ("with_care in (False, True)", "with_care in (False,)"),
    "rounding errors": (
        """b_delta = tl.where(
                (b_total_low > 0.0) | (b_others >= 5.960464477539063e-08),
                b_delta,
                float("inf"),
            )""",
        "pass",
    ),
    "no twins": (" | (b_others >= 5.960464477539063e-08)", ""),
}
"""For each a text of attention's file and what takes its place."""
ERRORS = "rounding errors"
"""The one of scores of some 1e7."""
TWINS = "no twins"
"""The one of rows that two equal keys share."""
LOW = "nothing low"
"""The one of rows whose other pairs fp32 cannot tell from nothing beside the largest."""
HUGE = 2000.0
"""That of scores of some 1e7, where every row has one pair alone."""


class Held(Protocol):
    """A tile, as the interpreter holds it."""

    data: np.ndarray
    dtype: tl.dtype


class Context(Protocol):
    """What autograd keeps between the passes."""

    launch: Callable[..., tuple[Tensor | None, ...]]
    count: int
    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


def exact(held: Held) -> np.ndarray:
    """The numbers of a tile in fp64; the interpreter holds bf16 as its bits."""
    if held.dtype.scalar == tl.bfloat16:
        return (held.data.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return held.data.astype(np.float64)


def truncated(x: np.ndarray) -> np.ndarray:
    """fp64 numbers as fp32, rounded towards 0."""
    found = x.astype(np.float32)
    return np.where(np.abs(found.astype(np.float64)) > np.abs(x), np.nextafter(found, np.float32(0)), found)


def hopper_products(self: object, a: Held, b: Held, d: Held, precision: object, most: object) -> Held:
    """A product on top of a sum: of every 16 addends and that sum what lies 25 bits below the largest is cut off."""
    left, right, total = exact(a), exact(b), exact(d)
    for step in range(0, left.shape[1], 16):
        addends = left[:, step : step + 16, None] * right[None, step : step + 16, :]
        largest = np.maximum(np.abs(addends).max(1), np.abs(total))
        unit = np.ldexp(1.0, np.frexp(largest)[1] - 26)
        cut = np.trunc(addends / unit[:, None, :]).sum(1) + np.trunc(total / unit)
        total = truncated(cut * unit).astype(np.float64)
    held: Held = interpreter.TensorHandle(total.astype(np.float32), d.dtype.scalar)
    return held


def apart(self: object, a: Held, b: Held, d: Held, precision: object, most: object) -> Held:
    """A product that rounds by which operand comes first."""
    found = np.matmul(exact(a), exact(b)).astype(np.float32)
    found = np.where(a.data[:, :1] > 0, np.nextafter(found, np.float32(np.inf)), found)
    held: Held = interpreter.TensorHandle(found + d.data, d.dtype.scalar)
    return held


CAST = interpreter.InterpreterBuilder.cast_impl


def rounded(self: object, x: Held, dtype: tl.dtype) -> Held:
    """A cast; to bf16 it rounds to the nearest, where the interpreter would cut bits off."""
    if x.dtype.scalar != tl.float32 or dtype.scalar != tl.bfloat16:
        return CAST(self, x, dtype)
    bits = np.ascontiguousarray(x.data).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    held: Held = interpreter.TensorHandle(np.where(np.isnan(x.data), 0x7FC0, bits).astype(np.uint16), dtype.scalar)
    return held


def cases(op: CompiledOp, size: float, name: str) -> list[Case]:
    """Two cases. size: of the entries of q and k. name: the dtype."""
    found, dtype = [], getattr(torch, name)
    for seed in range(2):
        given = dict(samples(op.ir, SIZES, dtype, seed))
        for operand in "qk":
            dice = torch.Generator().manual_seed(seed + ord(operand))
            given[operand] = (size * torch.randn(1, LENGTH, 1, WIDTH, generator=dice)).to(dtype)
        found.append(make_case(op.ir, SIZES, dtype, seed, arguments=given))
    return found


class Launch(torch.autograd.Function):
    """The launchers of an emitted file, differentiable."""

    @staticmethod
    def forward(ctx: Context, module: ModuleType, name: str, *tensors: Tensor) -> tuple[Tensor, ...]:
        y, lse, others = getattr(module, name)(*tensors, return_lse=True, return_others=True)
        ctx.launch, ctx.count = getattr(module, f"{name}_backward"), len(tensors)
        ctx.save_for_backward(*tensors, y, lse, others)
        return y, lse

    @staticmethod
    def backward(ctx: Context, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors[: ctx.count]
        y, lse, others = ctx.saved_tensors[ctx.count :]
        return None, None, *ctx.launch(dy, *tensors, y=y, lse=lse, others=others)


def run_of(op: CompiledOp, dtype: str, old: str = "", new: str = "") -> Run:
    """How an op's file is run; `old` replaced by `new`."""
    shape = {"B": 1, "T": LENGTH, "H": 1, "K": WIDTH, "V": WIDTH}
    text = op.source("quadratic", shape, dtype)
    assert old in text, old
    with tempfile.TemporaryDirectory() as folder:
        module = load_text(text.replace(old, new) if old else text, Path(folder))

    def run(plan: str, given: Mapping[str, Argument], /) -> tuple[Tensor, Tensor]:
        y, lse = Launch.apply(module, op.name, *(given[decl.name] for decl in op.ir.params))
        return y, lse

    return run


def ratios(name: str, dtype: str, *texts: str) -> dict[str, float]:
    """The worst ratios of an op's file."""
    op = sma.library(name)

    def other(plan: str, given: Mapping[str, Argument], /) -> tuple[Tensor, Tensor]:
        y, lse = op(**given, plan=plan, backend="torch", return_lse=True)
        return y, lse

    report = compare_backends(cases(op, LARGE, dtype), run_of(op, dtype, *texts), other, "quadratic")
    found: dict[str, float] = {}
    for check in report.checks:
        found[check.what] = max(found.get(check.what, 0.0), check.ratio)
    return found


def relative(entry: float, equal: int, *texts: str) -> dict[str, float]:
    """The relative errors of gradients in bf16 where each query is its own key.

    entry: of each, or this times -1. equal: how many in a row are the same; then the gradients of queries are 0.
    """
    op, dtype = sma.library("attention"), "bfloat16"
    given = dict(samples(op.ir, SIZES, torch.bfloat16, 0))
    sign = torch.randn(1, LENGTH // equal, 1, WIDTH, generator=torch.Generator().manual_seed(0)).sign()
    made = (entry * sign).bfloat16().repeat_interleave(equal, 1)
    given |= {"q": made, "k": made.clone()}
    case = make_case(op.ir, SIZES, torch.bfloat16, 0, arguments=given)
    found = case.errors(run_of(op, dtype, *texts), "quadratic")
    wholes = {what: found[what].whole() for what in ("d q", "d k")[equal - 1 :]}
    return {what: float((whole.error / whole.exact).sqrt()) for what, whole in wholes.items()}


def largest(*texts: str) -> dict[str, float]:
    """The largest error of what is exactly 0 where every row has one pair alone, though products round apart."""
    op = sma.library("attention")
    found = [case.errors(run_of(op, "float16", *texts), "quadratic") for case in cases(op, HUGE, "float16")]
    return {what: max(float(one[what].error_max.max()) for one in found) for what in ("d q", "d k")}


def main() -> None:
    """Print the ratios of every op, and of mutants."""
    interpreter.InterpreterBuilder.create_dot = apart
    found = {"alone": largest(), ERRORS: largest(*MUTANTS[ERRORS])}
    interpreter.InterpreterBuilder.create_dot = hopper_products
    interpreter.InterpreterBuilder.create_fp_trunc = rounded
    found |= {f"{name} {dtype}": ratios(name, dtype) for name in OPS for dtype in DTYPES}
    found |= {"hardly any": relative(2.0, 1), LOW: relative(2.0, 1, *MUTANTS[LOW])}
    found |= {"twins": relative(20.0, 2), TWINS: relative(20.0, 2, *MUTANTS[TWINS])}
    found |= {name: ratios("attention", "float16", *texts) for name, texts in MUTANTS.items() if name not in found}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
