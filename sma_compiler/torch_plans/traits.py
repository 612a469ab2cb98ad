"""What evaluation needs to know of expressions beforehand: where they are 0 for certain, and which logs are safe.

Every predicate is a rule for one node in terms of its operands, folded over the expression without recursion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from sma_compiler.ir.nodes import (
    Apply,
    At,
    Attend,
    Const,
    Expr,
    Kind,
    MaskTimes,
    Param,
    Reduce,
    Rename,
    Rope,
    Solve,
    children,
    postorder,
)

T = TypeVar("T")

_MOST_PARTS = 8
_LINEAR = frozenset({"add", "sub", "neg"})
_NEVER_NEGATIVE = frozenset({"exp", "sigmoid", "softplus", "relu", "abs", "sqrt"})


class Traits:
    """The predicates, remembered for every node that was asked about."""

    def __init__(self) -> None:
        self._linear: dict[Expr, bool] = {}
        self._parts: dict[Expr, frozenset[Expr]] = {}
        self._positive: dict[Expr, bool] = {}

    def linear(self, expr: Expr) -> bool:
        """No derivative within the expression can be infinite or NaN, whatever the values of its leaves are."""
        return _fold(expr, _linear, self._linear)

    def parts(self, expr: Expr) -> frozenset[Expr]:
        """Nodes that are 0 or false wherever `expr` is selected away; empty: nothing selects it."""
        return _fold(expr, _parts, self._parts)

    def positive(self, expr: Expr) -> bool:
        """The logarithm follows from the operands' logarithms: a product, sum, power … of what is never negative."""
        return _fold(expr, _positive, self._positive)


def _fold(root: Expr, rule: Callable[[Expr, dict[Expr, T]], T], done: dict[Expr, T]) -> T:
    if root not in done:
        for node in postorder((root,)):
            if node not in done:
                done[node] = rule(node, done)
    return done[root]


def _linear(node: Expr, done: dict[Expr, bool]) -> bool:
    if node.kind is not Kind.REAL:
        return True
    match node:
        case Apply(fn=fn, args=args) if fn in _LINEAR:
            return all(done[arg] for arg in args)
        case Apply(fn="where", args=(_, yes, no)):
            return done[yes] and done[no]
        case Apply(fn="mul", args=(left, right)):
            numbers = [arg for arg in (left, right) if arg.kind is Kind.REAL and not _number(arg)]
            return len(numbers) <= 1 and done[left] and done[right]
        case Apply() | Rope() | Reduce(fn="softmax"):
            return False
        case Reduce(x=x) | Rename(x=x):
            return done[x]
    return True


def _number(expr: Expr) -> bool:
    return isinstance(expr, Const) or (isinstance(expr, Param) and expr.number)


def _parts(node: Expr, done: dict[Expr, frozenset[Expr]]) -> frozenset[Expr]:
    found: frozenset[Expr] = frozenset()
    match node:
        case Expr(kind=Kind.BOOL) | Const(value=0):
            return frozenset((node,))
        case Apply(fn="mul", args=args):
            found = frozenset().union(*(done[arg] for arg in args))
        case Apply(fn="neg" | "abs" | "div", args=(x, *_)):
            return done[x]
        case Apply(fn="add" | "sub", args=(left, right)) if done[left] and done[right]:
            return frozenset((node,))
        case Apply(fn="where", args=(_, yes, no)) if done[yes] or done[no]:
            return frozenset((node,))
        case Reduce(fn="sum" | "mean", x=x) | Rename(x=x) if done[x]:
            return frozenset((node,))
    return found if len(found) <= _MOST_PARTS else frozenset((node,))


def _positive(node: Expr, done: dict[Expr, bool]) -> bool:
    match node:
        case Expr(kind=Kind.BOOL):
            return True
        case Const(value=value):
            return value >= 0
        case Apply(fn=fn) if fn in _NEVER_NEGATIVE:
            return True
        case Apply(fn="pow", args=(_, exponent)):
            return not isinstance(exponent, Const)
        case Apply(fn="where", args=(_, yes, no)):
            return done[yes] and done[no]
        case Apply(fn="add" | "mul" | "div" | "min" | "max", args=args):
            return all(done[arg] for arg in args)
        case Reduce(fn="softmax"):
            return True
        case Reduce(x=x) | Rename(x=x) | At(x=x):
            return done[x]
    return False


def wide_nodes(roots: Iterable[Expr]) -> frozenset[Expr]:
    """The nodes that feed a phase: arguments of sin and cos and angles of rope, and everything below them."""
    phases: list[Expr] = []
    for node in postorder(roots):
        match node:
            case Apply(fn="sin" | "cos", args=(x,)):
                phases.append(x)
            case Rope(angle=angle):
                phases.append(angle)
    return frozenset(_below(phases))


def _below(roots: Iterable[Expr]) -> Iterable[Expr]:
    """Every node below the roots, except below attend and solve, and except masks: they have a dtype of their own."""
    seen: set[Expr] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if isinstance(node, MaskTimes):
            stack.append(node.x)
        elif not isinstance(node, Attend | Solve):
            stack.extend(children(node))
    return seen
