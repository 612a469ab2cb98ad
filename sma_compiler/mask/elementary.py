"""Elementary time operators: shifts and cumulative sums, which one pass over time computes whatever the plan."""

from __future__ import annotations

from dataclasses import dataclass

from sma_compiler.ir.graph import Graph
from sma_compiler.ir.nodes import Expr, MaskTimes
from sma_compiler.mask.algebra import constant
from sma_compiler.mask.streams import analyse


@dataclass(frozen=True)
class Shift:
    """x[i - by]."""

    by: int
    kind = "shift"


@dataclass(frozen=True)
class Sum:
    """The sum of x[j] over j <= i - by (by 0 or 1), or over j >= i - by (0 or -1) where `backward`."""

    by: int
    backward: bool
    kind = "cumsum"


def elementary(graph: Graph, node: Expr) -> Shift | Sum | None:
    """What an `L @ x` is, if its mask of constants is one shifted diagonal, or all ones on one side of it."""
    if not isinstance(node, MaskTimes):
        return None
    parts = analyse(graph, node.mask).parts
    if len(parts) != 1 or constant(parts[0].piece.value) != 1:
        return None
    guard = parts[0].piece.guard
    if guard.segments or guard.rows or guard.cols or guard.pairs:
        return None
    lo, hi = (None if bound is None else constant(bound) for bound in (guard.lo, guard.hi))
    if lo is not None and lo == hi:
        return Shift(lo)
    if lo in (0, 1) and guard.hi is None and lo is not None:
        return Sum(lo, False)
    if hi in (0, -1) and guard.lo is None and hi is not None:
        return Sum(hi, True)
    return None
