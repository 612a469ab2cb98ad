"""Reverse-mode differentiation of pointwise expressions: one rule for each function, gradients as expressions.

Kinks are torch's: relu and abs have slope 0 at 0, ties of `min` and `max` share. A boolean factor and `where` select:
what they leave out has the gradient 0, also where its own derivative is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass

from sma_compiler.ir.graph import Graph, sort_axes
from sma_compiler.ir.nodes import Apply, At, Const, Contraction, Expr, Kind, Reduce, children, postorder

OUTSIDE = frozenset({"batch", "time", "head"})
"""Axes that a gradient keeps where its leaf lacks them: kernels sum over all others."""


@dataclass(frozen=True, eq=False)
class X:
    """An expression under construction, with Python's operators."""

    graph: Graph
    expr: Expr

    def __add__(self, other: X | float) -> X:
        return self.to("add", other)

    def __sub__(self, other: X | float) -> X:
        return self.to("sub", other)

    def __rsub__(self, other: float) -> X:
        return self.number(other).to("sub", self)

    def __mul__(self, other: X | float) -> X:
        if isinstance(self.expr, Const) and self.expr.kind is not Kind.BOOL and self.expr.value == 1:
            return other if isinstance(other, X) else self.number(other)
        return self.to("mul", other)

    def __rmul__(self, other: float) -> X:
        return self.number(other) * self

    def __truediv__(self, other: X | float) -> X:
        return self.to("div", other)

    def __pow__(self, other: X | float) -> X:
        return self.to("pow", other)

    def __neg__(self) -> X:
        if isinstance(self.expr, Apply) and self.expr.fn == "neg":
            return X(self.graph, self.expr.args[0])
        return self.to("neg")

    def number(self, value: float) -> X:
        """A constant of the same graph."""
        return X(self.graph, self.graph.const(float(value)))

    def to(self, fn: str, *others: X | float) -> X:
        """A function of this expression and others."""
        given = (other if isinstance(other, X) else self.number(other) for other in others)
        return X(self.graph, self.graph.apply(fn, self.expr, *(other.expr for other in given)))

    def where(self, fn: str, other: X | float, yes: X, no: X | float = 0.0) -> X:
        """`yes` where a comparison with another expression holds, else `no`."""
        return self.to(fn, other).to("where", yes, no)


Rule = Callable[..., tuple["X | None", ...]]
"""(cotangent, value, arguments...) -> the cotangents of the arguments."""

RULES: dict[str, Rule] = {
    "add": lambda d, y, a, b: (d, d),
    "sub": lambda d, y, a, b: (d, -d),
    "mul": lambda d, y, a, b: (d * b, d * a),
    "div": lambda d, y, a, b: (d / b, -(d * (y / b))),
    "neg": lambda d, y, a: (-d,),
    "pow": lambda d, y, a, b: _power(d, y, a, b),
    "where": lambda d, y, c, a, b: (None, c.to("where", d, 0.0), c.to("where", 0.0, d)),
    "min": lambda d, y, a, b: (_sooner(d, a, b), _sooner(d, b, a)),
    "max": lambda d, y, a, b: (_sooner(d, b, a), _sooner(d, a, b)),
    "abs": lambda d, y, a: (a.where("gt", 0.0, d) - a.where("lt", 0.0, d),),
    "exp": lambda d, y, a: (d * y,),
    "log": lambda d, y, a: (d / a,),
    "log2": lambda d, y, a: (d / (a * math.log(2.0)),),
    "sqrt": lambda d, y, a: (d / (y * 2.0),),
    "relu": lambda d, y, a: (a.where("gt", 0.0, d),),
    "sigmoid": lambda d, y, a: (d * (y * (1.0 - y)),),
    "silu": lambda d, y, a: (d * (a.to("sigmoid") + y * (1.0 - a.to("sigmoid"))),),
    "logsigmoid": lambda d, y, a: (d * (-a).to("sigmoid"),),
    "softplus": lambda d, y, a: (d * a.to("sigmoid"),),
    "tanh": lambda d, y, a: (d * (1.0 - y * y),),
    "elu": lambda d, y, a: (d * a.to("exp").to("min", 1.0),),
    "gelu": lambda d, y, a: (d * a.to("gelu_slope"),),
}
"""How each function hands a cotangent on; `gelu_slope` is a leaf helper of the kernels."""

_UNBOUNDED = frozenset({"div", "pow", "exp", "log", "log2", "sqrt"})
"""Functions whose derivative may be infinite where a selection has made the cotangent 0."""


def _power(d: X, y: X, a: X, b: X) -> tuple[X | None, ...]:
    """Of a literal exponent; any other takes the base as positive."""
    if not isinstance(b.expr, Const):
        slope = b.where("eq", 0.0, b.number(0.0), b * a ** (b - 1.0))
        return d * slope, a.where("gt", 0.0, d * (y * a.to("log")))
    exponent = float(b.expr.value)
    if exponent == 0:
        return None, None
    if exponent in (1, 2):
        return (d if exponent == 1 else d * (a * 2.0)), None
    return d * (a ** (exponent - 1) * exponent), None


def _sooner(d: X, a: X, b: X) -> X:
    """The cotangent of a in `min(a, b)`."""
    return a.where("lt", b, d, a.where("eq", b, d * 0.5))


def gradients(
    graph: Graph, outputs: Iterable[tuple[Expr, Expr]], leaves: Iterable[Expr], cut: Container[Expr] = ()
) -> dict[Expr, Expr]:
    """The gradients of some leaves: the sum over all outputs, each given with its cotangent.

    Positions of masks are dropped: `x[i]` counts as x. Sums over axes that a leaf lacks are made, but for those over
    batch, time and head, which a gradient then keeps. Leaves that nothing depends on are left out.

    cut: outputs whose cotangent is exactly 0 where they are cut off, whatever their derivative.
    """
    pairs = [(unplaced(graph, output), given, output in cut) for output, given in outputs]
    wanted = frozenset(leaves)
    nodes = _between([output for output, _, _ in pairs], wanted)
    selected: set[Expr] = set()
    found: dict[Expr, X] = {}

    def add(node: Expr, cotangent: X, axes: tuple[str, ...]) -> None:
        if node in nodes:
            new, old = _summed(cotangent, node, axes), found.get(node)
            if old is not None:
                new = old * 2.0 if new.expr is old.expr else old + new
            found[node] = new

    for output, given, may_be_cut in pairs:
        add(output, X(graph, given), output.axes)
        if may_be_cut:
            selected.add(output)
    for node in reversed(nodes):
        if node in wanted or node not in found:
            continue
        handed = _handed(graph, node, found[node], node in selected)
        for child, cotangent in zip(children(node), handed, strict=True):
            if cotangent is not None:
                add(child, cotangent, node.axes)
            if node in selected or _selects(node):
                selected.add(child)
    return {leaf: made.expr for leaf, made in found.items() if leaf in wanted}


def unplaced(graph: Graph, expr: Expr) -> Expr:
    """The expression with `x[i]` as x throughout."""
    done: dict[Expr, Expr] = {}
    for node in postorder((expr,)):
        done[node] = done[node.x] if isinstance(node, At) else graph.rebuild(node, done)
    return done[expr]


def _between(outputs: list[Expr], leaves: frozenset[Expr]) -> dict[Expr, None]:
    """The real nodes on the way from the outputs to the leaves, leaves included, operands before users."""
    found: dict[Expr, None] = {}
    seen: set[Expr] = set()
    stack = [(output, False) for output in reversed(outputs)]
    while stack:
        node, ready = stack.pop()
        below = () if node in leaves or isinstance(node, Contraction) else children(node)
        if ready:
            if node.kind is Kind.REAL and (node in leaves or any(child in found for child in below)):
                found[node] = None
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((child, False) for child in reversed(below))
    return found


def _handed(graph: Graph, node: Expr, cotangent: X, selected: bool) -> tuple[X | None, ...]:
    """What a node hands to each of its operands."""
    match node:
        case Reduce(fn="sum"):
            return (cotangent,)
        case Reduce(fn="mean", axis=axis):
            return (cotangent / X(graph, graph.size(axis)),)
        case Apply(fn="mul", args=(a, b)) if Kind.BOOL in (a.kind, b.kind):
            return tuple(None if x.kind is Kind.BOOL else X(graph, y).to("mul", cotangent) for x, y in ((a, b), (b, a)))
        case Apply(fn=fn, args=args) if fn in RULES:
            handed = RULES[fn](cotangent, X(graph, node), *(X(graph, arg) for arg in args))
            if not selected or not _unbounded(fn, args):
                return handed
            return tuple(one and cotangent.where("eq", 0.0, one.number(0.0), one) for one in handed)
    raise AssertionError(f"{type(node).__name__} has no derivative")


def _selects(node: Expr) -> bool:
    match node:
        case Apply(fn="where" | "min" | "max" | "relu" | "abs"):
            return True
        case Apply(fn="mul", args=args):
            return any(arg.kind is Kind.BOOL for arg in args)
    return False


def _unbounded(fn: str, args: tuple[Expr, ...]) -> bool:
    """Whether a derivative may be infinite at finite parameters: the function's own, or a factor that it is."""
    inside = (node.fn for node in postorder(args) if isinstance(node, Apply)) if fn == "mul" else ()
    return fn in _UNBOUNDED or not _UNBOUNDED.isdisjoint(inside)


def _summed(cotangent: X, node: Expr, axes: tuple[str, ...]) -> X:
    """A cotangent without the axes that its node lacks, but for those that kernels do not sum over.

    axes: of the node's user. Where the cotangent lacks one, below a sum, it is the same at every index.
    """
    expr = cotangent.expr
    for axis in sort_axes({*expr.axes, *axes} - {*node.axes, *OUTSIDE}):
        if axis in expr.axes:
            expr = cotangent.graph.reduce("sum", expr, axis)
        else:
            expr = cotangent.graph.apply("mul", expr, cotangent.graph.size(axis))
    return X(cotangent.graph, expr)
