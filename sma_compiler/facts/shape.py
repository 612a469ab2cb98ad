"""Facts read off the mask expression itself: Toeplitz, and which gates it has."""

from __future__ import annotations

from sma_compiler.ir.graph import COMPARISONS, Graph
from sma_compiler.ir.nodes import Apply, At, Expr, Kind, Lag, Levels, MaskProduct, PathSum, Reduce
from sma_compiler.mask.algebra import by_distance


def toeplitz(graph: Graph, mask: Expr) -> bool:
    """Whether every entry depends on i - j only: no tensor is indexed in time and no position stands alone."""
    work = [mask]
    while work:
        node = work.pop()
        if not node.positions or by_distance(graph, node) is not None:
            continue
        match node:
            case Apply(fn=fn, args=(a, b)) if fn in COMPARISONS and a.kind is not Kind.BOOL:
                if by_distance(graph, graph.apply("sub", a, b)) is None:
                    work += [a, b]
            case Apply(args=args):
                work += args
            case Reduce(x=x) | Lag(index=x):
                work.append(x)
            case PathSum(gate=gate):
                if gate.positions:
                    return False
            case At() | Levels() | MaskProduct():
                return False
            case _:
                return False
    return True


def gate(mask: Expr) -> str:
    """`"key"`, `"value"` or `"key_value"` where the mask carries these axes, else `"scalar"`; `"none"` for 0 and 1."""
    carried = "_".join(axis for axis in ("key", "value") if axis in mask.axes)
    if carried:
        return carried
    return "none" if mask.kind is Kind.BOOL or not mask.positions else "scalar"
