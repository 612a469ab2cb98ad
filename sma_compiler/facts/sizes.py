"""Numbers that depend on sizes known only at the call: ranks and state sizes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sma_compiler.ir.nodes import Apply, Const, Expr, Param, Size, postorder

if TYPE_CHECKING:
    import sympy


Tree = tuple[Any, ...]
"""A sympy expression as plain data: the name of a function and its arguments, or of a leaf and what it holds."""


@dataclass(frozen=True)
class SizeExpr:
    """An integer expression in axis sizes (`key`, `time`, ...) and int parameters, such as `w - 1`."""

    tree: Tree

    def __reduce__(self) -> tuple[type[SizeExpr], tuple[Tree]]:
        return SizeExpr, (self.tree,)  # without `expr`, for which sympy has to be loaded

    @cached_property
    def expr(self) -> sympy.Expr:
        """In sympy."""
        return _grown(self.tree)

    def at(self, **sizes: int) -> int:
        """Its value, 0 where it is negative: a window of no width; needs every name it mentions, ignores others."""
        missing = [name for name in self.names if name not in sizes]
        if missing:
            raise TypeError(f"{self} needs {', '.join(missing)}")
        return max(0, int(self.expr.subs({symbol: sizes[str(symbol)] for symbol in self.expr.free_symbols})))

    @property
    def names(self) -> tuple[str, ...]:
        """The sizes and parameters that it mentions, sorted."""
        return tuple(sorted(str(symbol) for symbol in self.expr.free_symbols))

    def __str__(self) -> str:
        return str(self.expr)


Count = int | SizeExpr
"""A number known at compile time, or an expression in sizes."""


def symbol(name: str) -> sympy.Expr:
    """The sympy symbol of a size."""
    from sympy import Symbol

    return Symbol(name, integer=True, positive=True)


def number(name: str) -> sympy.Expr:
    """The sympy symbol of an int parameter."""
    from sympy import Symbol

    return Symbol(name, integer=True)


def count(expr: sympy.Expr | int) -> Count:
    """A sympy expression (or an int) as a count."""
    return int(expr) if getattr(expr, "is_Integer", isinstance(expr, int)) else SizeExpr(_tree(expr))


def _tree(expr: sympy.Basic) -> Tree:
    if expr.is_Symbol:
        return "Size" if expr.is_positive else "Number", expr.name
    if expr.is_Rational:
        return "Rational", int(expr.p), int(expr.q)
    return type(expr).__name__, *map(_tree, expr.args)


def _grown(tree: Tree) -> sympy.Expr:
    import sympy

    name, *parts = tree
    if name in ("Size", "Number"):
        return symbol(parts[0]) if name == "Size" else number(parts[0])
    if name == "Rational":
        return sympy.Rational(*parts)
    return getattr(sympy, name)(*map(_grown, parts))


def at(amount: Count, **sizes: int) -> int:
    """The value of a count at some sizes."""
    return amount if isinstance(amount, int) else amount.at(**sizes)


def to_sympy(expr: Expr) -> sympy.Expr:
    """A static integer expression as sympy, built node by node: no text is ever parsed."""
    from sympy import Add, Integer, Max, Min, Mod, Mul, floor

    table = {
        "add": Add,
        "sub": lambda a, b: a - b,
        "mul": Mul,
        "neg": lambda a: -a,
        "min": Min,
        "max": Max,
        "floordiv": lambda a, b: floor(a / b),
        "mod": Mod,
    }
    values: dict[Expr, Any] = {}
    for node in postorder((expr,)):
        match node:
            case Const(value=value):
                values[node] = Integer(int(value))
            case Param(name=name):
                values[node] = number(name)
            case Size(axis=axis):
                values[node] = symbol(axis)
            case Apply(fn=fn, args=args) if fn in table:
                values[node] = table[fn](*(values[arg] for arg in args))
            case _:
                values[node] = symbol("time")
    return values[expr]
