"""The support of a mask as a pair of monotone bounds: row i sees the columns from lo(i) up to, without it, hi(i).

Both bounds never fall from row to row. So the columns that a tile of rows sees lie between the lower bound of its first
row and the upper one of its last, and those between the lower bound of its last row and the upper one of its first are
seen by every row: their tiles need no mask. Seen from the columns the same holds with the inverse bounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from sma_compiler.ir.graph import Graph
from sma_compiler.ir.nodes import Apply, At, Const, Expr, Kind, MaskTimes, Param, Position, Size, postorder
from sma_compiler.mask.algebra import constant, is_number
from sma_compiler.mask.elementary import Shift as Delay
from sma_compiler.mask.elementary import Sum, elementary
from sma_compiler.mask.guards import Guard

T = TypeVar("T")


@dataclass(frozen=True)
class Shift:
    """The position plus a static integer."""

    by: Expr


@dataclass(frozen=True)
class Fixed:
    """The static position `at`, counted from the start of the sequence."""

    at: Expr


@dataclass(frozen=True)
class Step:
    """The start of the sequence before the static position `at`, its end from there on: the inverse of `Fixed`."""

    at: Expr


@dataclass(frozen=True)
class Run:
    """Where the run of equal ids that holds the position begins, or where it ends. turns: see `Turns`."""

    turns: Turns
    end: bool


@dataclass(frozen=True)
class Turns:
    """What runs are told by. tensor: of ids, which change where a run begins, or (`resets`) of where runs begin."""

    tensor: Param
    resets: bool


@dataclass(frozen=True)
class Several:
    """The least or the greatest ("min", "max") of some bounds."""

    fn: str
    bounds: tuple[Bound, ...]


Bound = Shift | Fixed | Step | Run | Several


class Places(Protocol[T]):
    """How bounds are computed: in a kernel, or in Python."""

    def number(self, expr: Expr) -> T:
        """A static integer."""

    def shifted(self, position: T, by: Expr) -> T:
        """A position plus a static integer."""

    def edge(self, end: bool) -> T:
        """The first position of the sequence, or its end."""

    def run(self, run: Run, position: T) -> T:
        """Where a run begins or ends."""

    def pick(self, fn: str, a: T, b: T) -> T:
        """The lesser or the greater of two."""

    def before(self, position: T, at: T, yes: T, no: T) -> T:
        """`yes` where a position lies before another one, else `no`."""

    def later(self, start: T, by: T) -> T:
        """A position and a distance."""


def value(bound: Bound, position: T, places: Places[T]) -> T:
    """A bound at a position."""
    match bound:
        case Shift(by=by):
            return places.shifted(position, by)
        case Fixed(at=at):
            return places.later(places.edge(False), places.number(at))
        case Step(at=at):
            turn = places.later(places.edge(False), places.number(at))
            return places.before(position, turn, places.edge(False), places.edge(True))
        case Run():
            return places.run(bound, position)
        case Several(fn=fn, bounds=bounds):
            found = value(bounds[0], position, places)
            for other in bounds[1:]:
                found = places.pick(fn, found, value(other, position, places))
            return found


def inverse(graph: Graph, bound: Bound) -> Bound:
    """The first row at which a bound lies beyond a column."""
    match bound:
        case Shift(by=by):
            return Shift(graph.apply("sub", graph.const(1), by))
        case Fixed(at=at):
            return Step(at)
        case Step(at=at):
            return Fixed(at)
        case Run(turns=turns, end=end):
            return Run(turns, not end)
        case Several(fn=fn, bounds=bounds):
            return Several("max" if fn == "min" else "min", tuple(inverse(graph, one) for one in bounds))


@dataclass(frozen=True)
class Support:
    """Which columns rows see, beside what the sequence has; None: no bound.

    exact: whether every pair within the bounds is live; else a condition of pairs tells, on every tile.
    """

    lo: Bound | None
    hi: Bound | None
    exact: bool

    def transposed(self, graph: Graph) -> Support:
        """Which rows see a column."""
        lo = None if self.hi is None else inverse(graph, self.hi)
        return Support(lo, None if self.lo is None else inverse(graph, self.lo), self.exact)

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs that the bounds read, each once."""
        found: dict[Run, None] = {}
        stack = [bound for bound in (self.lo, self.hi) if bound is not None]
        while stack:
            bound = stack.pop()
            if isinstance(bound, Run):
                found[bound] = None
            elif isinstance(bound, Several):
                stack += bound.bounds
        return tuple(found)

    @property
    def numbers(self) -> tuple[Expr, ...]:
        """The static integers that the bounds read."""
        found: dict[Expr, None] = {}
        stack = [bound for bound in (self.lo, self.hi) if bound is not None]
        while stack:
            match stack.pop():
                case Shift(by=number) | Fixed(at=number) | Step(at=number):
                    found[number] = None
                case Several(bounds=bounds):
                    stack += bounds
        return tuple(found)


@dataclass(frozen=True)
class _Interval:
    """One piece's columns: from the greatest of `lowers` to the least of `uppers`."""

    lowers: tuple[Bound, ...]
    uppers: tuple[Bound, ...]


def support(graph: Graph, guards: Sequence[Guard]) -> Support:
    """The support of pieces that live where these guards hold."""
    read = [_interval(graph, guard) for guard in guards]
    intervals = [interval for interval, _ in read]
    whole = all(rest for _, rest in read)
    if whole:
        intervals = _merged(graph, intervals)
    lowers = [_joined("max", interval.lowers) for interval in intervals]
    uppers = [_joined("min", interval.uppers) for interval in intervals]
    exact = whole and len(intervals) == 1
    return Support(_hull("min", lowers), _hull("max", uppers), exact)


def _interval(graph: Graph, guard: Guard) -> tuple[_Interval, bool]:
    """The bounds that a guard gives, and whether they are all it says."""
    lowers: list[Bound] = []
    uppers: list[Bound] = []
    whole = not (guard.rows or guard.pairs)
    if guard.hi is not None:
        lowers.append(Shift(graph.apply("neg", guard.hi)))
    if guard.lo is not None:
        uppers.append(Shift(graph.apply("sub", graph.const(1), guard.lo)))
    for condition in guard.cols:
        found = _fixed(graph, condition)
        if found is None:
            whole = False
        else:
            (uppers if found[0] else lowers).append(found[1])
    for segment in guard.segments:
        turns = turns_of(graph, segment)
        if turns is None:
            whole = False
            continue
        if not any(_at_least(graph, bound, 0) for bound in lowers):
            lowers.append(Run(turns, False))
        if not any(_at_most(graph, bound, 1) for bound in uppers):
            uppers.append(Run(turns, True))
    return _Interval(tuple(lowers), tuple(uppers)), whole


def _fixed(graph: Graph, condition: Expr) -> tuple[bool, Fixed] | None:
    """`j < n` and the like: whether it bounds columns from above, and where."""
    turned = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}
    if not isinstance(condition, Apply) or condition.fn not in turned:
        return None
    match condition.args:
        case (Position(name="j"), n) if static_integer(n):
            fn = condition.fn
        case (n, Position(name="j")) if static_integer(n):
            fn = turned[condition.fn]
        case _:
            return None
    more = graph.apply("add", n, graph.const(1)) if fn in ("le", "gt") else n
    return fn in ("lt", "le"), Fixed(more)


def static_integer(expr: Expr) -> bool:
    """Whether an expression is an integer known when a kernel is launched."""
    functions = {node.fn for node in postorder((expr,)) if isinstance(node, Apply)}
    return expr.kind <= Kind.INT and is_number(expr) and functions <= {"add", "sub", "mul", "neg", "min", "max"}


def turns_of(graph: Graph, segment: Expr) -> Turns | None:
    """What a segment's runs are told by, where it counts changes of a tensor."""
    if not isinstance(segment, At) or not isinstance(segment.x, MaskTimes):
        return None
    counted = segment.x
    if elementary(graph, counted) != Sum(0, False):
        return None
    match counted.x:
        case Param(number=False) as tensor if _over_time(tensor):
            return Turns(tensor, True)
        case Apply(fn="ne", args=(Param(number=False) as tensor, MaskTimes() as before)):
            pass
        case Apply(fn="ne", args=(MaskTimes() as before, Param(number=False) as tensor)):
            pass
        case _:
            return None
    alike = before.x is tensor and elementary(graph, before) == Delay(1)
    return Turns(tensor, False) if alike and _over_time(tensor) and tensor.kind is not Kind.REAL else None


def _over_time(tensor: Param) -> bool:
    return set(tensor.axes) == {"batch", "time"}


def _at_least(graph: Graph, bound: Bound, least: int) -> bool:
    number = constant(bound.by) if isinstance(bound, Shift) else None
    return number is not None and number >= least


def _at_most(graph: Graph, bound: Bound, most: int) -> bool:
    number = constant(bound.by) if isinstance(bound, Shift) else None
    return number is not None and number <= most


def _merged(graph: Graph, intervals: list[_Interval]) -> list[_Interval]:
    """Intervals of which one begins where another one ends, at the same distance in every row, joined; of which one
    holds another one, that one alone."""
    for first in intervals:
        for second in intervals:
            if first is not second and _holds(graph, first, second):
                return _merged(graph, [one for one in intervals if one is not second])
            if first is not second and _adjoin(graph, first, second):
                end = _joined("min", second.uppers)
                uppers: tuple[Bound, ...] = () if end is None else (Several("max", (first.uppers[0], end)),)
                if isinstance(end, Shift) and _at_least_as_far(graph, end, first.uppers[0]):
                    uppers = (end,)
                rest = [one for one in intervals if one is not first and one is not second]
                return _merged(graph, [_Interval(first.lowers, uppers), *rest])
    return intervals


def _adjoin(graph: Graph, first: _Interval, second: _Interval) -> bool:
    if len(first.uppers) != 1 or len(second.lowers) != 1:
        return False
    end, begin = first.uppers[0], second.lowers[0]
    if not (isinstance(end, Shift) and isinstance(begin, Shift)):
        return False
    return constant(graph.apply("sub", end.by, begin.by)) == 0


def _holds(graph: Graph, first: _Interval, second: _Interval) -> bool:
    """Whether all that one interval sees another one sees too, as far as their bounds tell."""

    def looser(bound: Bound, than: tuple[Bound, ...], sign: int) -> bool:
        for other in than:
            if bound == other:
                return True
            if isinstance(bound, Shift) and isinstance(other, Shift):
                room = constant(graph.apply("sub", bound.by, other.by))
                if room is not None and sign * room >= 0:
                    return True
        return False

    above = all(looser(bound, second.uppers, 1) for bound in first.uppers)
    return above and all(looser(bound, second.lowers, -1) for bound in first.lowers)


def _at_least_as_far(graph: Graph, end: Shift, other: Bound) -> bool:
    if not isinstance(other, Shift):
        return False
    room = constant(graph.apply("sub", end.by, other.by))
    return room is not None and room >= 0


def _joined(fn: str, bounds: tuple[Bound, ...]) -> Bound | None:
    if not bounds:
        return None
    return bounds[0] if len(bounds) == 1 else Several(fn, bounds)


def _hull(fn: str, bounds: Sequence[Bound | None]) -> Bound | None:
    known = tuple(dict.fromkeys(bound for bound in bounds if bound is not None))
    return _joined(fn, known) if bounds and len(known) == len(set(bounds)) else None


@dataclass(frozen=True)
class Tiles:
    """How many tiles of a mask need no condition, need one, and are never visited."""

    full: int
    partial: int
    skipped: int


@dataclass(frozen=True)
class Positions:
    """Bounds in Python, of one sequence. starts, ends: of the run of every position, by what runs are told by."""

    length: int
    numbers: Mapping[str, int]
    starts: Mapping[Turns, Sequence[int]]
    ends: Mapping[Turns, Sequence[int]]

    def number(self, expr: Expr) -> int:
        match expr:
            case Const(value=number):
                return int(number)
            case Param(name=name) | Size(axis=name):
                return self.numbers[name]
            case Apply(fn="neg", args=(x,)):
                return -self.number(x)
            case Apply(fn=fn, args=(x, y)):
                a, b = self.number(x), self.number(y)
                return {"add": a + b, "sub": a - b, "mul": a * b, "min": min(a, b), "max": max(a, b)}[fn]
        raise AssertionError(type(expr).__name__)

    def shifted(self, position: int, by: Expr) -> int:
        return position + self.number(by)

    def edge(self, end: bool) -> int:
        return self.length if end else 0

    def run(self, run: Run, position: int) -> int:
        known = (self.ends if run.end else self.starts).get(run.turns)
        if known is None:  # a sequence is one run as far as sizes say
            return self.length if run.end else 0
        return known[position]

    def pick(self, fn: str, a: int, b: int) -> int:
        return min(a, b) if fn == "min" else max(a, b)

    def before(self, position: int, at: int, yes: int, no: int) -> int:
        return yes if position < at else no

    def later(self, start: int, by: int) -> int:
        return start + by

    def bounds(self, support: Support, position: int) -> tuple[int, int]:
        """The columns that a row sees: the first, and the end."""
        lo = 0 if support.lo is None else max(0, value(support.lo, position, self))
        hi = self.length if support.hi is None else min(self.length, value(support.hi, position, self))
        return lo, hi


def count_tiles(support: Support, places: Positions, rows: int, columns: int) -> Tiles:
    """The tiles of `rows` by `columns` that a kernel visits of one sequence.

    It visits what `visited` says; those it need not mask lie between the bounds that all of a tile's rows share.
    """
    full = partial = 0
    across = -(-places.length // columns)
    for first in range(0, places.length, rows):
        last = min(first + rows, places.length) - 1
        (lo, near), (far, hi) = places.bounds(support, first), places.bounds(support, last)
        if hi <= lo:
            continue
        begin, end = lo // columns, -(-hi // columns)
        inner, outer = -(-far // columns), near // columns
        if not support.exact:
            inner = outer = begin
        whole = max(0, min(outer, end) - max(inner, begin))
        full += whole
        partial += max(0, end - begin) - whole
    total = -(-places.length // rows) * across
    return Tiles(full, partial, total - full - partial)
