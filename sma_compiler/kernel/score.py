"""The weight of every pair of a tile, from expressions of leaves: positions, what lies at either end, sums along paths.

Exponents are powers of 2. A sum along a path is the difference of two exponents, each the sum of log gates from the
start of the program's own tile to one end: it is made ahead in fp64 from the start of the sequence and read as two
numbers, so that it rounds as little at the end of a long sequence as at its start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sma_compiler.ir.nodes import Apply, Const, Expr, Kind, Param, postorder
from sma_compiler.kernel.build import MINUS_INFINITY, Builder, E, exp2, lift, pointwise, where
from sma_compiler.kernel.gates import LOG2E
from sma_compiler.kernel.linear import plain
from sma_compiler.kernel.lower import Lowering

LN2 = 0.6931471805599453


@dataclass(frozen=True)
class PathEnds:
    """A path's exponents at late and early ends, laid out along the axes of a tile, and how many cuts come before.

    One of the exponents may be left out, where that changes no weight. empty: where the path holds nothing, if that may
    be; None: nowhere.
    """

    late: E | None
    early: E | None
    late_cuts: E | None = None
    early_cuts: E | None = None
    empty: E | None = None

    @property
    def exponent(self) -> E:
        """log2 of the decay of every pair."""
        if self.early is None:
            assert self.late is not None
            found = self.late
        else:
            found = -self.early if self.late is None else (self.late - self.early).to("fp32")
        if self.late_cuts is not None and self.early_cuts is not None:
            found = where(self.late_cuts.eq(self.early_cuts), found, MINUS_INFINITY)
        return found if self.empty is None else where(self.empty, 0.0, found)


class PairLowering(Lowering):
    """Lowers expressions of pairs. leaves: tiles of everything but paths; paths: of these, in powers of 2.

    seen: where pairs are live: elsewhere exponentials are 0; None: everywhere in the tile. wide: see `Pairs`.
    """

    def __init__(
        self,
        builder: Builder,
        leaves: Mapping[Expr, E],
        paths: Mapping[Param, E],
        shared: frozenset[Expr],
        seen: E | None,
        *,
        wide: bool = False,
    ) -> None:
        super().__init__(builder, leaves, "", shared)
        self.paths = paths
        self.seen = seen
        self.wide = wide
        for leaf, exponent in paths.items():
            self.bind(leaf, exponent * LN2)

    def extended(self) -> PairLowering:
        """A lowering that knows the same tiles and can learn more."""
        return PairLowering(self.builder, self.bound(), self.paths, self._shared, self.seen, wide=self.wide)

    def scaled(self, expr: Expr) -> E:
        """An expression times log2(e)."""
        expr = plain(expr)
        match expr:
            case Param() if expr in self.paths:
                return self.paths[expr]
            case Const(value=value):
                return lift(float(value) * LOG2E)
            case Apply(fn="add", args=(a, b)):
                return self._both(a, b, lambda x, y: x + y)
            case Apply(fn="sub", args=(a, b)):
                return self._both(a, b, lambda x, y: x - y)
            case Apply(fn="neg", args=(a,)) if self._varies(a):
                return -self.scaled(a)
            case Apply(fn="mul", args=(a, b)) if Kind.BOOL not in (a.kind, b.kind):
                if self._varies(a) and not self._varies(b):
                    a, b = b, a
                if self._varies(b) and not self._holds_path(a):
                    return self._product(a, b)
            case Apply(fn="where", args=(c, a, b)):
                condition, yes, no = self.together(self.value(c), self.scaled(a), self.scaled(b))
                return where(condition, yes, no)
            case Apply(fn="log", args=(a,)):
                return self._log2(a)
        return self.value(expr) * LOG2E

    def _both(self, a: Expr, b: Expr, join: object) -> E:
        x, y = self.together(self.scaled(a), self.scaled(b))
        assert callable(join)
        found = join(x, y)
        assert isinstance(found, E)
        return found

    def _product(self, a: Expr, b: Expr) -> E:
        """a b log2(e), the constant with the factor that has fewer entries."""
        if self._holds_path(b):
            x, y = self.together(self.value(a), self.scaled(b))
        else:
            x, y = self.together(self.scaled(a), self.value(b))
        return x * y

    def _holds_path(self, expr: Expr) -> bool:
        return any(node in self.paths for node in postorder((expr,)))

    def _varies(self, expr: Expr) -> bool:
        """Whether an expression differs from pair to pair."""
        return bool(self.value(expr).tile.shape) if not self._holds_path(expr) else True

    def _apply(self, fn: str, args: tuple[Expr, ...], kind: Kind) -> E:
        if fn == "exp":
            return self._power_of_2(self.scaled(args[0]))
        if fn == "pow" and not isinstance(args[1], Const):
            base, exponent = self.together(self._log2(args[0]), self.value(args[1]))
            return self._power_of_2(exponent * base)
        return super()._apply(fn, args, kind)

    def _power_of_2(self, exponent: E) -> E:
        if self.seen is not None and len(exponent.tile.shape) == 2 and "1" not in exponent.tile.shape:
            exponent = where(self.seen, exponent, MINUS_INFINITY)
        return self.exp2(exponent)

    def exp2(self, exponent: E) -> E:
        """2 ** exponent."""
        return self.builder.helper("exact_exp2", exponent) if self.wide else exp2(exponent)

    def _log2(self, x: Expr) -> E:
        value = self.value(x)
        return self.builder.helper("exact_log2", value) if self.wide else pointwise("tl.log2", value)
