"""The band that holds a mask, read in one pass: for masks that are too large to be taken apart."""

from __future__ import annotations

from sma_compiler.ir.nodes import Apply, Const, Expr, Kind, Lag, Levels, MaskProduct, Position, Reduce
from sma_compiler.mask.algebra import mask_nodes

Band = tuple[int | None, int | None]
"""Literal bounds of i - j, None where there is none."""

_EVERYWHERE: Band = (None, None)


def band(mask: Expr) -> Band:
    """Bounds of i - j wherever the mask is not 0."""
    found: dict[Expr, Band] = {}
    for node in mask_nodes(mask):
        found[node] = _band(node, found) if node.positions else _EVERYWHERE
    return found[mask]


def _band(node: Expr, found: dict[Expr, Band]) -> Band:
    match node:
        case Levels(row=row):
            return (0, None) if row == "i" else (None, 0)
        case Reduce(fn="sum" | "mean", x=x):
            return found[x]
        case MaskProduct(left=a, right=b):
            (low, high), (lower, higher) = found[a], found[b]
            return _sum(low, lower), _sum(high, higher)
        case Lag(index=Apply(fn="sub", args=(Position(name="i"), Position(name="j")))):
            return 0, None
        case Apply(fn="mul" | "and", args=(a, b)):
            return _meet(found[a], found[b])
        case Apply(fn="add" | "sub" | "or" | "max" | "min", args=(a, b)):
            return _join(found[a], found[b])
        case Apply(fn="where", args=(condition, a, b)):
            chosen = _meet(found[condition], found[a])
            return chosen if isinstance(b, Const) and b.value == 0 else _join(chosen, found[b])
        case Apply(fn="neg" | "abs" | "relu" | "sqrt", args=(a,)) | Apply(fn="div", args=(a, _)):
            return found[a]
        case Apply(fn="lt" | "le" | "gt" | "ge" | "eq" as fn, args=(a, b)):
            return _comparison(fn, a, b)
    return _EVERYWHERE


def _sum(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


def _meet(a: Band, b: Band) -> Band:
    lows, highs = ([end for end in ends if end is not None] for ends in zip(a, b, strict=True))
    return max(lows, default=None), min(highs, default=None)


def _join(a: Band, b: Band) -> Band:
    lo = None if a[0] is None or b[0] is None else min(a[0], b[0])
    return lo, None if a[1] is None or b[1] is None else max(a[1], b[1])


def _comparison(fn: str, a: Expr, b: Expr) -> Band:
    """`i >= j`, `i - j < 3` and the like, either way round."""
    if fn in ("lt", "le"):
        return _comparison("gt" if fn == "lt" else "ge", b, a)
    left, right = _distance(a), _distance(b)
    if left is None or right is None:
        return _EVERYWHERE
    slope, least = left[0] - right[0], right[1] - left[1] + (fn == "gt")  # slope * (i - j) >= least, or ==
    if left[2] != right[2] or slope not in (1, -1):
        return _EVERYWHERE
    if fn == "eq":
        return slope * least, slope * least
    return (least, None) if slope > 0 else (None, -least)


def _distance(x: Expr) -> tuple[int, int, str] | None:
    """x as s * (i - j) + c + j: s, c, and \"j\" where the last term is there."""
    match x:
        case Position(name=name):
            return (1 if name == "i" else 0), 0, "j"
        case Const(kind=Kind.INT, value=value):
            return 0, int(value), ""
        case Apply(fn="sub", args=(Position(name=a), Position(name=b))):
            return {"ij": 1, "ji": -1}.get(a + b, 0), 0, ""
    return None
