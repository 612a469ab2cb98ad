"""Upper bounds of the ranks of a mask's off-diagonal blocks, from the parts it is made of.

Sums add ranks, Hadamard products multiply them, a band of hi diagonals has at most hi (Dao & Gu 2024, §3). Where all
parts of a band end, or streams start late, is within one number of rows s, s + 1, ... of L[s:, :s], counted once.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

from sma_compiler.facts.sizes import symbol, to_sympy
from sma_compiler.ir.graph import Graph
from sma_compiler.ir.nodes import Expr, Levels
from sma_compiler.mask.algebra import constant, tidy
from sma_compiler.mask.nodes import Stream, Turn
from sma_compiler.mask.streams import Analysis, Part, analyse
from sma_compiler.mask.terms import Term

if TYPE_CHECKING:
    import sympy


def ranks(graph: Graph, analysis: Analysis) -> tuple[Any, Any]:
    """Bounds of the rank of L[s:, :s] and of L[:s, s:] over all s, as sympy expressions or ints."""
    full = _streams_rank(graph, analysis, "full")
    lower, upper = (_side_rank(graph, analysis, side, full) for side in (0, 1))
    return lower, upper


def _side_rank(graph: Graph, analysis: Analysis, side: int, full: sympy.Expr) -> sympy.Expr:
    """The rank of the blocks below (side 0) or above (1) the diagonal. full: that of streams over all pairs."""
    name = ("lower", "upper")[side]
    far = full + _streams_rank(graph, analysis, name)
    edges: list[Any] = [
        stream.first + stream.delay - 1 for stream in analysis.decomposition.streams if stream.side == name
    ]
    for part in analysis.parts:
        if part.streams:
            continue
        lo, hi = (None if end is None else to_sympy(end) for end in (part.piece.guard.lo, part.piece.guard.hi))
        start, stop = (lo, hi) if side == 0 else (None if hi is None else -hi, None if lo is None else -lo)
        if stop is None:
            far = far + _far_rank(graph, part, side)
            edges += [] if start is None else [start - 1]
        else:
            edges.append(_least(stop, half()) if _is_opaque(part) else stop)
    edges = [edge for edge in dict.fromkeys(map(_number, edges)) if not edge.is_nonpositive]
    if not edges:
        return far
    return edges[0] if far == 0 and len(edges) == 1 else _most(far, *(far + edge for edge in edges))


def _streams_rank(graph: Graph, analysis: Analysis, side: str) -> sympy.Expr:
    streams = [s for s in analysis.decomposition.streams if s.side == side]
    by_row = _spanned(graph, streams, [(s.row, s.gates, s.segments, s.contracted) for s in streams])
    if any(stream.delay for stream in streams):
        return by_row
    by_col = _spanned(graph, streams, [(s.col, s.gates, s.segments, s.contracted) for s in streams])
    difference = by_row - by_col
    return by_col if getattr(difference, "is_positive", difference > 0) else by_row


def _spanned(graph: Graph, streams: list[Stream], keys: list[tuple[Any, ...]]) -> sympy.Expr:
    """The number of functions that the streams' rows (or columns) are made of."""
    groups: dict[Any, list[Stream]] = {}
    for stream, (factors, *rest) in zip(streams, keys, strict=True):
        varying = tuple(sorted((factor for factor in factors if factor.positions), key=id))
        groups.setdefault((varying, *rest), []).append(stream)
    total: Any = 0
    for members in groups.values():
        basis: dict[Expr, int] = {}
        for stream in members:
            for frequency in frequencies(graph, stream.turns):
                basis[frequency] = max(basis.get(frequency, 0), stream.degree)
        size: Any = sum((1 if constant(f) == 0 else 2) * (degree + 1) for f, degree in basis.items())
        for axis in members[0].contracted:
            size = size * symbol(axis.partition("'")[0])
        total = total + size
    return total


def frequencies(graph: Graph, turns: tuple[Turn, ...]) -> set[Expr]:
    """The frequencies of a product of cosines and sines: cos(w d) ** 2 has 0 and 2 w. A sign is immaterial."""
    found: set[Expr] = set()
    for signs in product((1, -1), repeat=len(turns)):
        total: Expr = graph.const(0)
        for sign, turn in zip(signs, turns, strict=True):
            total = graph.apply("add" if sign > 0 else "sub", total, turn.rate)
        total = tidy(graph, total)
        if tidy(graph, graph.apply("neg", total)) not in found:
            found.add(total)
    return found


def _is_opaque(part: Part) -> bool:
    """Whether some factor of a part is no function of i or of j."""
    return bool(part.piece.guard.pairs) or any(term.opaque for term in part.terms)


def _far_rank(graph: Graph, part: Part, side: int) -> sympy.Expr:
    """The rank of a part that no stream holds, far enough from the diagonal: that of its value."""
    if part.piece.guard.pairs:
        return half()
    return sum((_term_rank(graph, term, side) for term in part.terms), start=0)


def half() -> sympy.Expr:
    """The rank that no off-diagonal block of a T by T matrix exceeds."""
    return symbol("time") // 2


def _least(a: sympy.Expr, b: sympy.Expr) -> sympy.Expr:
    from sympy import Min

    return Min(a, b)


def _number(x: sympy.Expr | int) -> sympy.Expr:
    from sympy import sympify

    return sympify(x)


def _most(*of: sympy.Expr | int) -> sympy.Expr:
    from sympy import Max

    return Max(*of)


def _term_rank(graph: Graph, term: Term, side: int) -> sympy.Expr:
    """The rank of one term, unbounded in distance: the product of the ranks of its factors."""
    rank: Any = 1
    for factor in term.opaque:
        if not isinstance(factor, Levels):
            return half()
        rank = rank * (symbol("level") - 1)
    if term.product is not None:
        rank = rank * sum(ranks(graph, analyse(graph, mask))[side] for mask in (term.product.left, term.product.right))
    waves = sum(1 if constant(f) == 0 else 2 for f in frequencies(graph, term.turns))
    for axis in term.contracted:
        rank = rank * symbol(axis.partition("'")[0])
    return rank * waves * (term.degree + 1)
