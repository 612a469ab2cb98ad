"""Evaluates masks at pairs of positions.

The positions lie on a line: what a cache holds, then the new ones, in time order. Rows (`i`) and columns (`j`) are
picked from it; a path sums over the line.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from sma_compiler.ir.nodes import At, Expr, Kind, Levels, MaskProduct, PathSum, Position
from sma_compiler.torch_plans.evaluate import Evaluator, positions
from sma_compiler.torch_plans.frame import Frame
from sma_compiler.torch_plans.functions import is_infinite
from sma_compiler.torch_plans.named import Named, aligned
from sma_compiler.torch_plans.named_ops import contract, cut, look_up, select, spread
from sma_compiler.torch_plans.scope import Mode, Scope


@dataclass(frozen=True)
class Line:
    """Positions in time order, along the axis `time`.

    length: how many. new: the index of the first new one. places: [batch, time] or [time] int64, absolute; new ones
    follow each other, and so do held ones. exists: [batch, time], false at empty slots and past the end of a row;
    None: everywhere. held: the time tensors that the cache holds, each over the whole line.
    """

    length: int
    new: int
    places: Named
    exists: Named | None
    held: Mapping[Expr, Named] = field(default_factory=dict)


def fresh_line(frame: Frame) -> Line:
    """The new positions alone."""
    return Line(frame.length, 0, positions(frame.start, frame.length, frame.device), frame.valid())


class Points(ABC):
    """Positions picked from a line, and the axis that they are along."""

    axis: str

    @property
    @abstractmethod
    def size(self) -> int:
        """How many there are along `axis`."""

    @abstractmethod
    def take(self, x: Named, shift: int = 0) -> Named:
        """Entries at the points' indices + shift of a tensor over the line; 0 outside it."""

    @abstractmethod
    def places(self, line: Line) -> Named:
        """The absolute positions."""

    @abstractmethod
    def exists(self, line: Line) -> Named | None:
        """Which of them are on the line and exist there; None: all."""


@dataclass(frozen=True)
class Run(Points):
    """The indices start .. stop - 1, all on the line."""

    axis: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def take(self, x: Named, shift: int = 0) -> Named:
        return cut(x, "time", self.start + shift, self.stop + shift).rename("time", self.axis)

    def places(self, line: Line) -> Named:
        return self.take(line.places)

    def exists(self, line: Line) -> Named | None:
        return None if line.exists is None else self.take(line.exists)


@dataclass(frozen=True)
class Offsets(Points):
    """The indices row - hi .. row - lo of each row start .. stop - 1: [rows, axis], rows under their own axis."""

    row_axis: str
    axis: str
    start: int
    stop: int
    lo: int
    hi: int

    @property
    def size(self) -> int:
        return self.hi - self.lo + 1

    def take(self, x: Named, shift: int = 0) -> Named:
        if "time" not in x.axes:
            return x
        at, length = x.axes.index("time"), x.size("time")
        first, last = self.start - self.hi + shift, self.stop - self.lo + shift
        below, above = max(0, -first), max(0, last - length)
        widths = [0, 0] * (len(x.axes) - 1 - at) + [below, above]
        padded = functional.pad(x.data, widths) if below or above else x.data
        rows = self.stop - self.start
        taken = [padded.narrow(at, first + below + step, rows) for step in range(self.size)]
        return Named(torch.stack(taken, at + 1), (*x.axes[:at], self.row_axis, self.axis, *x.axes[at + 1 :]))

    def places(self, line: Line) -> Named:
        rows = Run(self.row_axis, self.start, self.stop).take(line.places)
        back = self.hi - torch.arange(self.size, device=rows.data.device)
        return Named(rows.data[..., None] - back, (*rows.axes, self.axis))

    def exists(self, line: Line) -> Named | None:
        everywhere = Named(torch.ones(line.length, dtype=torch.bool, device=line.places.data.device), ("time",))
        return self.take(everywhere if line.exists is None else line.exists)


class OnLine(Scope):
    """Where one letter runs over all of a line: the gates of paths."""

    def __init__(self, evaluator: Evaluator, line: Line) -> None:
        super().__init__(evaluator.dtype, evaluator.device, evaluator.traits)
        self.evaluator = evaluator
        self.line = line

    def axis_size(self, axis: str) -> int:
        return self.evaluator.axis_size(axis)

    def leaf(self, node: Expr, mode: Mode) -> Named | None:
        match node:
            case _ if not node.positions:
                return self.evaluator.value(node, mode)
            case At(x=x):
                return _held(self.evaluator, self.line, x, mode)[0]
            case Position():
                return self.line.places
        return None


def _held(evaluator: Evaluator, line: Line, x: Expr, mode: Mode) -> tuple[Named, int]:
    """A tensor over the line (in the dtype that `mode` asks for), and the index on the line of its first entry."""
    if line.new == 0:
        return evaluator.limit(x, mode), 0
    if x not in line.held:
        return evaluator.limit(x, mode), line.new
    found = line.held[x]
    if x.kind is Kind.REAL:
        found = found.to(torch.float64 if mode is Mode.WIDE else evaluator.dtype)
    return found, 0


class Sums:
    """Cumulative sums of the gates of paths over one line, each made once."""

    def __init__(self, evaluator: Evaluator, line: Line) -> None:
        self._scope = OnLine(evaluator, line)
        self._line = line
        self._made: dict[tuple[Expr, Mode], tuple[Named, Named | None]] = {}

    def of(self, gate: Expr, mode: Mode) -> tuple[Named, Named | None]:
        """Entry n is the sum of the first n gates, in fp64 and without those that are -inf, and how many of these
        there are (None: the gates are integers). A static gate comes back as it is.
        """
        if (gate, mode) not in self._made:
            self._made[gate, mode] = self._sums(self._scope.limit(gate, mode))
        return self._made[gate, mode]

    def _sums(self, gate: Named) -> tuple[Named, Named | None]:
        if "time" not in gate.axes:
            return gate, None
        if self._line.exists is not None:
            gate = select(self._line.exists, gate, 0)
        if not gate.data.is_floating_point():
            return _from_zero(gate.to(torch.int64)), None
        cuts = is_infinite(gate.data)
        finite = torch.where(cuts, 0, gate.data).to(torch.float64)
        return _from_zero(Named(finite, gate.axes)), _from_zero(Named(cuts.to(torch.int32), gate.axes))


def _from_zero(x: Named) -> Named:
    at = x.axes.index("time")
    widths = [0, 0] * (len(x.axes) - 1 - at) + [1, 0]
    return Named(functional.pad(x.data.cumsum(at, dtype=x.data.dtype), widths), x.axes)


class Pairs(Scope):
    """Where `i` and `j` are points of a line; a value has the points' axes in place of `time`."""

    def __init__(self, evaluator: Evaluator, line: Line, rows: Points, columns: Points, sums: Sums) -> None:
        super().__init__(evaluator.dtype, evaluator.device, evaluator.traits)
        self.evaluator = evaluator
        self.line = line
        self.points = {"i": rows, "j": columns}
        self._sums = sums

    def axis_size(self, axis: str) -> int:
        return self.evaluator.axis_size(axis)

    def leaf(self, node: Expr, mode: Mode) -> Named | None:
        match node:
            case _ if not node.positions:
                return self.evaluator.value(node, mode)
            case At(x=x, position=position):
                if mode is Mode.LOG and self.line.new:
                    return None
                return self.at(x, position, mode)
            case Position(name=name):
                return self.points[name].places(self.line)
            case PathSum():
                return self._path(node, mode)
            case Levels():
                return self._levels(node)
            case MaskProduct():
                return self._product(node)
        return None

    def at(self, x: Expr, letter: str, mode: Mode = Mode.PLAIN) -> Named:
        """x[i] or x[j]."""
        value, origin = _held(self.evaluator, self.line, x, mode)
        return self.points[letter].take(value, -origin)

    def mask(self, expr: Expr) -> Named:
        """The mask, 0 (false) in columns that do not exist."""
        return self._existing(self.value(expr), 0)

    def log_mask(self, expr: Expr) -> Named:
        """The logarithm of a mask that is never negative, -inf where it is 0 and in columns that do not exist."""
        return self._existing(self.value(expr, Mode.LOG), -torch.inf)

    def _existing(self, x: Named, other: float) -> Named:
        exists = self.points["j"].exists(self.line)
        return x if exists is None else select(exists, x, other)

    def _path(self, node: PathSum, mode: Mode) -> Named:
        gate, cuts = self._sums.of(node.gate, mode)
        start, end = self.points[node.start], self.points[node.end]
        steps = self._difference(end.places(self.line), start.places(self.line))
        count = Named(steps.data - 1 + node.start_closed + node.end_closed, steps.axes)
        nonempty = Named(count.data > 0, count.axes)
        dtype = torch.int64 if node.kind is not Kind.REAL else torch.float64 if mode is Mode.WIDE else self.dtype
        if "time" not in gate.axes:
            axes, (each, number) = aligned(gate.to(dtype), count)
            return select(nonempty, Named(each * number, axes), 0)
        first, last = int(not node.start_closed), int(node.end_closed)
        total = self._difference(end.take(gate, last), start.take(gate, first)).to(dtype)
        if cuts is not None:
            axes, (until, since) = aligned(end.take(cuts, last), start.take(cuts, first))
            total = select(Named(until == since, axes), total, -torch.inf)
        return select(nonempty, total, 0)

    def _difference(self, left: Named, right: Named) -> Named:
        axes, (a, b) = aligned(left, right)
        return Named(a - b, axes)

    def _levels(self, node: Levels) -> Named:
        row, column = (self.points[letter].places(self.line) for letter in ("ij" if node.row == "i" else "ji"))
        weights = self.at(node.weights, node.row)
        axes, (rows, columns) = aligned(row, column)
        level = Named(bit_length(rows ^ columns, weights.size("level")), axes)
        return select(Named(columns <= rows, axes), look_up(weights, "level", level), 0)

    def _product(self, node: MaskProduct) -> Named:
        """A chain of products from left to right, over all positions of the line in between."""
        factors: list[Expr] = []
        left: Expr = node
        while isinstance(left, MaskProduct):
            factors.append(left.right)
            left = left.left
        dtype = torch.int64 if node.kind is not Kind.REAL else self.dtype
        rows, columns = self.points["i"], self.points["j"]
        inner, outer = f"({rows.axis}{columns.axis})", f"<{rows.axis}{columns.axis}>"
        total = self._factor(left, rows, Run(inner, 0, self.line.length)).to(dtype)
        for later in reversed(range(len(factors))):
            factor, ends = factors[later], columns if later == 0 else Run(outer, 0, self.line.length)
            one = self._factor(factor, Run(inner, 0, self.line.length), ends).to(dtype)
            total = contract(total, one, inner).rename(outer, inner)
        return total

    def _factor(self, mask: Expr, rows: Points, columns: Points) -> Named:
        found = Pairs(self.evaluator, self.line, rows, columns, self._sums).mask(mask)
        for points in (rows, columns):
            if isinstance(points, Run):  # a sum over a missing axis would count its entries once
                found = spread(found, points.axis, points.size)
        return found


def bit_length(x: Tensor, most: int) -> Tensor:
    """The bit length of integers x >= 0, or `most` where it is larger."""
    length = torch.zeros_like(x)
    for power in range(most):
        length = length + (x >= 2**power)
    return length
