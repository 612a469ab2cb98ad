"""Lowers pointwise expressions of the IR to tile expressions, in fp32, each shared part once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sma_compiler.ir.nodes import Apply, Const, Expr, Kind, Reduce, one_less_exp
from sma_compiler.kernel.build import Builder, E, TileError, lift, pointwise, reduce_sum, size, where
from sma_compiler.kernel.linear import is_tensor, plain
from sma_compiler.kernel.nodes import DTYPES, operands

CHANNELS = {"key": "BK", "value": "BV"}
"""The tile size of each channel axis."""

_LONG = 9
"""Nodes of an expression beyond which it gets a variable of its own."""

_LARGEST_POWER = 64
"""The largest literal exponent that is multiplied out."""

_BINARY: dict[str, Callable[[E, E], E]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a.eq(b),
    "ne": lambda a, b: a.ne(b),
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "min": lambda a, b: pointwise("tl.minimum", a, b),
    "max": lambda a, b: pointwise("tl.maximum", a, b),
}
_TRITON = frozenset({"exp", "log", "log2", "sqrt", "abs"})
"""Functions that are Triton's own; the others are leaf helpers."""


class Lowering:
    """Tile expressions of one chunk (or, of static expressions, of one program).

    leaves: parameters, host numbers and contraction results with the tiles that hold them. rows: the size that the
    time axis has in a tile. Expressions with time are vectors over rows, those with a channel axis vectors over it,
    those with both matrices. shared: expressions read more than once.
    """

    sums = "fp32"
    """What sums over channels are made in."""

    def __init__(
        self, builder: Builder, leaves: Mapping[Expr, E], rows: str, shared: frozenset[Expr] = frozenset()
    ) -> None:
        self.builder = builder
        self._shared = shared
        self.rows = rows
        self._done: dict[Expr, E] = dict(leaves)

    def extended(self) -> Lowering:
        """A lowering that knows the same tiles and can learn more."""
        found = Lowering(self.builder, self._done, self.rows, self._shared)
        found.sums = self.sums
        return found

    def bind(self, expr: Expr, value: E) -> None:
        """Give the tile that holds an expression."""
        self._done[expr] = value

    def bound(self) -> dict[Expr, E]:
        """Every expression that has a tile, with the tile."""
        return dict(self._done)

    def raw(self, expr: Expr) -> E:
        """The tile that holds an expression which was bound, in its own dtype."""
        return self._done[plain(expr)]

    def value(self, expr: Expr) -> E:
        """The tile of an expression; bound to a variable where it is long or read more than once."""
        expr = plain(expr)
        if expr not in self._done:
            self._done[expr] = self._lower(expr)
        found = self._done[expr]
        return found.to("fp32") if expr.kind is Kind.REAL and found.tile.dtype in ("in", "dot") else found

    def _lower(self, expr: Expr) -> E:
        match expr:
            case Const(value=value):
                return lift(float(value) if expr.kind is Kind.REAL else value)
            case Apply(fn=fn, args=args):
                made = self._apply(fn, args, expr.kind)
            case Reduce(fn=fn, x=x, axis=axis) if fn in ("sum", "mean"):
                whole = self.value(x).to(self.sums)
                shape, extent = whole.tile.shape, CHANNELS.get(axis, "")
                made = reduce_sum(whole, shape.index(extent) if extent in shape else len(shape) - 1).to("fp32")
            case _:
                raise TileError(f"{type(expr).__name__} has no tile form")
        if expr in self._shared or weight(made) > _LONG:
            return self.builder.let(f"b_{expr.fn}", made)
        return made

    def _apply(self, fn: str, args: tuple[Expr, ...], kind: Kind) -> E:
        if fn == "add" and (inner := _elu_before(args)) is not None:
            return self.builder.helper("elu_plus_one", self.value(inner))
        if fn == "sub" and (exponent := one_less_exp(*(plain(arg) for arg in args))) is not None:
            return -self.builder.helper("expm1", self.value(exponent))
        values = self.together(*(self.value(arg) for arg in args))
        match fn:
            case "mul" if Kind.BOOL in (args[0].kind, args[1].kind):
                condition, other = values if args[0].kind is Kind.BOOL else reversed(values)
                if args[0].kind is args[1].kind:
                    return condition & other
                return where(condition, other, 0.0 if kind is Kind.REAL else 0)
            case "pow":
                return self._power(args[1], *values)
            case "where":
                return where(*values)
            case "neg":
                return -values[0]
            case "not":
                return values[0].eq(False)
            case "floordiv" | "mod":
                whole = [x.to("int32") if x.tile.dtype == "bool" else x for x in values]
                kind_of = max((x.tile.dtype for x in whole), key=DTYPES.index)
                return self.builder.helper(f"floor_{fn.removeprefix('floor')}", *whole, dtype=kind_of)
            case _ if fn in _BINARY:
                return _BINARY[fn](*values)
        (value,) = (x.to("fp32") if x.tile.dtype in ("int32", "int64") else x for x in values)
        if fn in _TRITON:
            return pointwise(f"tl.{fn}", value)
        return self.builder.helper(fn, value)

    def _power(self, exponent: Expr, base: E, power: E) -> E:
        if isinstance(exponent, Const) and float(exponent.value).is_integer() and abs(exponent.value) <= _LARGEST_POWER:
            whole = self._whole_power(self.builder.let("b_base", base), abs(int(exponent.value)))
            return whole if exponent.value >= 0 else 1.0 / whole
        return pointwise("tl.exp2", power * pointwise("tl.log2", base))

    def _whole_power(self, base: E, exponent: int) -> E:
        """By squaring, for a base of either sign."""
        if exponent <= 3:
            return (lift(1.0), base, base * base, base * base * base)[exponent]
        half = self.builder.let("b_base", self._whole_power(base, exponent // 2))
        return half * half * base if exponent % 2 else half * half

    def together(self, *values: E) -> tuple[E, ...]:
        """Tiles that meet, laid out along the axes of all: vectors as columns and rows, matrices as sides of a cube."""
        shapes = {value.tile.shape for value in values if value.tile.shape}
        if len(shapes) <= 1:
            return values
        names = set().union(*shapes) - {"1"}
        order = tuple(name for name in dict.fromkeys((self.rows, *CHANNELS.values())))
        if max(map(len, shapes)) < len(order):
            order = tuple(name for name in order if name in names)
        if names <= set(order):
            return tuple(value.among(order) for value in values)
        return tuple(value.col if value.tile.shape == (self.rows,) else _as_row(value) for value in values)


def operand(b: Builder, expr: Expr, name: str, lowering: Lowering, valid: E) -> E:
    """An operand as a matrix product takes it; what is computed is 0 outside the tensor."""
    if is_tensor(expr):
        return lowering.raw(expr).to("dot")
    value = b.helper("keep", b.let(f"b_{name}", lowering.value(expr)), valid, size("MASKED"))
    return b.let(f"b_{name}", b.helper("pin", value.to("dot"), size("PINNED"), dtype="dot"))


def wide_operand(b: Builder, expr: Expr, name: str, lowering: Lowering, valid: E) -> E:
    """An operand in fp32, for what it is multiplied with before a product takes it."""
    if is_tensor(expr):
        return lowering.value(expr)
    return b.let(f"b_{name}", b.helper("keep", lowering.value(expr), valid, size("MASKED")))


def _elu_before(args: tuple[Expr, ...]) -> Expr | None:
    """x of elu(x) + 1."""
    for one, other in (args, args[::-1]):
        found = plain(other)
        if isinstance(one, Const) and one.value == 1 and isinstance(found, Apply) and found.fn == "elu":
            return found.args[0]
    return None


def _as_row(value: E) -> E:
    return value.row if len(value.tile.shape) == 1 else value


def weight(expr: E) -> int:
    """How many nodes an expression has, which is about how long its text is."""
    count, stack = 0, [expr.node]
    while stack:
        count += 1
        stack.extend(operands(stack.pop()))
    return count
