"""Runs quadratic files in Triton's interpreter where scores are some 1e4 and compares them with the torch backend by
the accuracy contract; prints the worst ratio of error and bound of every tensor as JSON. A process of its own: the
interpreter is chosen when Triton is imported."""

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
MUTANTS = {
    "rounded delta": ("(b_rest + b_rest_low * b_below) * b_share", "b_share * 0.0"),
    "nothing below": ("tl.where(m_sole, 0.0, b_below)", "b_below * 0.0"),
    "whole tiles": ("far = tl.where(sole > 0, near, far)", "pass"),
    "rounding errors": ('b_delta = tl.where(m_sole, float("inf"), b_delta)', "pass"),
}
"""For each a text of attention's file and what takes its place."""
ERRORS = "rounding errors"
"""The one of scores of some 1e7."""
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


def same_products(self: object, a: Held, b: Held, d: Held, precision: object, most: object) -> Held:
    """A product that rounds alike whichever operand comes first, as tensor cores do, on top of a sum."""
    found = np.matmul(a.data.astype(np.float64), b.data.astype(np.float64)).astype(np.float32)
    held: Held = interpreter.TensorHandle(found + d.data, d.dtype.scalar)
    return held


def cases(op: CompiledOp, size: float) -> list[Case]:
    """Two cases in fp16. size: of the entries of q and k."""
    found = []
    for seed in range(2):
        given = dict(samples(op.ir, SIZES, torch.float16, seed))
        for operand in "qk":
            dice = torch.Generator().manual_seed(seed + ord(operand))
            given[operand] = (size * torch.randn(1, LENGTH, 1, WIDTH, generator=dice)).half()
        found.append(make_case(op.ir, SIZES, torch.float16, seed, arguments=given))
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


def run_of(op: CompiledOp, old: str = "", new: str = "") -> Run:
    """How an op's file is run; `old` replaced by `new`."""
    shape = {"B": 1, "T": LENGTH, "H": 1, "K": WIDTH, "V": WIDTH}
    text = op.source("quadratic", shape, "float16")
    assert old in text, old
    with tempfile.TemporaryDirectory() as folder:
        module = load_text(text.replace(old, new) if old else text, Path(folder))

    def run(plan: str, given: Mapping[str, Argument], /) -> tuple[Tensor, Tensor]:
        y, lse = Launch.apply(module, op.name, *(given[decl.name] for decl in op.ir.params))
        return y, lse

    return run


def ratios(name: str, *texts: str) -> dict[str, float]:
    """The worst ratios of an op's file."""
    op = sma.library(name)

    def other(plan: str, given: Mapping[str, Argument], /) -> tuple[Tensor, Tensor]:
        y, lse = op(**given, plan=plan, backend="torch", return_lse=True)
        return y, lse

    report = compare_backends(cases(op, LARGE), run_of(op, *texts), other, "quadratic")
    found: dict[str, float] = {}
    for check in report.checks:
        found[check.what] = max(found.get(check.what, 0.0), check.ratio)
    return found


def largest(*texts: str) -> dict[str, float]:
    """The largest error of what is exactly 0 where every row has one pair alone, though products round apart."""
    op = sma.library("attention")
    found = [case.errors(run_of(op, *texts), "quadratic") for case in cases(op, HUGE)]
    return {what: max(float(one[what].error_max.max()) for one in found) for what in ("d q", "d k")}


def main() -> None:
    """Print the ratios of every op, and of mutants."""
    found = {"alone": largest(), ERRORS: largest(*MUTANTS[ERRORS])}
    interpreter.InterpreterBuilder.create_dot = same_products
    found |= {name: ratios(name) for name in OPS}
    found |= {name: ratios("attention", *texts) for name, texts in MUTANTS.items() if name != ERRORS}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
