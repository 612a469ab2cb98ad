"""Plans against the reference, and backends against each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from sma_compiler.ir.nodes import Solve
from sma_compiler.ir.roles import roles
from sma_compiler.verify.bounds import bound
from sma_compiler.verify.cases import Case, Run
from sma_compiler.verify.contract import FP32_FLOOR, UNIT, Line, Report, Title, comparable, within
from sma_compiler.verify.errors import Errors
from sma_compiler.verify.gate_sums import contractions

FOURIER = frozenset({"toeplitz"})
"""Plans whose errors are relative to the row's maximum."""


def check_plan(cases: Sequence[Case], run: Run, plan: str, backend: str = "torch") -> Report:
    """A plan of the torch backend against the reference: the output, and the gradient of every real parameter.

    cases: the same op, sizes and dtype with several seeds; `SEEDS` of them where blocks are small.
    """
    runs = errors_of(cases, run, plan)
    report = Report(())
    for what in runs[0]:
        seeds = [found[what] for found in runs]
        report += within(title(cases[0], plan, backend, what), seeds, *lines(cases, what))
    return report


def compare_backends(cases: Sequence[Case], run: Run, other: Run, plan: str, backend: str = "triton") -> Report:
    """A plan of one backend against the torch backend's error with the same plan and dtype."""
    return compare_with(cases, run, errors_of(cases, other, plan), plan, backend)


def errors_of(cases: Sequence[Case], run: Run, plan: str) -> list[dict[str, Errors]]:
    """The errors of a run on each case."""
    return [case.errors(run, plan, by_row_maximum=plan in FOURIER) for case in cases]


def compare_with(
    cases: Sequence[Case], run: Run, theirs: Sequence[Mapping[str, Errors]], plan: str, backend: str = "triton"
) -> Report:
    """The same, against errors that are known."""
    mine = errors_of(cases, run, plan)
    report = Report(())
    for what in mine[0]:
        seeds = [found[what] for found in mine], [found[what] for found in theirs]
        report += comparable(title(cases[0], plan, backend, what), *seeds, cases[0].unit)
    return report


def title(case: Case, plan: str, backend: str, what: str) -> Title:
    """What a check of this case is about."""
    return Title(case.op.name, plan, backend, str(case.cotangent.dtype).removeprefix("torch."), what)


def lines(cases: Sequence[Case], what: str) -> tuple[Line, Line]:
    """The bounds of a whole tensor and of a block of it.

    An output of one contraction: fp32 (and fp64 with its own roundoff) 2e-6 + u (G + sqrt T) relative; bf16 and fp16
    2 rms(round(f64) - f64) + u rms(f64). A log-sum-exp, an fp32 logarithm, may err by the fp32 bound once more. With
    `solve`, several contractions, and for gradients these terms in u are multiplied by measured constants.
    """
    case = cases[0]
    if what == "lse":
        error = min(case.unit, UNIT[torch.float32]) * steepness(cases)
        return Line(0.0, error, error), Line(0.0, error, error)
    narrow = case.unit > UNIT[torch.float32]
    group = group_of(case, what)
    whole, block = bound(case.op.name, group, narrow, case.length) if group else (1.0, 1.0)
    if narrow:
        return Line(2.0, whole * case.unit), Line(2.0, block * case.unit)
    error = case.unit * steepness(cases)
    return Line(0.0, whole * error), Line(0.0, block * error)


def steepness(cases: Sequence[Case]) -> float:
    """The relative error that one contraction in fp32 may have, in units of roundoff."""
    return FP32_FLOOR + max(case.gate_sum for case in cases) + math.sqrt(cases[0].length)


def group_of(case: Case, what: str) -> str:
    """The group of measured constants that bounds a tensor; "" for the output of a single contraction."""
    if what == "output":
        found = contractions(case.op)
        return "output" if len(found) > 1 or any(isinstance(node, Solve) for node in found) else ""
    if what.removeprefix("d ") in roles(case.op).phases:
        return "phases"
    return "gradients" if "time" in case.axes[what] else "sums"
