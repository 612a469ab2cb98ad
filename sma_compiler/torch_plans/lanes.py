"""Streams as tensors: each group of streams that one state can carry, its factors evaluated and multiplied.

Streams that differ in their columns only share a state: they are one *lane*. The state of a contraction holds, for
its lane number n in the order of first appearance,

    S{n}            [batch, batch-like axes, contracted axes, power, turn, value] in the order of `layout`, without
                    the axes that no column, gate or rate of the lane has; in the dtype of the computation;
                    `power` and `turn` as in `basis`, turns about the sequence's origin
    segment{n}      [batch, ...] int64: the last position's id in the contraction's n-th segment tensor
    tail{n}.key     [batch, delay, ...]: the factors with contracted axes, and
    tail{n}.value   the value and all other factors, of the last `delay` positions, for the n-th stream
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sma_compiler.ir.graph import Graph
from sma_compiler.ir.nodes import Expr, Kind
from sma_compiler.mask.nodes import Stream
from sma_compiler.torch_plans.basis import Basis
from sma_compiler.torch_plans.frame import Frame
from sma_compiler.torch_plans.gates import LogGate
from sma_compiler.torch_plans.layout import (
    apply,
    choose,
    common,
    flip,
    multiply,
    number,
    order,
    pick,
    product,
    shifted,
    summed,
    without,
)
from sma_compiler.torch_plans.named import Named

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Column:
    """What a stream feeds a state with: `keys`, the factors with contracted axes, and `value`, all others.

    first: the smallest distance at which rows see it. delay: how many positions earlier it was.
    One of `value` and the `keys` has `time`. Where the value itself is still unknown (in solve), `value` are its
    factors before the delay, `fed` those after it, and `tail` names what was held before the frame.
    """

    first: int
    delay: int
    keys: tuple[Named, ...]
    value: Named
    fed: Named | None = None
    tail: str = ""


@dataclass(frozen=True)
class Written:
    """A stream's column factors: `keys` and `fed` at the column's position, `held` before the delay, the value too."""

    stream: Stream
    keys: list[Named]
    value: Named | None
    held: list[Named]
    fed: list[Named]
    tail: str


@dataclass(frozen=True)
class Lane:
    """Streams of one side that share rows, path and kernel; upper ones with time reversed.

    inner: the contracted axes that state and row share. rows: the row factors that have some of them.
    outer: the product of all others, for the result. resets: where segments change.
    """

    number: int
    side: str
    inner: tuple[str, ...]
    rows: tuple[Named, ...]
    outer: Named | None
    gates: tuple[LogGate, ...]
    resets: Named | None
    basis: Basis
    columns: tuple[Column, ...]

    @property
    def name(self) -> str:
        """The state's name."""
        return f"S{self.number}"

    def state_axes(self) -> tuple[str, ...]:
        """The axes of the state."""
        return order(("batch", *self.basis.axes, *without(_axes(self.parts()), "time", "pos")))

    def state_shape(self, frame: Frame) -> list[int]:
        """The sizes of `state_axes`."""
        known = {"batch": frame.batch, **self.basis.sizes}
        return [known[axis] if axis in known else self.size(axis) for axis in self.state_axes()]

    def size(self, axis: str) -> int:
        """The size of an axis of the state."""
        return common(x.size(axis) for x in self.parts())

    def each(self, fn: Callable[[Named], Named]) -> Lane:
        """The lane with a function of every tensor but `outer`."""
        return replace(
            self,
            rows=tuple(map(fn, self.rows)),
            gates=tuple(replace(gate, log=fn(gate.log)) for gate in self.gates),
            resets=fn(self.resets) if self.resets is not None else None,
            columns=tuple(
                replace(
                    column,
                    keys=tuple(map(fn, column.keys)),
                    value=fn(column.value),
                    fed=None if column.fed is None else fn(column.fed),
                )
                for column in self.columns
            ),
        )

    def parts(self) -> list[Named]:
        """All that the state's axes come from."""
        logs = [gate.log for gate in self.gates] + [rate for _, rate in self.basis.turns]
        resets = [self.resets] if self.resets is not None else []
        return [*logs, *resets, *(x for column in self.columns for x in (*column.keys, column.value))]


class Preparation:
    """Evaluates the factors of a contraction's streams, once each, and says what the next call must know of them."""

    def __init__(self, frame: Frame, state: State | None, key: int | None) -> None:
        self.frame = frame
        self.state = state
        self.key = key
        self.after: dict[str, Tensor] = {}
        self._valid = frame.valid()
        self._changes: dict[Expr, Named] = {}
        self._graph = Graph()

    def lanes(self, streams: Sequence[Stream], q: Named, k: Named, v: Named | None) -> list[Lane]:
        """The lanes of some streams, in the order in which they appear. v: None where it is still unknown."""
        return [self._lane(place, members, q, k, v) for place, members in enumerate(groups(streams))]

    def _lane(self, place: int, members: list[tuple[int, Stream]], q: Named, k: Named, v: Named | None) -> Lane:
        stream = members[0][1]
        contracted = (*stream.contracted, *(("key",) if self.key is not None else ()))
        rows = self._factors(stream.row, [q])
        gates = tuple(self._gate(gate.log, gate.key_closed, gate.query_closed) for gate in stream.gates)
        rates = tuple((turn.fn, self.frame.evaluate.tensor(turn.rate, wide=True)) for turn in stream.turns)
        written = [self._written(which, one, contracted, k, v) for which, one in members]
        keyed = _axes([x for column in written for x in column.keys])
        carried = _axes([*(gate.log for gate in gates), *(rate for _, rate in rates)])
        read = _axes(rows)
        inner = tuple(axis for axis in contracted if axis in carried or (axis in read and axis in keyed))
        row, rest = _apart(rows, contracted)
        row, outer = _sum_alone(row, rest, contracted, inner)
        lane = Lane(
            number=place,
            side=stream.side,
            inner=inner,
            rows=tuple(row),
            outer=product(*outer),
            gates=gates,
            resets=self.resets(stream.segments),
            basis=Basis(stream.degree, rates, self.frame.compute),
            columns=tuple(
                self._column(column, contracted, inner, set(contracted) - read - carried) for column in written
            ),
        )
        return _reversed(lane) if stream.side == "upper" else lane

    def _column(self, written: Written, contracted: Sequence[str], inner: Sequence[str], unread: set[str]) -> Column:
        repeats = self._repeats(unread - _axes(written.keys))
        keys, rest = _sum_alone(written.keys, [*written.fed, *repeats], contracted, inner)
        column = Column(written.stream.first, written.stream.delay, tuple(keys), self._one())
        if written.value is not None:
            return replace(column, value=self._over_time(keys, [written.value, *rest]))
        value = self._over_time([], written.held)
        return replace(column, value=value, fed=product(*rest), tail=written.tail)

    def _one(self) -> Named:
        return number(1, self.frame.compute, self.frame.device)

    def _repeats(self, missing: set[str]) -> list[Named]:
        """The number of entries of contracted axes that nothing has."""
        sizes = [self.key if axis == "key" else self.frame.evaluate.axis_size(axis) for axis in missing]
        repeats = math.prod(size for size in sizes if size is not None)
        return [number(repeats, self.frame.compute, self.frame.device)] if repeats != 1 else []

    def _over_time(self, keys: list[Named], values: list[Named]) -> Named:
        """The product of the values, with `time` if no key has it."""
        value = multiply(*values) if values else self._one()
        if any("time" in x.axes for x in (value, *keys)):
            return value
        if self._valid is not None:
            return choose(self._valid, value, 0)
        return Named(value.data.expand(self.frame.length, *value.data.shape), ("time", *value.axes))

    def _factors(self, exprs: Sequence[Expr], tensors: Sequence[Named]) -> list[Named]:
        """Some factors at the frame's positions, 0 past the end of a row; booleans select from all others."""
        condition: Expr | None = None
        for expr in exprs:
            if expr.kind is Kind.BOOL:
                condition = expr if condition is None else self._graph.apply("mul", condition, expr)
        real = [expr for expr in exprs if expr.kind is not Kind.BOOL]
        if condition is not None:
            real = [self._graph.apply("mul", condition, expr) for expr in real] or [condition]
        return [self.masked(x) for x in (*tensors, *map(self.frame.along, real))]

    def masked(self, x: Named) -> Named:
        """x in the dtype of the computation, 0 past the end of a row."""
        x = x.to(self.frame.compute)
        return choose(self._valid, x, 0) if self._valid is not None and "time" in x.axes else x

    def _gate(self, log: Expr, key_closed: bool, query_closed: bool) -> LogGate:
        return LogGate(self.masked(self.frame.evaluate.gate(log, self.frame)), key_closed, query_closed)

    def _written(self, which: int, stream: Stream, contracted: tuple[str, ...], k: Named, v: Named | None) -> Written:
        keys, held = _apart(self._factors(stream.col, [k]), contracted)
        more, fed = _apart(self._factors(stream.feed, []), contracted)
        if stream.delay and keys:
            keys = [self.delayed(multiply(*keys), stream.delay, f"tail{which}.key")]
        value = None if v is None else multiply(self.masked(v), *held)
        if stream.delay and value is not None:
            value = self.delayed(self._over_time([], [value]), stream.delay, f"tail{which}.value")
        return Written(stream, [*keys, *more], value, held, fed, f"tail{which}.value")

    def delayed(self, x: Named, delay: int, name: str) -> Named:
        """x of `delay` positions earlier, 0 before the sequence starts; keeps what the next call needs of it."""
        if "time" not in x.axes:
            return x
        axes = order((*x.axes, "batch", "time"))
        axes = ("batch", "time", *without(axes, "batch", "time"))
        data = x.view(axes).expand(self.frame.batch, *(x.size(axis) for axis in axes[1:]))
        shape = (self.frame.batch, delay, *data.shape[2:])
        tail = data.new_zeros(shape) if self.state is None else self.state[name]
        whole = torch.cat((tail, data), 1)
        if self.frame.lengths is None:
            self.after[name] = whole.narrow(1, self.frame.length, delay)
        else:
            index = self.frame.lengths[:, None] + torch.arange(delay, device=data.device)
            index = index.view(*index.shape, *(1,) * (data.dim() - 2)).expand(shape)
            self.after[name] = whole.gather(1, index)
        return self.masked(Named(whole.narrow(1, 0, self.frame.length), axes))

    def resets(self, segments: Sequence[Expr]) -> Named | None:
        """Where any of the segment tensors differs from the position before; nowhere past the end of a row."""
        resets: Named | None = None
        for expr in segments:
            if expr not in self._changes:
                self._changes[expr] = self._change(expr, f"segment{len(self._changes)}")
            change = self._changes[expr]
            resets = change if resets is None else apply(torch.logical_or, resets, change)
        return resets

    def _change(self, expr: Expr, name: str) -> Named:
        found = self.frame.along(expr)
        axes = ("batch", "time", *without(order(found.axes), "batch", "time"))
        ids = found.view(axes).to(torch.int64)
        ids = ids.expand(self.frame.batch, self.frame.length, *ids.shape[2:])
        before = ids[:, 0] if self.state is None else self.state[name]
        earlier = torch.cat((before[:, None], ids[:, :-1]), 1)
        if self.frame.lengths is None:
            self.after[name] = ids[:, -1]
        else:
            last = pick(Named(ids, axes), "time", self.frame.lengths - 1, 0).data
            some = self.frame.lengths.view(-1, *(1,) * (last.dim() - 1)) > 0
            self.after[name] = torch.where(some, last, before)
        change = Named(ids != earlier, axes)
        return change if self._valid is None else apply(torch.logical_and, self._valid, change)


def groups(streams: Sequence[Stream]) -> list[list[tuple[int, Stream]]]:
    """Streams that share a state, each with its place, in the order in which they appear."""
    found: dict[tuple[object, ...], list[tuple[int, Stream]]] = {}
    for place, stream in enumerate(streams):
        alike = (stream.side, stream.row, stream.gates, stream.segments, stream.degree, stream.turns)
        found.setdefault((*alike, stream.contracted), []).append((place, stream))
    return list(found.values())


def _axes(tensors: Sequence[Named]) -> set[str]:
    return {axis for x in tensors for axis in x.axes}


def _apart(factors: Sequence[Named], contracted: Sequence[str]) -> tuple[list[Named], list[Named]]:
    """Factors with contracted axes, and the others."""
    chosen = [x for x in factors if set(x.axes) & set(contracted)]
    return chosen, [x for x in factors if not set(x.axes) & set(contracted)]


def _sum_alone(
    keyed: list[Named], rest: list[Named], contracted: Sequence[str], inner: Sequence[str]
) -> tuple[list[Named], list[Named]]:
    """The same factors with the contracted axes summed that are not `inner`."""
    alone = [axis for axis in contracted if axis not in inner and axis in _axes(keyed)]
    if not alone:
        return keyed, rest
    more, plain = _apart([summed(multiply(*keyed), alone)], inner)
    return more, [*plain, *rest]


def _reversed(lane: Lane) -> Lane:
    """The lane with time reversed, all but `outer`; a reset then lies at the other of the two ids' positions."""
    turned = lane.each(lambda x: flip(x, "time"))
    resets = shifted(turned.resets, "time", False) if turned.resets is not None else None
    return replace(turned, resets=resets)
