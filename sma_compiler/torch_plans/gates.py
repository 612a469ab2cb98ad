"""Log gates summed along paths, from the start of a chunk.

A path's sum is the difference of two cumulative sums; a gate of -inf is left out of them and remembered as a *cut*:
the first position whose column still lives. So nothing is ever inf - inf, and what is cut off weighs exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sma_compiler.torch_plans.layout import add, apply, choose, exponential, pick, shifted
from sma_compiler.torch_plans.named import Named


@dataclass(frozen=True)
class LogGate:
    """A log gate at every position of the axis `pos` (or static), and which ends of a path hold it (`mask.Gate`)."""

    log: Named
    key_closed: bool
    query_closed: bool


@dataclass(frozen=True)
class Path:
    """Sums of finite log gates from the chunk's start, and cuts, along the axis `pos`.

    ends: the sum up to and including a position. rows, columns: those whose difference rows[i] - columns[j] is the
    path's sum for j < i; a boundary behind position e has ends[e] instead of either.
    end_cuts: the first position (-1: before the chunk) whose column lives at the boundary behind a position.
    row_cuts: the first one that lives for a row at a position.
    """

    ends: Named
    rows: Named
    columns: Named
    end_cuts: Named
    row_cuts: Named

    def each(self, fn: Callable[[Named], Named]) -> Path:
        """A function of all its tensors."""
        return Path(*(fn(x) for x in (self.ends, self.rows, self.columns, self.end_cuts, self.row_cuts)))

    def read(self) -> Named:
        """The weight, in each row, of the state before the chunk."""
        return exponential(choose(apply(_before, self.row_cuts), self.rows, -torch.inf))

    def write(self, last: int | Tensor) -> Named:
        """The weight of each column in the state behind the position `last` (one for each batch row, or for all)."""
        exponent = apply(torch.sub, pick(self.ends, "pos", last, 0), self.columns)
        lives = apply(torch.ge, places(self.ends), pick(self.end_cuts, "pos", last, -1))
        until = apply(torch.le, places(self.ends), _last(last, self.ends))
        return exponential(choose(apply(torch.logical_and, lives, until), exponent, -torch.inf))

    def total(self, last: int | Tensor) -> Named:
        """The log of the weight that the state before the chunk has behind the position `last`."""
        lives = apply(_before, pick(self.end_cuts, "pos", last, -1))
        return choose(lives, pick(self.ends, "pos", last, 0), -torch.inf)

    def pairs(self, first: int) -> Named:
        """The weight of the path between each `row` and `col` at distances >= first, 0 elsewhere.

        At distance 0 it holds unless a gate is open at both ends.
        """
        rows, columns = self.rows.rename("pos", "row"), self.columns.rename("pos", "col")
        lives = apply(torch.ge, triangle(self.ends, first), self.row_cuts.rename("pos", "row"))
        return exponential(choose(lives, apply(torch.sub, rows, columns), -torch.inf))


def places(like: Named) -> Named:
    """The positions along the `pos` of a tensor."""
    return Named(torch.arange(like.size("pos"), device=like.data.device, dtype=torch.int32), ("pos",))


def triangle(like: Named, first: int) -> Named:
    """[row, col]: the column's position at pairs at distance >= first, -2 elsewhere."""
    along = places(like).data
    rows, columns = along[:, None], along[None, :]
    return Named(torch.where(rows - columns >= first, columns, -2), ("row", "col"))


def cumulate(gates: Sequence[LogGate], resets: Named | None, length: int, zero: Named) -> Path | None:
    """Sums and cuts along `pos`, which has this length; None where there is nothing to sum.

    resets: boolean; a reset at t cuts off every column before t, as a gate of -inf does that queries alone hold.
    zero: the number 0 in the gates' dtype.
    """
    if resets is not None and not gates:
        gates = [LogGate(zero, False, True)]
    if not gates:
        return None
    along = Named(torch.arange(length, device=zero.data.device, dtype=torch.int32), ("pos",))
    ends, rows, columns = [], [], []
    end_cuts, row_cuts = [], []
    if resets is not None:
        end_cuts.append(_latest(resets, along, 0))
        row_cuts.append(end_cuts[0])
    for gate in _merged(gates):
        infinite = Named(gate.log.data.isneginf(), gate.log.axes)
        finite = Named(gate.log.data.masked_fill(infinite.data, 0), gate.log.axes)
        sums = _sums(finite, along)
        ends.append(sums)
        rows.append(sums if gate.query_closed else shifted(sums, "pos"))
        columns.append(shifted(sums, "pos") if gate.key_closed else sums)
        cuts = _latest(infinite, along, int(gate.key_closed))
        end_cuts.append(cuts)
        row_cuts.append(cuts if gate.query_closed else shifted(cuts, "pos", -1))
    return Path(add(*ends), add(*rows), add(*columns), _largest(end_cuts), _largest(row_cuts))


def decay(gates: Sequence[LogGate], resets: Named | None, dtype: torch.dtype) -> Named | None:
    """The weight that a state keeps through each position; None: it keeps all."""
    weight = exponential(add(*(gate.log for gate in gates))) if gates else None
    if resets is None:
        return weight
    kept = Named(~resets.data, resets.axes)
    return choose(kept, weight, 0) if weight is not None else kept.to(dtype)


def _merged(gates: Sequence[LogGate]) -> list[LogGate]:
    """Gates with equal ends as one, static ones apart."""
    kinds: dict[tuple[bool, bool, bool], list[Named]] = {}
    for gate in gates:
        kinds.setdefault(("pos" in gate.log.axes, gate.key_closed, gate.query_closed), []).append(gate.log)
    return [LogGate(add(*logs), key, query) for (_, key, query), logs in kinds.items()]


def _sums(finite: Named, along: Named) -> Named:
    if "pos" in finite.axes:
        return Named(finite.data.cumsum(finite.axes.index("pos")), finite.axes)
    return apply(torch.mul, finite, Named((along.data + 1).to(finite.data.dtype), ("pos",)))


def _latest(found: Named, along: Named, beyond: int) -> Named:
    """The latest position at which something was found, plus `beyond`; -1 before the first."""
    marked = choose(found, Named(along.data + beyond, along.axes), -1)
    if "pos" not in found.axes:
        return marked
    return Named(marked.data.cummax(marked.axes.index("pos")).values, marked.axes)


def _largest(cuts: list[Named]) -> Named:
    largest = cuts[0]
    for one in cuts[1:]:
        largest = apply(torch.maximum, largest, one)
    return largest


def _last(last: int | Tensor, like: Named) -> Named:
    if isinstance(last, Tensor):
        return Named(last, ("batch",))
    return Named(torch.full((), last, dtype=torch.int32, device=like.data.device), ())


def _before(cut: Tensor) -> Tensor:
    return cut < 0
