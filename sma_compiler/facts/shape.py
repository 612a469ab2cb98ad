"""Facts of the shape of a mask: Toeplitz, symmetric, and which gates it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

from sma_compiler.ir.graph import COMPARISONS, Graph
from sma_compiler.ir.nodes import Apply, Const, Expr, Kind, Lag, PathSum, Position, Reduce
from sma_compiler.mask.algebra import by_distance, constant, mask_nodes
from sma_compiler.mask.nodes import Stream
from sma_compiler.mask.streams import Analysis, Part, analyse, is_small


def toeplitz(graph: Graph, mask: Expr, analysis: Analysis) -> bool:
    """Whether every entry depends on i - j only: so it is written, or so its parts are."""
    return _written_along_diagonals(graph, mask) or all(_part_along_diagonals(graph, part) for part in analysis.parts)


def _part_along_diagonals(graph: Graph, part: Part) -> bool:
    guard = part.piece.guard
    if guard.segments or guard.rows or guard.cols or guard.pairs:
        return False
    for term in part.terms:
        varying = [*term.row, *term.col, *(gate.log for gate in term.gates)]
        if term.product is not None or any(x.positions for x in varying):
            return False
        if not all(_written_along_diagonals(graph, factor) for factor in term.opaque):
            return False
    return True


def _written_along_diagonals(graph: Graph, mask: Expr) -> bool:
    """Whether no tensor is indexed in time and no position stands alone."""
    small = is_small(mask)
    found: dict[Expr, bool] = {}
    for node in mask_nodes(mask):
        found[node] = not node.positions or _along_diagonals(graph, node, found, small)
    return found[mask]


def _along_diagonals(graph: Graph, node: Expr, found: dict[Expr, bool], small: bool) -> bool:
    match node:
        case Apply(args=args) if all(found[arg] for arg in args):
            return True
        case Apply(fn="sub", args=(Position(), Position())):
            return True
        case Apply(fn=fn, args=(a, b)) if small and fn in COMPARISONS and a.kind is not Kind.BOOL:
            return by_distance(graph, graph.apply("sub", a, b)) is not None
        case Apply() if small:
            return by_distance(graph, node) is not None
        case Apply(fn=fn, args=(Position(), Position())):
            return fn in COMPARISONS
        case Reduce(x=x) | Lag(index=x):
            return found[x]
        case PathSum(gate=gate):
            return not gate.positions
    return False


def symmetric(graph: Graph, mask: Expr, analysis: Analysis) -> bool:
    """Whether the parts below the diagonal are those of the transpose below the diagonal."""
    lo, hi = (
        None if bound is None else constant(bound) for bound in (analysis.decomposition.lo, analysis.decomposition.hi)
    )
    if (lo is not None and lo >= 0) or (hi is not None and hi <= 0):
        return lo == hi == 0
    below = graph.apply("gt", graph.position("i"), graph.position("j"))
    ours, theirs = (graph.apply("mul", below, each) for each in (mask, graph.transpose(mask)))
    if not (is_small(ours) and is_small(theirs)):
        return False
    a, b = analyse(graph, ours).decomposition, analyse(graph, theirs).decomposition
    return Counter(map(_unordered, a.streams)) == Counter(map(_unordered, b.streams)) and set(a.near) == set(b.near)


def _unordered(stream: Stream) -> tuple[Hashable, ...]:
    """A stream whatever the order of its factors."""
    factors = (stream.row, stream.col, stream.feed, stream.gates, stream.turns, stream.segments)
    bags = (frozenset(Counter(each).items()) for each in factors)
    return (stream.side, stream.first, stream.degree, stream.delay, stream.contracted, *bags)


def gate(mask: Expr) -> str:
    """`"key"`, `"value"` or `"key_value"` where the mask carries these axes, else `"scalar"`; `"none"` for 0 and 1."""
    carried = "_".join(axis for axis in ("key", "value") if axis in mask.axes)
    if carried:
        return carried
    return "none" if _selects(mask) or not mask.positions else "scalar"


def _selects(mask: Expr) -> bool:
    """Whether every entry is 0 or 1."""
    found: dict[Expr, bool] = {}
    for node in mask_nodes(mask):
        match node:
            case Const(value=value):
                found[node] = value in (0, 1)
            case _ if not node.positions:
                found[node] = False
            case Apply(fn="where", args=(_, a, b)) | Apply(fn="mul" | "min" | "max", args=(a, b)):
                found[node] = found[a] and found[b]
            case Apply(fn="sub", args=(Const(value=1), a)) | Apply(fn="abs" | "relu", args=(a,)):
                found[node] = found[a]
        found[node] = found.get(node, False) or node.kind is Kind.BOOL
    return found[mask]
