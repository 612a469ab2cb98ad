"""Splits a mask by its boolean parts: a sum of pieces, each a guard (where it lives) and a value without cases.

A guard is an interval of the distance d = i - j, runs of equal segment ids, conditions on i alone or on j alone, and
whatever conditions on pairs are left.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from itertools import product

from sma_compiler.ir.graph import COMPARISONS, Graph
from sma_compiler.ir.nodes import (
    Apply,
    At,
    Const,
    Expr,
    Kind,
    Lag,
    Levels,
    MaskProduct,
    MaskTimes,
    PathSum,
    Position,
    Reduce,
)
from sma_compiler.mask.algebra import by_distance, constant, tidy

MAX_PIECES = 64
"""A function with more cases than this is left alone, as one opaque value."""

_FLIP = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le", "eq": "eq", "ne": "ne"}
_HOLDS = {fn: getattr(operator, fn) for fn in _FLIP}
_NOT = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt", "eq": "ne", "ne": "eq"}


@dataclass(frozen=True)
class Guard:
    """Where a piece lives: lo <= i - j <= hi (static integers, None unbounded) and every condition holds.

    segments: integer expressions of `j`, non-decreasing in it, whose values at i and at j agree. rows: boolean
    expressions of `i` (or static); cols: of `j`; pairs: of both.
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


class Splitter:
    """Splits the masks of one graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.one = graph.const(1)

    def pieces(self, mask: Expr) -> tuple[Piece, ...]:
        """The mask as a sum of pieces; those that are empty or 0 for certain are left out."""
        found = [piece for piece in self._terms(mask) if constant(piece.value) != 0]
        return tuple(found)

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
            lo,
            hi,
            _extend(a.segments, b.segments),
            _extend(a.rows, b.rows),
            _extend(a.cols, b.cols),
            _extend(a.pairs, b.pairs),
        )

    def bound(self, fn: str, a: Expr | None, b: Expr | None) -> Expr | None:
        """The `max` or `min` of two bounds, `None` being no bound at all."""
        if a is None or b is None:
            return b if a is None else a
        difference = constant(self.graph.apply("sub", a, b))
        if difference is not None:
            return a if (difference > 0) == (fn == "max") else b
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

    def _crossed(self, left: list[Guard], right: list[Guard]) -> list[Guard]:
        met = (self.meet(a, b) for a, b in product(left, right))
        return [guard for guard in met if guard is not None]

    def _terms(self, expr: Expr) -> list[Piece]:
        """Pieces that add up to `expr`; several may live at one place."""
        if expr.kind is Kind.BOOL:
            return [Piece(guard, self.one) for guard in self.where(expr, True)]
        if not isinstance(expr, Apply) or not expr.positions:
            return self._cases(expr) if expr.positions else [Piece(Guard(), expr)]
        g = self.graph
        if expr.fn in ("add", "sub"):
            return self._sum(expr)
        if expr.fn == "neg":
            return [replace(piece, value=g.apply("neg", piece.value)) for piece in self._terms(expr.args[0])]
        if expr.fn == "mul":
            return self._product(self._terms(expr.args[0]), self._terms(expr.args[1]), expr)
        if expr.fn == "div" and len(below := self._cases(expr.args[1])) == 1:
            return [replace(top, value=g.apply("div", top.value, below[0].value)) for top in self._terms(expr.args[0])]
        if expr.fn == "where":
            chosen = ((True, expr.args[1]), (False, expr.args[2]))
            found: list[Piece] = []
            for truth, branch in chosen:
                cases = [Piece(guard, self.one) for guard in self.where(expr.args[0], truth)]
                found += self._product(cases, self._terms(branch), expr)
            return found
        return self._cases(expr)

    def _sum(self, expr: Expr) -> list[Piece]:
        """The pieces of a chain of + and -, walked without recursion along its left spine."""
        found: list[list[Piece]] = []
        g = self.graph
        while isinstance(expr, Apply) and expr.fn in ("add", "sub"):
            right = self._terms(expr.args[1])
            if expr.fn == "sub":
                right = [replace(piece, value=g.apply("neg", piece.value)) for piece in right]
            found.append(right)
            expr = expr.args[0]
        found.append(self._terms(expr))
        merged: dict[Guard, Expr] = {}
        for piece in (piece for part in reversed(found) for piece in part):
            old = merged.get(piece.guard)
            merged[piece.guard] = piece.value if old is None else g.apply("add", old, piece.value)
        return [Piece(guard, value) for guard, value in merged.items()]

    def _product(self, left: list[Piece], right: list[Piece], whole: Expr) -> list[Piece]:
        if len(left) * len(right) > MAX_PIECES:
            return [Piece(Guard(), whole)]
        found: list[Piece] = []
        for a, b in product(left, right):
            guard = self.meet(a.guard, b.guard)
            if guard is not None:
                values = [piece.value for piece in (a, b) if piece.value is not self.one]
                value = self.graph.apply("mul", *values) if len(values) == 2 else (values or [self.one])[0]
                found.append(Piece(guard, value))
        return found

    def _cases(self, expr: Expr) -> list[Piece]:
        """A partition of all pairs, with the value of `expr` in each part."""
        whole = [Piece(Guard(), expr)]
        if len(expr.positions) < 2:
            return whole
        if expr.kind is Kind.BOOL:
            return [
                Piece(guard, self.graph.const(int(truth)))
                for truth in (True, False)
                for guard in self.where(expr, truth)
            ]
        if isinstance(expr, PathSum):
            return self._path_cases(expr)
        if isinstance(expr, Reduce) and expr.fn in ("sum", "mean"):
            parts = self._terms(expr.x)
            if any(expr.axis in condition.axes for part in parts for condition in (*part.guard.rows, *part.guard.cols)):
                return whole
            return [replace(part, value=self.graph.reduce(expr.fn, part.value, expr.axis)) for part in parts]
        if isinstance(expr, Lag):
            return self._lag_cases(expr)
        if isinstance(expr, Levels):
            zero = self.graph.const(0)
            return [Piece(Guard(lo=zero) if expr.row == "i" else Guard(hi=zero), expr)]
        if isinstance(expr, MaskProduct):
            left, right = self.hull(self.pieces(expr.left)), self.hull(self.pieces(expr.right))
            lo, hi = (self._sum_of_bounds(a, b) for a, b in zip(left, right, strict=True))
            return [Piece(Guard(lo, hi), expr)]
        if not isinstance(expr, Apply):
            return whole
        if expr.fn == "where":
            found: list[Piece] = []
            for truth, branch in ((True, expr.args[1]), (False, expr.args[2])):
                guards = self.where(expr.args[0], truth)
                for case in self._cases(branch):
                    found += [replace(case, guard=guard) for guard in self._crossed(guards, [case.guard])]
            return found if len(found) <= MAX_PIECES else whole
        if expr.fn in ("abs", "min", "max"):
            ordered = self._order_cases(expr)
            if ordered is not None:
                return ordered
        return self._function_cases(expr)

    def _function_cases(self, expr: Apply) -> list[Piece]:
        """A function of arguments that have cases has the product of their cases."""
        parts: list[tuple[Guard, tuple[Expr, ...]]] = [(Guard(), ())]
        for arg in expr.args:
            cases = self._cases(arg)
            if len(parts) * len(cases) > MAX_PIECES:
                return [Piece(Guard(), expr)]
            grown = [(self.meet(guard, case.guard), (*args, case.value)) for guard, args in parts for case in cases]
            parts = [(guard, args) for guard, args in grown if guard is not None]
        return [Piece(guard, self._value(expr, args)) for guard, args in parts]

    def _value(self, expr: Apply, args: tuple[Expr, ...]) -> Expr:
        if expr.fn == "exp" and constant(args[0]) == 0:
            return self.one
        return self.graph.apply(expr.fn, *args, span=expr.span)

    def _path_cases(self, expr: PathSum) -> list[Piece]:
        """A path sum lives on its own side of the diagonal and is 0 on the other: the empty path."""
        g = self.graph
        first = 0 if expr.start_closed or expr.end_closed else 1
        zero = g.const(0)
        if expr.start == "j":
            return [
                Piece(Guard(lo=g.const(first)), expr),
                Piece(Guard(hi=g.const(first - 1)), zero),
            ]
        return [Piece(Guard(hi=g.const(-first)), expr), Piece(Guard(lo=g.const(1 - first)), zero)]

    def _sum_of_bounds(self, a: Expr | None, b: Expr | None) -> Expr | None:
        return None if a is None or b is None else tidy(self.graph, self.graph.apply("add", a, b))

    def _lag_cases(self, expr: Lag) -> list[Piece]:
        """A table looked up at i - j + c is 0 outside its length: a band."""
        g = self.graph
        powers = by_distance(g, expr.index)
        if powers is None or set(powers) - {0, 1} or constant(powers.get(1, g.const(0))) != 1:
            return [Piece(Guard(), expr)]
        lo = tidy(g, g.apply("neg", powers.get(0, g.const(0))))
        hi = tidy(g, g.apply("add", lo, g.apply("sub", g.size("lag"), self.one)))
        return [Piece(Guard(lo=lo, hi=hi), expr)]

    def _order_cases(self, expr: Apply) -> list[Piece] | None:
        """abs, min and max of expressions that differ by i - j and a constant."""
        g = self.graph
        left = expr.args[0]
        right = expr.args[1] if len(expr.args) == 2 else g.apply("neg", left)
        larger = g.apply("ge", left, right)
        if by_distance(g, g.apply("sub", left, right)) is None:
            return None
        above, below = self.where(larger, True), self.where(larger, False)
        if any(guard.pairs for guard in (*above, *below)):
            return None
        first, second = (right, left) if expr.fn == "min" else (left, right)
        return [Piece(guard, first) for guard in above] + [Piece(guard, second) for guard in below]

    def where(self, expr: Expr, truth: bool) -> list[Guard]:
        """Disjoint guards that together hold exactly where the boolean `expr` has this truth value."""
        g = self.graph
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
                return self._comparison(expr.fn if truth else _NOT[expr.fn], expr.args[0], expr.args[1])
        condition = expr if truth else g.apply("not", expr)
        if "j" not in expr.positions:
            return [Guard(rows=(condition,))]
        if "i" not in expr.positions:
            return [Guard(cols=(condition,))]
        return [Guard(pairs=(condition,))]

    def _connective(self, expr: Apply, truth: bool) -> list[Guard]:
        """`a or b` is a, and b outside a; `and` the other way round (De Morgan)."""
        both = (expr.fn != "or") is truth  # whether every operand must have this truth
        guards = self.where(expr.args[0], truth)
        rest = self.where(expr.args[1], truth)
        if both:
            found = self._crossed(guards, rest)
        else:
            found = guards + self._crossed(self.where(expr.args[0], not truth), rest)
        if len(found) > MAX_PIECES:
            return [Guard(pairs=(expr if truth else self.graph.apply("not", expr),))]
        return found

    def _comparison(self, fn: str, left: Expr, right: Expr) -> list[Guard]:
        g = self.graph
        powers = by_distance(g, g.apply("sub", left, right))
        if powers is not None and not set(powers) - {0, 1}:
            slope = constant(powers.get(1, g.const(0)))
            shift = powers.get(0, g.const(0))
            value = constant(shift)
            if slope == 0 and value is not None:
                return [Guard()] if _HOLDS[fn](value, 0) else []
            if (slope in (1, -1) and shift.kind is Kind.INT) or (slope and value == 0):
                bound = tidy(g, g.apply("neg", shift) if slope > 0 else shift)
                return self._interval(fn if slope > 0 else _FLIP[fn], bound)
        if fn == "eq" and (segment := self._segment(left, right)) is not None:
            return [Guard(segments=(segment,))]
        return [Guard(pairs=(g.apply(fn, left, right),))]

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

    def _segment(self, left: Expr, right: Expr) -> Expr | None:
        """The expression of j whose equal values form runs, where `left == right` compares it at i and at j."""
        g = self.graph
        if left.positions == {"j"}:
            left, right = right, left
        if left.positions != {"i"} or right.positions != {"j"} or g.reposition(left, {"i": "j"}) is not right:
            return None
        return right if right.kind is Kind.INT and self.never_falls(right) else None

    def never_falls(self, column: Expr) -> bool:
        """Whether an expression of j is proven non-decreasing in j: a position, a cumulative sum, a floor of one."""
        if isinstance(column, Position):
            return True
        if isinstance(column, At):
            return self._cumulative(column.x)
        if isinstance(column, Apply) and column.fn in ("floordiv", "mul", "add"):
            inner, other = column.args
            if isinstance(other, Const) and (column.fn == "add" or other.value > 0):
                return self.never_falls(inner)
        return False

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
