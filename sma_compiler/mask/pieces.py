"""Splits a mask by its boolean parts: a sum of pieces, each a guard (where it lives) and a value without cases.

A guard is an interval of the distance d = i - j, runs of equal segment ids, conditions on i alone or on j alone, and
whatever conditions on pairs are left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product

from sma_compiler.ir.graph import Graph
from sma_compiler.ir.nodes import Apply, Const, Expr, Kind, Lag, Levels, MaskProduct, PathSum, Reduce
from sma_compiler.mask.algebra import by_distance, constant, tidy
from sma_compiler.mask.conditions import MAX_PIECES, Conditions
from sma_compiler.mask.guards import Guard, Piece

MAX_CUTS = 16
"""More pieces than this are not searched for parts that cancel each other."""

_FOLD: dict[str, Callable[..., int]] = {"abs": abs, "min": min, "max": max, "relu": lambda x: max(x, 0)}


class Splitter(Conditions):
    """Splits the masks of one graph."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self._summed: dict[Expr, list[Piece]] = {}
        self._parted: dict[Expr, list[Piece]] = {}

    def pieces(self, mask: Expr) -> tuple[Piece, ...]:
        """The mask as a sum of pieces; those that are empty or 0 for certain are left out."""
        return tuple(self._terms(mask))

    def _terms(self, expr: Expr) -> list[Piece]:
        """Pieces that add up to `expr`; several may live at one place."""
        found = self._summed.get(expr)
        if found is None:
            every = self._sum_of_pieces(expr)
            found = self._summed[expr] = [piece for piece in every if constant(piece.value) != 0]
        return found

    def _sum_of_pieces(self, expr: Expr) -> list[Piece]:
        if expr.kind is Kind.BOOL:
            return [Piece(guard, self.one) for guard in self.where(expr, True)]
        if not expr.positions:
            return [Piece(Guard(), expr)]
        if isinstance(expr, Reduce) and expr.fn in ("sum", "mean"):
            return self._reduced(expr, self._terms(expr.x)) or [Piece(Guard(), expr)]
        if isinstance(expr, MaskProduct):
            return [Piece(Guard(*self._hull_of_product(expr)), expr)]
        if not isinstance(expr, Apply):
            return self.cases(expr)
        g = self.graph
        if expr.fn in ("add", "sub"):
            return self._sum(expr)
        if expr.fn == "neg":
            return [replace(piece, value=g.apply("neg", piece.value)) for piece in self._terms(expr.args[0])]
        if expr.fn == "mul":
            return self._factors(expr)
        if expr.fn == "div" and len(below := self.cases(expr.args[1])) == 1:
            return [replace(top, value=g.apply("div", top.value, below[0].value)) for top in self._terms(expr.args[0])]
        if expr.fn == "where":
            chosen = ((True, expr.args[1]), (False, expr.args[2]))
            found: list[Piece] = []
            for truth, branch in chosen:
                cases = [Piece(guard, self.one) for guard in self.where(expr.args[0], truth)]
                found += self._product(cases, self._terms(branch), expr)
            return found
        return self.cases(expr)

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
        return self._cancelled([Piece(guard, value) for guard, value in merged.items()])

    def _cancelled(self, pieces: list[Piece]) -> list[Piece]:
        """The pieces, cut at the ends of their bands where that shows that some cancel: 1 - (i < j) is i >= j."""
        alike: dict[Guard, list[Piece]] = {}
        for piece in pieces:
            alike.setdefault(replace(piece.guard, lo=None, hi=None), []).append(piece)
        return [piece for members in alike.values() for piece in self._cut(members)]

    def _cut(self, pieces: list[Piece]) -> list[Piece]:
        """Pieces that differ in their bands, cut into disjoint bands if that makes one of them vanish."""
        if not 1 < len(pieces) <= MAX_CUTS:
            return pieces
        bands: list[tuple[float, float]] = []
        for piece in pieces:
            lo, hi = (None if end is None else constant(end) for end in (piece.guard.lo, piece.guard.hi))
            if (lo is None) != (piece.guard.lo is None) or (hi is None) != (piece.guard.hi is None):
                return pieces
            bands.append((-float("inf") if lo is None else lo, float("inf") if hi is None else hi + 1))
        ends = sorted({end for band in bands for end in band})
        found: list[Piece] = []
        vanished = False
        for low, high in pairwise(ends):
            live = [piece.value for piece, (lo, hi) in zip(pieces, bands, strict=True) if lo <= low and high <= hi]
            if not live:
                continue
            value = live[0]
            for other in live[1:]:
                value = self.graph.apply("add", value, other)
            if len(live) > 1 and constant(value) == 0:
                vanished = True
                continue
            guard = replace(
                pieces[0].guard,
                lo=None if low == -float("inf") else self.graph.const(int(low)),
                hi=None if high == float("inf") else self.graph.const(int(high) - 1),
            )
            found.append(Piece(guard, value))
        return found if vanished else pieces

    def _factors(self, expr: Apply) -> list[Piece]:
        """The pieces of a chain of products, walked without recursion along its left spine."""
        factors: list[Expr] = []
        rest: Expr = expr
        while isinstance(rest, Apply) and rest.fn == "mul" and rest.kind is not Kind.BOOL:
            factors.append(rest.args[1])
            rest = rest.args[0]
        found = self._terms(rest)
        for factor in reversed(factors):
            right = self._terms(factor)
            if len(found) * len(right) > MAX_PIECES:
                return [Piece(Guard(), expr)]
            found = self._product(found, right, expr)
        return found

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

    def cases(self, expr: Expr) -> list[Piece]:
        """A partition of all pairs, with the value of `expr` in each part."""
        found = self._parted.get(expr)
        if found is None:
            found = self._parted[expr] = self._cases(expr)
        return found

    def _cases(self, expr: Expr) -> list[Piece]:
        whole = [Piece(Guard(), expr)]
        if expr.kind is Kind.BOOL:
            sides = [(guard, truth) for truth in (True, False) for guard in self.where(expr, truth)]
            if len(expr.positions) == 2 or len(sides) == 1:
                return [Piece(guard, self.graph.const(int(truth))) for guard, truth in sides]
        if len(expr.positions) < 2:
            return whole
        if isinstance(expr, PathSum):
            return self._path_cases(expr)
        if isinstance(expr, Reduce) and expr.fn in ("sum", "mean"):
            return self._reduced(expr, self.cases(expr.x)) or whole
        if isinstance(expr, Lag | Levels | MaskProduct):
            return self._bounded_cases(expr)
        if not isinstance(expr, Apply):
            return whole
        if expr.fn == "where":
            found: list[Piece] = []
            for truth, branch in ((True, expr.args[1]), (False, expr.args[2])):
                guards = self.where(expr.args[0], truth)
                for case in self.cases(branch):
                    found += [replace(case, guard=guard) for guard in self.crossed(guards, [case.guard])]
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
            cases = self.cases(arg)
            if len(parts) * len(cases) > MAX_PIECES:
                return [Piece(Guard(), expr)]
            grown = [(self.meet(guard, case.guard), (*args, case.value)) for guard, args in parts for case in cases]
            parts = [(guard, args) for guard, args in grown if guard is not None]
        found: list[Piece] = []
        for guard, args in parts:
            value = self._value(expr, args)
            again = value is not expr and isinstance(value, Apply) and value.fn in ("abs", "min", "max")
            cases = self.cases(value) if again else [Piece(Guard(), value)]
            met = [(self.meet(guard, case.guard), case.value) for case in cases]
            found += [Piece(both, each) for both, each in met if both is not None]
        return found if len(found) <= MAX_PIECES else [Piece(Guard(), expr)]

    def _value(self, expr: Apply, args: tuple[Expr, ...]) -> Expr:
        """The function of these values; what a condition made constant is folded."""
        g = self.graph
        numbers = [int(arg.value) for arg in args if isinstance(arg, Const) and arg.kind is Kind.INT]
        if expr.fn == "mul" and 0 in numbers:
            return g.const(0)
        if expr.fn == "mul" and args[0] is self.one:
            return args[1]
        if len(numbers) == len(args) and expr.fn in _FOLD:
            return g.const(_FOLD[expr.fn](*numbers))
        if expr.fn in ("exp", "cos") and constant(args[0]) == 0:
            return self.one
        if expr.fn in ("sqrt", "sin") and numbers in ([0], [1]) and numbers[0] <= (expr.fn == "sqrt"):
            return g.const(numbers[0])
        if expr.fn == "pow" and isinstance(expr.args[1], Const) and expr.args[1].value > 0 and numbers[:1] == [0]:
            return g.const(0)
        return g.apply(expr.fn, *args, span=expr.span)

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

    def _reduced(self, expr: Reduce, parts: list[Piece]) -> list[Piece]:
        """A sum or mean over an axis of pieces whose guards do not have it; none where they do."""
        conditions = [condition for part in parts for condition in (*part.guard.rows, *part.guard.cols)]
        if any(expr.axis in condition.axes for condition in conditions):
            return []
        return [replace(part, value=self._over(expr, part.value)) for part in parts]

    def _over(self, expr: Reduce, value: Expr) -> Expr:
        """The sum or mean of one piece's value, which may lack the axis."""
        if expr.axis in value.axes:
            return self.graph.reduce(expr.fn, value, expr.axis)
        if expr.fn == "mean" or constant(value) == 0:
            return value
        return self.graph.apply("mul", value, self.graph.size(expr.axis))

    def _bounded_cases(self, expr: Lag | Levels | MaskProduct) -> list[Piece]:
        """The cases of what is 0 outside a band of its own."""
        zero = self.graph.const(0)
        if isinstance(expr, Levels):
            return self._within([], expr, Guard(lo=zero) if expr.row == "i" else Guard(hi=zero))
        if isinstance(expr, MaskProduct):
            lo, hi = self._hull_of_product(expr)
            room = None if lo is None or hi is None else constant(self.graph.apply("sub", hi, lo))
            known = lo is None or hi is None or (room is not None and room >= 0)
            return self._within([], expr, Guard(lo, hi)) if known else [Piece(Guard(), expr)]
        found: list[Piece] = []
        for case in self.cases(expr.index):
            index, band = self._lag_band(case.value)
            found += self._within([case.guard], self.graph.lag(expr.table, index, expr.span), band)
        return found

    def _within(self, where: list[Guard], value: Expr, band: Guard) -> list[Piece]:
        """A value that is 0 outside a band which is not empty, and those zeros."""
        g = self.graph
        zero = g.const(0)
        parts = [(value, band)]
        if band.lo is not None:
            parts.append((zero, Guard(hi=tidy(g, g.apply("sub", band.lo, self.one)))))
        if band.hi is not None:
            parts.append((zero, Guard(lo=tidy(g, g.apply("add", band.hi, self.one)))))
        return [Piece(guard, each) for each, part in parts for guard in self.crossed(where or [Guard()], [part])]

    def _hull_of_product(self, expr: MaskProduct) -> tuple[Expr | None, Expr | None]:
        """The band of a product of masks: the sum of their bands."""
        left, right = self.hull(self.pieces(expr.left)), self.hull(self.pieces(expr.right))
        return self._sum_of_bounds(left[0], right[0]), self._sum_of_bounds(left[1], right[1])

    def _sum_of_bounds(self, a: Expr | None, b: Expr | None) -> Expr | None:
        return None if a is None or b is None else tidy(self.graph, self.graph.apply("add", a, b))

    def _lag_band(self, index: Expr) -> tuple[Expr, Guard]:
        """An index, and where it lies in 0 .. lag - 1."""
        g = self.graph
        powers = by_distance(g, index)
        slope = None if powers is None or set(powers) - {0, 1} else constant(powers.get(1, g.const(0)))
        if powers is None or slope not in (1, -1):
            return index, Guard()
        shift = powers.get(0, g.const(0))
        distance = g.apply("sub", *(g.position(name) for name in ("ij" if slope > 0 else "ji")))
        index = distance if constant(shift) == 0 else g.apply("add", distance, shift)
        last = g.apply("sub", g.size("lag"), self.one)
        if slope > 0:
            first = tidy(g, g.apply("neg", shift))
            return index, Guard(first, tidy(g, g.apply("add", first, last)))
        return index, Guard(tidy(g, g.apply("sub", shift, last)), tidy(g, shift))

    def _order_cases(self, expr: Apply) -> list[Piece] | None:
        """abs, min and max of expressions that differ by i - j and a constant; abs(m (i - j)) is abs(m) abs(i - j)."""
        g = self.graph
        left = expr.args[0]
        right = expr.args[1] if len(expr.args) == 2 else g.apply("neg", left)
        powers = by_distance(g, g.apply("sub", left, right))
        if powers is None:
            return None
        if expr.fn == "abs" and set(powers) == {1} and constant(powers[1]) is None:
            slope = (by_distance(g, left) or powers)[1]
            distance = g.apply("abs", g.apply("sub", g.position("i"), g.position("j")))
            return self.cases(g.apply("mul", g.apply("abs", slope), distance))
        larger = g.apply("ge", left, right)
        above, below = self.where(larger, True), self.where(larger, False)
        if any(guard.pairs for guard in (*above, *below)):
            return None
        first, second = (right, left) if expr.fn == "min" else (left, right)
        return [Piece(guard, first) for guard in above] + [Piece(guard, second) for guard in below]
