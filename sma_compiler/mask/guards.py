"""Where a piece of a mask lives, and what guards make of each other."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from sma_compiler.ir.graph import Graph
from sma_compiler.ir.nodes import Apply, Expr
from sma_compiler.mask.algebra import constant


@dataclass(frozen=True)
class Guard:
    """Where a piece lives: lo <= i - j <= hi (static integers, None unbounded) and every condition holds.

    segments: integer expressions of `j`, monotone in it, whose values at i and at j agree. rows: boolean expressions
    of `i` (or static); cols: of `j`; pairs: of both.
    """

    lo: Expr | None = None
    hi: Expr | None = None
    segments: tuple[Expr, ...] = ()
    rows: tuple[Expr, ...] = ()
    cols: tuple[Expr, ...] = ()
    pairs: tuple[Expr, ...] = ()


@dataclass(frozen=True)
class Piece:
    """`value` where `guard` holds, 0 elsewhere."""

    guard: Guard
    value: Expr


def _extend(ours: tuple[Expr, ...], theirs: tuple[Expr, ...]) -> tuple[Expr, ...]:
    return ours + tuple(item for item in theirs if item not in ours)


class Guards:
    """Guards over the nodes of one graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.one = graph.const(1)

    def expression(self, guard: Guard) -> Expr:
        """The guard as a boolean mask expression."""
        g = self.graph
        i, j = g.position("i"), g.position("j")
        distance = g.apply("sub", i, j)
        parts: list[Expr] = []
        if guard.lo is not None:
            parts.append(g.apply("ge", distance, guard.lo))
        if guard.hi is not None:
            parts.append(g.apply("le", distance, guard.hi))
        parts += [g.apply("eq", g.reposition(segment, {"j": "i"}), segment) for segment in guard.segments]
        parts += [*guard.rows, *guard.cols, *guard.pairs]
        whole: Expr = parts[0] if parts else g.const(True)
        for part in parts[1:]:
            whole = g.apply("mul", whole, part)
        return whole

    def meet(self, a: Guard, b: Guard) -> Guard | None:
        """Both guards at once; None where they exclude each other for certain."""
        lo, hi = self.bound("max", a.lo, b.lo), self.bound("min", a.hi, b.hi)
        for low, high in product({lo, a.lo, b.lo}, {hi, a.hi, b.hi}):
            if low is not None and high is not None:
                room = constant(self.graph.apply("sub", high, low))
                if room is not None and room < 0:
                    return None
        return Guard(
            self._tighter(a.lo, b.lo, lo, hi, 1),
            self._tighter(a.hi, b.hi, hi, lo, -1),
            _extend(a.segments, b.segments),
            _extend(a.rows, b.rows),
            _extend(a.cols, b.cols),
            _extend(a.pairs, b.pairs),
        )

    def _tighter(self, a: Expr | None, b: Expr | None, both: Expr | None, far: Expr | None, sign: int) -> Expr | None:
        """The bound that `a` and `b` make: max(0, 1 - w) beside i - j <= w - 1 is 0, for else nothing is left."""
        if a is None or b is None or far is None:
            return both
        for near, other in ((a, b), (b, a)):
            least, total = constant(near), constant(self.graph.apply("add", other, far))
            if least is not None and total is not None and sign * total <= sign * 2 * least:
                return near
        return both

    def crossed(self, left: list[Guard], right: list[Guard]) -> list[Guard]:
        """Every guard of one list at once with every guard of the other."""
        met = (self.meet(a, b) for a, b in product(left, right))
        return [guard for guard in met if guard is not None]

    def bound(self, fn: str, a: Expr | None, b: Expr | None) -> Expr | None:
        """The `max` or `min` of two bounds, `None` being no bound at all."""
        if a is None or b is None:
            return b if a is None else a
        difference = constant(self.graph.apply("sub", a, b))
        if difference is not None:
            return a if (difference > 0) == (fn == "max") else b
        for one, other in ((a, b), (b, a)):  # max(a, max(a, x)) is max(a, x), and min(a, max(a, x)) is a
            if isinstance(other, Apply) and other.fn in ("max", "min") and one in other.args:
                return other if other.fn == fn else one
        return self.graph.apply(fn, a, b)

    def hull(self, pieces: tuple[Piece, ...]) -> tuple[Expr | None, Expr | None]:
        """The band of i - j that holds every piece."""
        if not pieces:
            return self.graph.const(0), self.graph.const(0)
        lo, hi = pieces[0].guard.lo, pieces[0].guard.hi
        for piece in pieces[1:]:
            lo = None if lo is None or piece.guard.lo is None else self.bound("min", lo, piece.guard.lo)
            hi = None if hi is None or piece.guard.hi is None else self.bound("max", hi, piece.guard.hi)
        return lo, hi
