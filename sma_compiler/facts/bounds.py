"""Interval arithmetic over expressions: what proves that a mask is not negative and that its gates contract."""

from __future__ import annotations

import math

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
    Rename,
    Size,
    postorder,
)
from sma_compiler.mask.algebra import constant
from sma_compiler.mask.nodes import Decomposition

Interval = tuple[float, float]

ANY: Interval = (-math.inf, math.inf)
_FIXED: dict[str, Interval] = {
    "sigmoid": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "cos": (-1.0, 1.0),
    "sin": (-1.0, 1.0),
    "softplus": (0.0, math.inf),
    "logsigmoid": (-math.inf, 0.0),
    "sqrt": (0.0, math.inf),
    "silu": (-0.2785, math.inf),
    "gelu": (-0.1701, math.inf),
    "elu": (-1.0, math.inf),
}


def _times(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


def _product(a: Interval, b: Interval) -> Interval:
    ends = [_times(x, y) for x in a for y in b]
    return min(ends), max(ends)


def _hull(a: Interval, b: Interval) -> Interval:
    return min(a[0], b[0]), max(a[1], b[1])


def _exp(x: float) -> float:
    return math.inf if x > 700 else math.exp(x)


def bounds(expr: Expr) -> Interval:
    """An interval that holds every value of the expression, whatever its parameters are."""
    found: dict[Expr, Interval] = {}
    for node in postorder((expr,)):
        found[node] = (0.0, 1.0) if node.kind is Kind.BOOL else _bounds(node, found)
    return found[expr]


def band(decomposition: Decomposition) -> Interval:
    """An interval that holds i - j wherever the mask is not 0, whatever the numbers of the call are."""
    lo, hi = decomposition.lo, decomposition.hi
    return -math.inf if lo is None else _ends(lo)[0], math.inf if hi is None else _ends(hi)[1]


def _ends(bound: Expr) -> Interval:
    known = constant(bound)
    return bounds(bound) if known is None else (known, known)


def _bounds(node: Expr, found: dict[Expr, Interval]) -> Interval:
    match node:
        case Const(value=value):
            return float(value), float(value)
        case Size():
            return 1.0, math.inf
        case Position():
            return 0.0, math.inf
        case At(x=x) | Rename(x=x):
            return found[x]
        case Lag(table=table):
            return _hull(found[table], (0.0, 0.0))
        case Levels(weights=weights):
            return _hull(found[weights], (0.0, 0.0))
        case Reduce(fn="softmax"):
            return 0.0, 1.0
        case Reduce(fn="mean", x=x):
            return found[x]
        case Reduce(x=x):
            return _count(found[x])
        case PathSum(gate=gate):
            return _count(found[gate])
        case MaskProduct(left=a, right=b) | MaskTimes(mask=a, x=b):
            return _count(_product(found[a], found[b]))
        case Apply(fn=fn, args=args):
            return _apply(fn, args, [found[arg] for arg in args])
    return ANY


def _count(one: Interval) -> Interval:
    """A sum of any number of such values, none included."""
    return (-math.inf if one[0] < 0 else 0.0), (math.inf if one[1] > 0 else 0.0)


def _apply(fn: str, args: tuple[Expr, ...], of: list[Interval]) -> Interval:
    a = of[0]
    b = of[1] if len(of) > 1 else ANY
    if fn in _FIXED:
        return _FIXED[fn]
    match fn:
        case "add":
            return a[0] + b[0], a[1] + b[1]
        case "sub":
            return a[0] - b[1], a[1] - b[0]
        case "neg":
            return -a[1], -a[0]
        case "mul":
            product = _product(a, b)
            return (max(product[0], 0.0), product[1]) if args[0] is args[1] else product
        case "div":
            return _product(a, (1 / b[1], math.inf if b[0] == 0 else 1 / b[0])) if b[0] >= 0 and b[1] > 0 else ANY
        case "exp":
            return _exp(a[0]), _exp(a[1])
        case "pow":
            return _power(args[1], a, b)
        case "where":
            return _hull(b, of[2])
        case "max":
            return max(a[0], b[0]), max(a[1], b[1])
        case "min":
            return min(a[0], b[0]), min(a[1], b[1])
        case "abs":
            return (0.0 if a[0] <= 0 <= a[1] else min(abs(a[0]), abs(a[1]))), max(abs(a[0]), abs(a[1]))
        case "relu":
            return max(a[0], 0.0), max(a[1], 0.0)
        case "log":
            return (-math.inf if a[0] <= 0 else math.log(a[0])), (math.inf if a[1] in (0, math.inf) else _log(a[1]))
        case "mod":
            return (0.0, b[1]) if b[0] > 0 else ANY
    return ANY


def _log(x: float) -> float:
    return math.log(x) if x > 0 else math.inf


def _power(exponent: Expr, a: Interval, b: Interval) -> Interval:
    """A non-literal exponent takes its base as positive; an even one has no sign."""
    if not isinstance(exponent, Const):
        return 0.0, (1.0 if a[1] <= 1 and b[0] >= 0 else math.inf)
    if float(exponent.value) % 2 == 0 or a[0] >= 0:
        return 0.0, math.inf
    return ANY
