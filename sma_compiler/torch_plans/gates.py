"""Log gates summed along paths, from the start of a chunk.

A path's sum is the difference of two cumulative sums. A gate of -inf counts 0 in them; it is counted apart, as one
*cut*, and a path that holds a cut weighs 2 ** `CUT`, which is exactly 0. So nothing is ever inf - inf.
Sums are binary logarithms: torch's exp2 is fast for every argument, its exp is not where the result underflows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sma_compiler.torch_plans.layout import add, add_into, apply, exp2, flip, pick, shifted, summed
from sma_compiler.torch_plans.named import Named

CUT = -(2.0**20)
"""The binary logarithm that stands for -inf, and the highest log gate that is a cut. Its multiples are exact."""
UNIT = 16.0
"""Multiples of it, down to a chunk of cuts, are exact in fp32, whatever the order in which they are added."""


@dataclass(frozen=True)
class LogGate:
    """A log gate at every position of the axis `pos` (or static), and which ends of a path hold it (`mask.Gate`).

    exact: the nearest multiple of `UNIT` is summed with the cuts, so that a path behind a gate of -1e3 is no difference
    of sums that hold it.
    """

    log: Named
    key_closed: bool
    query_closed: bool
    exact: bool = False


@dataclass(frozen=True)
class Sums:
    """A sum from the chunk's start: of finite gates, and of `CUT` for each gate that cuts (and of exact multiples)."""

    finite: Named
    cuts: Named

    def each(self, fn: Callable[[Named], Named]) -> Sums:
        """A function of both."""
        return Sums(fn(self.finite), fn(self.cuts))

    def since(self, earlier: Sums) -> Named:
        """The sum between an earlier place and this one."""
        finite, cuts = (Named(-x.data, x.axes) for x in (earlier.finite, earlier.cuts))
        return add_into(add(self.finite, finite), add(self.cuts, cuts))

    def whole(self) -> Named:
        """The sum from the chunk's start."""
        return add(self.finite, self.cuts)


@dataclass(frozen=True)
class Path:
    """Sums along the axis `pos`, which they have.

    ends: up to and including a position. rows, columns: rows[i] since columns[j] is the path's sum for j < i.
    A boundary behind position e has ends[e] in place of either. rests: from each column to the end of the chunk, added
    up from there, so that a sum of moderate gates is no difference of large ones; None where all gates are static.
    """

    ends: Sums
    rows: Sums
    columns: Sums
    rests: Sums | None

    def each(self, fn: Callable[[Named], Named]) -> Path:
        """A function of all tensors."""
        rests = None if self.rests is None else self.rests.each(fn)
        return Path(self.ends.each(fn), self.rows.each(fn), self.columns.each(fn), rests)

    def read(self) -> Named:
        """The weight, in each row, of the state before the chunk."""
        return exp2(self.rows.whole())

    def write(self, last: int | Tensor) -> Named:
        """The weight of each column in the state behind the position `last` (one for each batch row, or for all).

        The chunk's gates behind `last` are all 0.
        """
        if self.rests is not None:
            exponent = self.rests.whole()
        else:
            exponent = self.ends.each(lambda x: pick(x, "pos", last, 0)).since(self.columns)
        if isinstance(last, int) and last == self.ends.finite.size("pos") - 1:
            return exp2(exponent)
        until = Named(
            torch.as_tensor(last, device=exponent.data.device), ("batch",) if isinstance(last, Tensor) else ()
        )
        later = apply(torch.gt, places(self.ends.finite), until)
        return exp2(apply(lambda x, gone: torch.where(gone, -torch.inf, x), exponent, later))

    def total(self, last: int | Tensor) -> Named:
        """The binary log of the weight that the state before the chunk has behind the position `last`."""
        return self.ends.each(lambda x: pick(x, "pos", last, 0)).whole()

    def pairs(self, first: int) -> Named:
        """The weight of the path between each `row` and `col` at distances >= first, 0 elsewhere.

        At distance 0 it holds unless a gate is open at both ends.
        """
        rows = self.rows.each(lambda x: x.rename("pos", "row"))
        columns = self.columns.each(lambda x: x.rename("pos", "col"))
        exponent = add_into(rows.since(columns), triangle(self.ends.finite, first))
        return Named(exponent.data.exp2_(), exponent.axes)


def places(like: Named) -> Named:
    """The positions along the `pos` of a tensor."""
    return Named(torch.arange(like.size("pos"), device=like.data.device), ("pos",))


def triangle(like: Named, first: int) -> Named:
    """[row, col] for the `pos` of a tensor: 0 at distances row - col >= first, -inf elsewhere."""
    size = like.size("pos")
    full = torch.full((size, size), -torch.inf, dtype=like.data.dtype, device=like.data.device)
    return Named(full.triu(1 - first), ("row", "col"))


def cumulate(gates: Sequence[LogGate], resets: Named | None, length: int, zero: Named) -> Path | None:
    """Sums along `pos`, which has this length; None where there is nothing to sum.

    resets: boolean; a reset at t cuts off every column before t, as a gate of -inf does that queries alone hold.
    zero: the number 0 in the gates' dtype.
    """
    steps = [(*_parts(gate), gate) for gate in _merged(gates)]
    if resets is not None:
        cuts = apply(lambda gone, none: torch.where(gone, CUT, none), resets, zero)
        steps.append((zero, cuts, LogGate(zero, False, True)))
    if not steps:
        return None
    ends, rows, columns, rests = [], [], [], []
    for finite, cuts, gate in steps:
        sums = Sums(_cumulative(finite, length), _cumulative(cuts, length))
        before = sums.each(lambda x: shifted(x, "pos"))
        ends.append(sums)
        rows.append(sums if gate.query_closed else before)
        columns.append(before if gate.key_closed else sums)
        rests.append(Sums(*(_remaining(x, gate.key_closed) for x in (finite, cuts))))
    moving = all("pos" in gate.log.axes for gate in gates)
    return Path(_total(ends), _total(rows), _total(columns), _total(rests) if moving else None)


def passed(gates: Sequence[LogGate], resets: Named | None, length: int, dtype: torch.dtype) -> Named | None:
    """The binary log of what a state keeps through all positions, finite; None: everything."""
    logs = [add(*_parts(gate)) for gate in gates]
    terms = [summed(x, ("pos",)) if "pos" in x.axes else Named(x.data * length, x.axes) for x in logs]
    if resets is not None:
        terms.append(summed(Named(resets.data.to(dtype) * CUT, resets.axes), ("pos",)))
    return add(*terms) if terms else None


def decay(gates: Sequence[LogGate], resets: Named | None, dtype: torch.dtype) -> Named | None:
    """The weight that a state keeps through each position; None: it keeps all."""
    weight = exp2(_binary(add(*(gate.log for gate in gates)))) if gates else None
    if resets is None:
        return weight
    kept = Named(~resets.data, resets.axes).to(dtype)
    return apply(torch.mul, kept, weight) if weight is not None else kept


def _merged(gates: Sequence[LogGate]) -> list[LogGate]:
    """Gates with equal ends as one, static ones apart."""
    kinds: dict[tuple[bool, bool, bool, bool], list[Named]] = {}
    for gate in gates:
        kinds.setdefault(("pos" in gate.log.axes, gate.key_closed, gate.query_closed, gate.exact), []).append(gate.log)
    return [LogGate(add(*logs), *ends) for (_, *ends), logs in kinds.items()]


def _binary(log: Named) -> Named:
    return Named(log.data * math.log2(math.e), log.axes)


def _parts(gate: LogGate) -> tuple[Named, Named]:
    """The binary logarithm as what is summed with rounding, which has the gradient, and what is summed without."""
    axes, cut = gate.log.axes, gate.log.data <= CUT
    finite = _binary(Named(torch.where(cut, 0, gate.log.data), axes)).data
    cuts = cut.to(finite.dtype) * CUT
    if gate.exact:
        whole = (finite.detach() / UNIT).round() * UNIT
        finite, cuts = finite - whole, cuts + whole
    return Named(finite, axes), Named(cuts, axes)


def _cumulative(x: Named, length: int) -> Named:
    if "pos" in x.axes:
        return Named(x.data.cumsum(x.axes.index("pos")), x.axes)
    count = torch.arange(1, length + 1, dtype=x.data.dtype, device=x.data.device)
    return apply(torch.mul, x, Named(count, ("pos",)))


def _remaining(x: Named, own: bool) -> Named:
    """The sum of what comes behind each position, with its own entry or without; a static x is 0."""
    if "pos" not in x.axes:
        return x
    turned = flip(x, "pos")
    sums = Named(turned.data.cumsum(turned.axes.index("pos")), turned.axes)
    return flip(sums if own else shifted(sums, "pos"), "pos")


def _total(sums: list[Sums]) -> Sums:
    return Sums(add(*(one.finite for one in sums)), add(*(one.cuts for one in sums)))
