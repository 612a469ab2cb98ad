"""Softmax whose score does not depend on the row (RWKV-4), by streams: sums of exp(score) that never overflow.

The state behind position t is kept in units of exp(M_t), where M_t is the largest log weight that a column has there:
M_t = max(M_{t-1} + g_t, s_t), with s the columns' logs and g the path's. In these units it is an ordinary recurrence
with the decay exp(M_{t-1} + g_t - M_t) and the column weight exp(s_t - M_t), both at most 1 (Beck et al. 2024, xLSTM).
M and all exponents are computed in fp64, since scores of 1e4 and differences of 1e-3 both matter; M is a reference
that cancels, so it is rounded to the dtype of the computation, and has no gradient.

The state of lane n (see `lanes`) is

    S{n}.sums   [batch, batch-like axes, power, value]: numerators, and as the last `value` the denominator; where the
                mask has `value`, [batch, …, side, power, value] with the numerator and the denominator along `side`
    S{n}.top    [batch, batch-like axes]: M, -inf where no column was seen
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from sma_compiler.ir.nodes import Expr
from sma_compiler.mask.nodes import Stream
from sma_compiler.torch_plans.basis import Basis
from sma_compiler.torch_plans.frame import Frame
from sma_compiler.torch_plans.lanes import Preparation, State, groups
from sma_compiler.torch_plans.layout import (
    add,
    apply,
    at,
    choose,
    common,
    contract,
    cut,
    exp2,
    flip,
    merge,
    multiply,
    number,
    order,
    pad,
    pick,
    rename,
    shifted,
    some,
    split,
    summed,
    without,
)
from sma_compiler.torch_plans.named import Named
from sma_compiler.torch_plans.scan import carry, moved
from sma_compiler.torch_plans.streams import over_time
from sma_compiler.torch_plans.walk import stacked, steps

CHUNK = 16
_LOWEST = -(2.0**100)
"""The binary logarithm that stands for -inf where states are carried."""


@dataclass(frozen=True)
class Logs:
    """One lane: natural logarithms in fp64 along `time`, -inf where there is nothing, and its values.

    columns: of each stream's columns, with the smallest distance at which rows see them. row: of the rows.
    through, query, key, both: of the gates that a state passes at a position, and of those of them that a path's query
    end, its key end, or both its ends hold. value: the values, with ones as the last `value` or along `side`.
    narrow: the values had no `value`. valued: the logs have it.
    """

    columns: tuple[tuple[int, Named], ...]
    row: Named
    through: Named
    query: Named
    key: Named
    both: Named
    value: Named
    basis: Basis
    upper: bool
    narrow: bool
    valued: bool

    def each(self, fn: Callable[[Named], Named]) -> Logs:
        """A function of every tensor."""
        return replace(
            self,
            columns=tuple((first, fn(log)) for first, log in self.columns),
            row=fn(self.row),
            through=fn(self.through),
            query=fn(self.query),
            key=fn(self.key),
            both=fn(self.both),
            value=fn(self.value),
        )


@dataclass(frozen=True)
class Carried:
    """A state: `sums` in units of exp(`top`)."""

    sums: Named
    top: Named


@dataclass(frozen=True)
class Weights:
    """The recurrence along `time`: S_t = exp(keep_t) * S_{t-1} + feed_t * value_t in units of exp(`units`_t), and
    y_t = exp(read_t) * S_{t-1} + own_t * value_t in units of exp(`top`_t). keep and read are in fp64."""

    keep: Named
    read: Named
    feed: Named
    own: Named | None
    units: Named
    top: Named
    value: Named
    basis: Basis

    def each(self, fn: Callable[[Named, float], Named]) -> Weights:
        """A function of every tensor that the recurrence needs, and of what it is where nothing happens."""
        return replace(
            self,
            keep=fn(self.keep, 0),
            read=fn(self.read, -torch.inf),
            feed=fn(self.feed, 0),
            own=None if self.own is None else fn(self.own, 0),
            value=fn(self.value, 0),
        )


def run_stabilised(
    plan: str,
    streams: Sequence[Stream],
    column: Named,
    v: Named,
    frame: Frame,
    state: State | None,
    want_state: bool = True,
) -> tuple[Named, Named, Named, dict[str, Tensor]]:
    """Numerator, denominator, top and the state behind: sums over columns of weight * v, and of the weights, are the
    first two times exp(top); top is -inf where a row sees no column.

    plan: `"chunked"`, `"recurrent"`, or `"advance"`: what rows see of the state alone. column: the score of each
    column, over time. The factors of the streams are never negative; they have no turns, delays or contracted axes.
    """
    preparation = Preparation(frame, state, None)
    parts = []
    for place, members in enumerate(groups(streams)):
        logs = _logs([stream for _, stream in members], column, v, preparation)
        before = _before(logs, f"S{place}", frame, state)
        weights = _weigh(logs, before.top, frame.compute)
        # with time reversed, what lies past the end of a row comes first, and adds nothing
        found, after = _RUN[plan](weights, before.sums, replace(frame, lengths=None) if logs.upper else frame)
        part = _parted(logs, found, weights.top)
        parts.append([flip(x, "time") for x in part] if logs.upper else part)
        if not logs.upper:
            top = at(weights.units, "time", frame.length - 1)
            preparation.after[f"S{place}.sums"] = after.view(before.sums.axes).expand(before.sums.data.shape)
            preparation.after[f"S{place}.top"] = top.view(before.top.axes).expand(before.top.data.shape)
    numerator, denominator, top = (over_time(x, frame) for x in _merged(parts))
    return numerator, denominator, top, preparation.after if want_state else {}


def _logs(streams: Sequence[Stream], column: Named, v: Named, preparation: Preparation) -> Logs:
    stream, frame = streams[0], preparation.frame
    zero = Named(torch.zeros(frame.length, dtype=torch.float64, device=frame.device), ("time",))
    valid = frame.valid()

    def total(*logs: Named, gone: float) -> Named:
        found = add(zero, *(log.to(torch.float64) for log in logs))
        return found if valid is None else choose(valid, found, gone)

    def along(exprs: Sequence[Expr]) -> list[Named]:
        return [frame.evaluate.along(expr, frame, log=True) for expr in exprs]

    resets = preparation.resets(stream.segments)
    if resets is not None and stream.side == "upper":
        resets = flip(shifted(flip(resets, "time"), "time", False), "time")
    cuts = [] if resets is None else [apply(lambda c, x: torch.where(c, -torch.inf, x), resets, zero)]
    gates = [(gate, frame.evaluate.gate(gate.log, frame)) for gate in stream.gates]
    columns = tuple((one.first, total(column, *along([*one.col, *one.feed]), gone=-torch.inf)) for one in streams)
    row = total(*along(stream.row), gone=-torch.inf)
    valued = any("value" in x.axes for x in (row, *(log for _, log in (*gates, *columns))))
    logs = Logs(
        columns=columns,
        row=row,
        through=total(*(log for _, log in gates), *cuts, gone=0),
        query=total(*(log for gate, log in gates if gate.query_closed), *cuts, gone=0),
        key=total(*(log for gate, log in gates if gate.key_closed), gone=0),
        both=total(*(log for gate, log in gates if gate.query_closed and gate.key_closed), gone=0),
        value=_with_ones(preparation.masked(v), valued),
        basis=Basis(stream.degree, (), frame.compute),
        upper=stream.side == "upper",
        narrow="value" not in v.axes,
        valued=valued,
    )
    return logs.each(lambda x: flip(x, "time")) if logs.upper else logs


def _with_ones(v: Named, valued: bool) -> Named:
    """The values, and ones: along `side`, or behind the last `value`."""
    if valued or "value" not in v.axes:
        return Named(torch.stack((v.data, torch.ones_like(v.data)), -1), (*v.axes, "side" if valued else "value"))
    place = v.axes.index("value")
    return Named(torch.cat((v.data, torch.ones_like(v.data.narrow(place, 0, 1))), place), v.axes)


def _parted(logs: Logs, found: Named, top: Named) -> list[Named]:
    """Numerator, denominator and top."""
    if logs.valued:
        return [at(found, "side", 0), at(found, "side", 1), top]
    last = found.size("value") - 1
    numerator = at(found, "value", 0) if logs.narrow else cut(found, "value", 0, last)
    return [numerator, at(found, "value", last), top]


def _merged(parts: list[list[Named]]) -> list[Named]:
    """The sums over all lanes."""
    top = parts[0][2]
    for part in parts[1:]:
        top = apply(torch.maximum, top, part[2])
    if len(parts) == 1:
        return parts[0]
    scales = [apply(lambda a, b: (a - _finite(b)).exp(), part[2], top) for part in parts]
    sums = [add(*(multiply(part[n], scale) for part, scale in zip(parts, scales, strict=True))) for n in range(2)]
    return [*sums, top]


def _before(logs: Logs, name: str, frame: Frame, state: State | None) -> Carried:
    """The state before the frame."""
    parts = [logs.through, *(log for _, log in logs.columns)]
    top_axes = without(order(axis for x in parts for axis in (*x.axes, "batch")), "time")
    axes = without(order((*top_axes, *logs.value.axes, *logs.basis.axes)), "time")
    known = {"batch": frame.batch, "power": logs.basis.degree + 1}
    shape = [known[axis] if axis in known else common(x.size(axis) for x in (*parts, logs.value)) for axis in axes]
    if state is not None and not logs.upper:
        return Carried(Named(state[f"{name}.sums"], axes), Named(state[f"{name}.top"], top_axes))
    sizes = [dict(zip(axes, shape, strict=True))[axis] for axis in top_axes]
    sums = torch.zeros(shape, dtype=frame.compute, device=frame.device)
    return Carried(Named(sums, axes), Named(sums.new_full(sizes, -torch.inf), top_axes))


def _weigh(logs: Logs, initial: Named, dtype: torch.dtype) -> Weights:
    """initial: the top of the state before the frame."""
    columns = [(first, add(log, logs.key)) for first, log in logs.columns]
    largest = columns[0][1]
    for _, log in columns[1:]:
        largest = apply(torch.maximum, largest, log)
    axes = (*initial.axes, "time")
    start = initial.data.to(torch.float64).detach()
    scores, gates = (x.view(axes).expand(*start.shape, x.size("time")).detach() for x in (largest, logs.through))
    units = running_top(gates, scores, start).to(dtype)
    before = Named(torch.cat((start[..., None], units.to(torch.float64)[..., :-1]), -1), axes)
    unit = Named(_finite(units.to(torch.float64)), axes)
    keep = apply(torch.sub, add(before, logs.through), unit)
    feed = _exponentials([log for _, log in columns], unit)
    read = add(before, logs.query, logs.row)
    own = [add(log, logs.both, logs.row) for first, log in logs.columns if first == 0 and not logs.basis.degree]
    top = read
    for log in own:
        top = apply(torch.maximum, top, log)
    top = Named(top.data.detach().to(dtype), top.axes)
    reference = Named(_finite(top.data).to(torch.float64), top.axes)
    return Weights(
        keep=keep,
        read=apply(torch.sub, read, reference),
        feed=feed.to(dtype),
        own=_exponentials(own, reference).to(dtype) if own else None,
        units=Named(units, axes),
        top=top,
        value=logs.value,
        basis=logs.basis,
    )


def running_top(gates: Tensor, scores: Tensor, initial: Tensor, depth: int = 0) -> Tensor:
    """M_t = max(M_{t-1} + gates_t, scores_t) along the last dimension, behind an initial M."""
    length = gates.shape[-1]
    if isinstance(length, int) and length <= 2 * CHUNK:
        return _running_top(gates, scores, initial)
    if depth == 2 and not isinstance(length, int):
        return _largest(gates, scores, initial)
    count = -(-length // CHUNK)
    behind = (0, count * CHUNK - length)
    gates = functional.pad(gates, behind).reshape(*gates.shape[:-1], count, CHUNK)
    scores = functional.pad(scores, behind, value=-torch.inf).reshape(gates.shape)
    alone = _running_top(gates, scores, torch.full_like(initial[..., None], -torch.inf))
    sums = gates.cumsum(-1)
    after = running_top(sums[..., -1], alone[..., -1], initial, depth + 1)
    before = torch.cat((initial[..., None], after[..., :-1]), -1)
    return torch.maximum(alone, before[..., None] + sums).flatten(-2)[..., :length]


def _largest(gates: Tensor, scores: Tensor, initial: Tensor) -> Tensor:
    """`running_top` of a few groups, whose number is symbolic, from all pairs of them."""
    places = torch.arange(gates.shape[-1], device=gates.device)
    later = places[:, None] > places
    sums = torch.where(later, gates[..., None], 0).cumsum(-2)
    reached = torch.where(places[:, None] >= places, sums + scores[..., None, :], -torch.inf).amax(-1)
    return torch.maximum(reached, initial[..., None] + gates.cumsum(-1))


def _running_top(gates: Tensor, scores: Tensor, initial: Tensor) -> Tensor:
    top, tops = initial, []
    for gate, score in zip(gates.unbind(-1), scores.unbind(-1), strict=True):
        top = torch.maximum(top + gate, score)
        tops.append(top)
    return torch.stack(tops, -1)


def _walk(weights: Weights, sums: Named, length: int, axis: str, valid: Named | None) -> tuple[Named, Named]:
    """The result at each position of an axis, and the sums behind the last."""
    dtype, degree = sums.data.dtype, weights.basis.degree
    keep = steps(_exponential(weights.keep, dtype), length, axis)
    read = steps(_exponential(weights.read, dtype), length, axis)
    feed, values = steps(weights.feed, length, axis), steps(weights.value, length, axis)
    own, exists = steps(weights.own, length, axis), steps(valid, length, axis)
    pascal = weights.basis.pascal(sums.data.device)
    unit = [Named(torch.eye(degree + 1, dtype=dtype, device=sums.data.device)[0], ("power",))] if degree else []
    results = []
    for step in range(length):
        before = sums if pascal is None else contract(pascal, rename(sums, {"power": "power_from"}), "power_from")
        seen = multiply(read[step], at(before, "power", degree))
        results.append(add(seen, *(multiply(weight, values[step]) for weight in some(own[step]))))
        after = add(multiply(keep[step], before), multiply(feed[step], values[step], *unit))
        here = exists[step]
        sums = after if here is None else apply(torch.where, here, after, sums)
    return stacked(results, axis), sums


def _recurrent(weights: Weights, sums: Named, frame: Frame) -> tuple[Named, Named]:
    """Position by position."""
    return _walk(weights, sums, frame.length, "time", frame.valid() if weights.basis.degree else None)


def _chunked(weights: Weights, sums: Named, frame: Frame) -> tuple[Named, Named]:
    """The positions of all chunks at once, and a scan over chunks."""
    count = -(-frame.length // CHUNK)

    def tile(x: Named, fill: float) -> Named:
        if "time" not in x.axes:
            return x
        return split(pad(x, "time", 0, count * CHUNK - frame.length, fill), "time", "chunk", "pos", CHUNK)

    tiles = weights.each(tile)
    ends = _ends(frame)
    exists = Named(torch.arange(frame.length, device=frame.device) <= ends.data[..., None], (*ends.axes, "time"))
    chunk = count - 1 if frame.lengths is None else torch.div(ends.data, CHUNK, rounding_mode="floor").clamp(min=0)
    zero = Named(torch.zeros(*sums.data.shape, count, dtype=frame.compute, device=frame.device), (*sums.axes, "chunk"))
    moving = tile(exists, False) if weights.basis.degree else None
    inside, added = _walk(tiles, zero, CHUNK, "pos", moving)
    totals = _through(summed(tiles.keep, ("pos",)), frame)
    before = carry(added, totals, weights.basis, CHUNK, sums)
    found = add(inside, _seen(tiles, before, "pos"))
    behind = moved(pick(before, "chunk", chunk, 0), weights.basis, ends.data - chunk * CHUNK + 1, ends.axes)
    after = add(multiply(exp2(pick(totals, "chunk", chunk, 0)), behind), pick(added, "chunk", chunk, 0))
    return cut(merge(found, "chunk", "pos", "time"), "time", 0, frame.length), after


def _advance(weights: Weights, sums: Named, frame: Frame) -> tuple[Named, Named]:
    """What rows see of the sums before the frame, and the sums behind it."""
    steps_on = Named(torch.arange(frame.length, device=frame.device), ("time",))
    ends = _ends(frame)
    later = flip(_passed(flip(weights.keep, "time"), "time"), "time")
    factors = [weights.feed, _exponential(later, frame.compute)]
    factors += some(weights.basis.columns(apply(lambda e, t: (e - t).clamp(min=0), ends, steps_on)))
    added = contract(multiply(*factors), weights.value, "time")
    kept = exp2(_through(summed(weights.keep, ("time",)), frame))
    later_sums = moved(sums, weights.basis, ends.data + 1, ends.axes)
    return _seen(weights, sums, "time"), add(multiply(kept, later_sums), added)


def _seen(weights: Weights, before: Named, axis: str) -> Named:
    """What the rows along an axis see of the sums before it."""
    read = add(_passed(weights.keep, axis), weights.read)
    weight = _exponential(read, before.data.dtype)
    places = Named(torch.arange(1, read.size(axis) + 1, device=read.data.device), (axis,))
    rows = weights.basis.rows(places)
    return multiply(weight, before) if rows is None else multiply(weight, contract(rows, before, "power"))


def _passed(logs: Named, axis: str) -> Named:
    """The sum of what comes before each entry of an axis."""
    return shifted(Named(logs.data.cumsum(logs.axes.index(axis)), logs.axes), axis)


def _through(logs: Named, frame: Frame) -> Named:
    """Binary logarithms, finite, for `scan.carry`."""
    return Named((logs.data * math.log2(math.e)).clamp(min=_LOWEST).to(frame.compute), logs.axes)


def _ends(frame: Frame) -> Named:
    """The last position of each row; -1: none."""
    if frame.lengths is not None:
        return Named(frame.lengths - 1, ("batch",))
    return number(frame.length - 1, torch.int64, frame.device)


def _exponentials(logs: Sequence[Named], reference: Named) -> Named:
    """The sum of exp(log - reference)."""
    return add(*(apply(lambda a, b: (a - b).exp(), log, reference) for log in logs))


def _exponential(log: Named, dtype: torch.dtype) -> Named:
    return Named(log.data.exp().to(dtype), log.axes)


def _finite(x: Tensor) -> Tensor:
    return torch.where(x.isneginf(), 0, x)


_RUN = {"recurrent": _recurrent, "chunked": _chunked, "advance": _advance}
