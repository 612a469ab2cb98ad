"""Reads boolean mask expressions: disjoint guards that hold exactly where an expression is true, or false."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from fractions import Fraction

from sma_compiler.ir.graph import COMPARISONS, Graph
from sma_compiler.ir.nodes import Apply, At, Const, Expr, Kind, MaskTimes, Position
from sma_compiler.mask.algebra import by_distance, constant, is_number, rational, split, tidy
from sma_compiler.mask.guards import Guard, Guards, Piece

MAX_PIECES = 64
"""A function with more cases than this is left alone, as one opaque value."""

_FLIP = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le", "eq": "eq", "ne": "ne"}
_NOT = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt", "eq": "ne", "ne": "eq"}
_HOLDS = {fn: getattr(operator, fn) for fn in _FLIP}
_RISES, _FALLS, _EITHER = 1, -1, 2


class Conditions(Guards, ABC):
    """Guards of the boolean expressions of one graph."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self._known: dict[tuple[Expr, bool], list[Guard]] = {}

    @abstractmethod
    def cases(self, expr: Expr) -> list[Piece]:
        """A partition of all pairs, with the value of `expr` in each part."""

    @abstractmethod
    def pieces(self, mask: Expr) -> tuple[Piece, ...]:
        """The mask as a sum of pieces."""

    def where(self, expr: Expr, truth: bool) -> list[Guard]:
        """Disjoint guards that together hold exactly where the boolean `expr` has this truth value."""
        found = self._known.get((expr, truth))
        if found is None:
            found = self._known[expr, truth] = self._where(expr, truth)
        return found

    def _where(self, expr: Expr, truth: bool) -> list[Guard]:
        if isinstance(expr, Const):
            return [Guard()] if bool(expr.value) is truth else []
        if isinstance(expr, Apply) and expr.fn in COMPARISONS and expr.args[0] is expr.args[1]:
            return [Guard()] if _HOLDS[expr.fn](0, 0) is truth else []
        if isinstance(expr, Apply) and len(expr.positions) == 2:
            if expr.fn == "not":
                return self.where(expr.args[0], not truth)
            if expr.fn in ("and", "mul", "or") and all(arg.kind is Kind.BOOL for arg in expr.args):
                return self._connective(expr, truth)
            if expr.fn in COMPARISONS:
                fn = expr.fn if truth else _NOT[expr.fn]
                return self._comparison(fn, expr.args[0], expr.args[1])
        return self._left(expr, truth)

    def _left(self, expr: Expr, truth: bool) -> list[Guard]:
        """A condition as it stands."""
        condition = expr if truth else self.graph.apply("not", expr)
        if "j" not in expr.positions:
            return [Guard(rows=(condition,))]
        if "i" not in expr.positions:
            return [Guard(cols=(condition,))]
        return [Guard(pairs=(condition,))]

    def _connective(self, expr: Apply, truth: bool) -> list[Guard]:
        """A chain of `and`: where every operand holds. Of `or`: where the first holds, then the second of the rest."""
        every = (expr.fn != "or") is truth
        rest, found = [Guard()], []
        for operand in _operands(expr):
            if every:
                rest = self.crossed(rest, self.where(operand, truth))
            else:
                found += self.crossed(rest, self.where(operand, truth))
                rest = self.crossed(rest, self.where(operand, not truth))
            if len(found) + len(rest) > MAX_PIECES:
                return self._left(expr, truth)
        return rest if every else found

    def _comparison(self, fn: str, left: Expr, right: Expr, cases: bool = True) -> list[Guard]:
        """Guards for `left fn right`; without `cases` the two sides have none."""
        readings = (self._by_distance, self._by_order, self._by_runs, self._by_cases)
        for reading in readings if cases else readings[:-1]:
            found = reading(fn, left, right)
            if found is not None:
                return found
        return self._left(self.graph.apply(fn, left, right), True)

    def _by_distance(self, fn: str, left: Expr, right: Expr) -> list[Guard] | None:
        """A comparison of i - j with a static integer or a number."""
        g = self.graph
        powers = by_distance(g, g.apply("sub", left, right))
        if powers is None or set(powers) - {0, 1}:
            return None
        slope, shift = rational(powers.get(1, g.const(0))), powers.get(0, g.const(0))
        value = rational(shift)
        if slope == 0 and value is not None:
            return [Guard()] if _HOLDS[fn](value, 0) else []
        if not slope:
            return None
        fn = fn if slope > 0 else _FLIP[fn]
        if value is not None:
            return self._beyond(fn, -value / slope)
        if slope in (1, -1) and shift.kind is Kind.INT and is_number(shift):
            return self._interval(fn, tidy(g, g.apply("neg", shift) if slope > 0 else shift))
        return None

    def _beyond(self, fn: str, bound: Fraction) -> list[Guard]:
        """Guards for `i - j fn bound`, which need not be an integer."""
        if bound.denominator == 1:
            return self._interval(fn, self.graph.const(int(bound)))
        if fn in ("eq", "ne"):
            return [Guard()] if fn == "ne" else []
        below, above = self.graph.const(math.floor(bound)), self.graph.const(math.ceil(bound))
        return [Guard(lo=above)] if fn in ("gt", "ge") else [Guard(hi=below)]

    def _interval(self, fn: str, bound: Expr) -> list[Guard]:
        """Guards for `i - j fn bound`."""
        g = self.graph
        above, below = tidy(g, g.apply("add", bound, self.one)), tidy(g, g.apply("sub", bound, self.one))
        table = {
            "lt": [Guard(hi=below)],
            "le": [Guard(hi=bound)],
            "gt": [Guard(lo=above)],
            "ge": [Guard(lo=bound)],
            "eq": [Guard(lo=bound, hi=bound)],
            "ne": [Guard(hi=below), Guard(lo=above)],
        }
        return table[fn]

    def _by_order(self, fn: str, left: Expr, right: Expr) -> list[Guard] | None:
        """max(a, b) <= c as a <= c and b <= c, and so on; abs(a) is max(a, -a)."""
        for order, whole, other in ((fn, left, right), (_FLIP[fn], right, left)):
            if order in ("eq", "ne") or not isinstance(whole, Apply) or whole.fn not in ("abs", "min", "max"):
                continue
            a = whole.args[0]
            b = whole.args[1] if len(whole.args) == 2 else self.graph.apply("neg", a)
            first, second = self._comparison(order, a, other), self._comparison(order, b, other)
            if (order in ("lt", "le")) == (whole.fn != "min"):
                found = self.crossed(first, second)
            else:
                found = first + self.crossed(self._comparison(_NOT[order], a, other), second)
            if len(found) <= MAX_PIECES and not any(guard.pairs for guard in found):
                return found
        return None

    def _by_runs(self, fn: str, left: Expr, right: Expr) -> list[Guard] | None:
        """A comparison of f(i) with f(j) for a monotone f of integers, whose equal values form runs."""
        g = self.graph
        if left.kind > Kind.INT or right.kind > Kind.INT:
            return None
        halves = split(g, g.apply("sub", left, right))
        if halves is None:
            return None
        column = g.reposition(halves[0], {"i": "j"})
        way = self._direction(column)
        if not way or constant(g.apply("add", column, halves[1])) != 0:
            return None
        segment = (column,)
        if fn == "eq":
            return [Guard(segments=segment)]
        if way == _EITHER or fn == "ne":
            return None
        fn = fn if way == _RISES else _FLIP[fn]
        if fn == "ge":
            return [Guard(lo=g.const(0)), Guard(hi=g.const(-1), segments=segment)]
        if fn == "le":
            return [Guard(hi=g.const(0)), Guard(lo=self.one, segments=segment)]
        unequal = (g.apply("ne", left, right),)
        return [Guard(lo=self.one, pairs=unequal) if fn == "gt" else Guard(hi=g.const(-1), pairs=unequal)]

    def _by_cases(self, fn: str, left: Expr, right: Expr) -> list[Guard] | None:
        """A comparison of values that have cases, in each of their cases."""
        ours, theirs = self.cases(left), self.cases(right)
        if len(ours) * len(theirs) > MAX_PIECES:
            return None
        found: list[Guard] = []
        for a in ours:
            for b in theirs:
                both = self.crossed([a.guard], [b.guard])
                found += self.crossed(both, self._comparison(fn, a.value, b.value, cases=False)) if both else []
        return None if len(found) > MAX_PIECES or any(guard.pairs for guard in found) else found

    def _direction(self, column: Expr) -> int:
        """Whether an integer expression of j rises or falls with j (weakly), or does either; 0 where it is unknown."""
        if column.kind is not Kind.INT:
            return 0
        match column:
            case Position():
                return _RISES
            case At(x=x):
                return _RISES if self._cumulative(x) else 0
            case Apply(fn="neg", args=(x,)):
                return _turned(self._direction(x), -1)
            case Apply(fn="sub", args=(x, Apply(fn="mod", args=(y, _)))) if x is y:
                return self._direction(x)
            case Apply(fn="add" | "sub" | "min" | "max" | "mul" | "floordiv" as fn, args=(a, b)) if not b.positions:
                return _turned(self._direction(a), constant(b)) if fn in ("mul", "floordiv") else self._direction(a)
            case Apply(fn="add" | "sub" | "min" | "max" | "mul" as fn, args=(a, b)) if not a.positions:
                by = constant(a) if fn == "mul" else -1 if fn == "sub" else 1
                return _turned(self._direction(b), by)
        return 0

    def _cumulative(self, x: Expr) -> bool:
        """A sum of counts over j <= i (or j < i), which can only grow."""
        if not isinstance(x, MaskTimes) or x.x.kind is not Kind.BOOL or x.mask.kind is not Kind.BOOL:
            return False
        pieces = self.pieces(x.mask)
        if len(pieces) != 1:
            return False
        guard = pieces[0].guard
        unlimited = guard.hi is None and not (guard.segments or guard.rows or guard.cols or guard.pairs)
        return unlimited and guard.lo is not None and (constant(guard.lo) or 0) >= 0 and constant(guard.lo) is not None


def _turned(way: int, by: int | None) -> int:
    """The direction of something times (or divided by) an integer of this sign; None: of a sign known at the call."""
    if way in (0, _EITHER) or by is None:
        return way and _EITHER
    return way if by > 0 else -way


def _operands(expr: Apply) -> list[Expr]:
    """The operands of a chain of one connective, first to last."""
    found: list[Expr] = []
    fn = expr.fn
    rest: Expr = expr
    while isinstance(rest, Apply) and rest.fn == fn and rest.kind is Kind.BOOL:
        found.append(rest.args[1])
        rest = rest.args[0]
    return [rest, *reversed(found)]
