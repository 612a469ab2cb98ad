"""The accuracy contract: what bounds the error of an output or a gradient, and whether measured errors keep to it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch

from sma_compiler.verify.errors import POSITIONS, SMALL, Errors, pool

UNIT = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24, torch.float64: 2.0**-53}
"""Unit roundoff of each dtype."""
FP32_FLOOR = 2e-6 / 2.0**-24
"""The constant part of the relative error of one contraction, in units of roundoff."""


@dataclass(frozen=True)
class Line:
    """A bound on a root mean square error: rounding * rms(round(f64) - f64) + relative * rms(f64) + absolute."""

    rounding: float
    relative: float
    absolute: float = 0.0

    def bound(self, errors: Errors) -> float:
        return self.rounding * errors.rms(errors.rounding) + self.relative * errors.rms(errors.exact) + self.absolute


@dataclass(frozen=True)
class Check:
    """One comparison of a measured error with its bound.

    what: "output", "lse", or "d " and a parameter. where: "whole" or a block. norm: "rms" or "max".
    measured, bound: absolute errors. scale: the same norm of the exact values.
    """

    op: str
    plan: str
    backend: str
    dtype: str
    what: str
    where: str
    norm: str
    measured: float
    bound: float
    scale: float

    @property
    def ok(self) -> bool:
        return self.measured <= self.bound

    @property
    def ratio(self) -> float:
        """Measured over bound; at most 1 where the check passes."""
        if self.measured == self.bound:
            return 1.0 if self.bound else 0.0
        return self.measured / self.bound if self.bound else math.inf

    def __str__(self) -> str:
        verdict = "ok  " if self.ok else "FAIL"
        relative = self.measured / self.scale if self.scale else self.measured
        allowed = self.bound / self.scale if self.scale else self.bound
        title = f"{self.op} {self.plan} {self.backend} {self.dtype} {self.what}"
        return f"{verdict} {title}, {self.where}: {self.norm} {relative:.2e} of {allowed:.2e} allowed"


@dataclass(frozen=True)
class Report:
    """The checks of one or several plans."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    @property
    def worst(self) -> Check | None:
        """The check with the least room."""
        return max(self.checks, key=lambda check: check.ratio, default=None)

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.ok)

    def __add__(self, other: Report) -> Report:
        return Report(self.checks + other.checks)

    def __str__(self) -> str:
        return "\n".join(str(check) for check in self.checks)

    def to_json(self) -> str:
        """An object with `ok` and the `checks`, each with its fields, `ok` and `ratio`."""
        checks = [asdict(check) | {"ok": check.ok, "ratio": check.ratio} for check in self.checks]
        return json.dumps({"ok": self.ok, "checks": checks}, indent=1)


@dataclass(frozen=True)
class Title:
    """What a check is about, but for its place and norm."""

    op: str
    plan: str
    backend: str
    dtype: str
    what: str

    def check(self, where: str, norm: str, measured: float, bound: float, scale: float) -> Check:
        return Check(self.op, self.plan, self.backend, self.dtype, self.what, where, norm, measured, bound, scale)


def within(title: Title, seeds: Sequence[Errors], whole: Line, block: Line | None = None) -> Report:
    """The whole tensor and its worst block against their lines.

    seeds: the errors of each seed. block: the line of a block, where it is not that of the whole.
    """
    found = [_against(title, part.where, part.errors, whole) for part in wholes(seeds)]
    inside = [_against(title, part.where, part.errors, block or whole) for part in blocks(seeds)]
    return Report(tuple(_worst(checks) for checks in (found, inside) if checks))


def _worst(checks: Sequence[Check]) -> Check:
    return max(checks, key=lambda check: check.ratio)


def _against(title: Title, where: str, errors: Errors, line: Line) -> Check:
    scale = errors.rms(errors.exact)
    return title.check(where, "rms", errors.rms(errors.error), line.bound(errors), scale)


@dataclass(frozen=True)
class Part:
    """A tensor or a block of it, of one seed or (`small`) of all seeds together."""

    where: str
    errors: Errors
    small: bool


def wholes(seeds: Sequence[Errors]) -> Iterator[Part]:
    """The whole tensor."""
    every = [one.whole() for one in seeds]
    if float(every[0].count) < SMALL:
        yield Part("whole", pool(every), True)
    else:
        yield from (Part("whole", one, False) for one in every)


def blocks(seeds: Sequence[Errors]) -> Iterator[Part]:
    """Every block; nothing where the tensor is one block. Seeds with a sample of rows have some of the blocks each."""
    heads, numbers = seeds[0].count.shape
    if heads * numbers == 1:
        return
    together = pool(seeds)
    for head in range(heads):
        for number in range(numbers):
            where = f"head {head}, positions {number * POSITIONS}..{(number + 1) * POSITIONS - 1}"
            counts = [float(one.count[head, number]) for one in seeds]
            if 0 < max(counts) < SMALL:
                yield Part(where, together.block(head, number), True)
            else:
                held = (one for one, count in zip(seeds, counts, strict=True) if count)
                yield from (Part(where, one.block(head, number), False) for one in held)


def comparable(title: Title, seeds: Sequence[Errors], other: Sequence[Errors], unit: float) -> Report:
    """A plan's errors against those of another backend: rms <= 1.25 e_ref + u rms, max <= 2 e_ref,max + 2 u max.

    seeds, other: the errors of the plan and of the backend that it is compared with, seed by seed. unit: the unit
    roundoff u. A small block's e_ref is at least its rms times the relative error of the whole.
    """
    checks: dict[str, list[Check]] = {"whole rms": [], "whole max": [], "block rms": [], "block max": []}
    pooled = pool(other).whole()
    relative = math.sqrt(float(pooled.error / pooled.exact)) if float(pooled.exact) else 0.0

    def add(kind: str, mine: Part, theirs: Part) -> None:
        scale = mine.errors.rms(mine.errors.exact)
        expected = theirs.errors.rms(theirs.errors.error)
        if mine.small:
            expected = max(expected, scale * relative)
        rms, bound = mine.errors.rms(mine.errors.error), 1.25 * expected + unit * scale
        checks[f"{kind} rms"].append(title.check(mine.where, "rms", rms, bound, scale))
        top = float(mine.errors.exact_max)
        bound = 2 * max(float(theirs.errors.error_max), expected) + 2 * unit * top
        checks[f"{kind} max"].append(title.check(mine.where, "max", float(mine.errors.error_max), bound, top))

    for mine, theirs in zip(wholes(seeds), wholes(other), strict=True):
        add("whole", mine, theirs)
    for mine, theirs in zip(blocks(seeds), blocks(other), strict=True):
        add("block", mine, theirs)
    return Report(tuple(_worst(found) for found in checks.values() if found))
