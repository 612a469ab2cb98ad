"""Upper bounds of the ranks of a mask's off-diagonal blocks, from the parts it is made of.

Sums add ranks, Hadamard products multiply them, a band of hi diagonals has at most hi (Dao & Gu 2024, §3).
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
    lower = upper = _streams_rank(graph, analysis, "full")
    lower += _streams_rank(graph, analysis, "lower")
    upper += _streams_rank(graph, analysis, "upper")
    for part in analysis.parts:
        if not part.streams:
            below, above = _near_ranks(graph, part)
            lower, upper = lower + below, upper + above
    return lower, upper


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
        total = total + size * max(1, *(stream.delay for stream in members))
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


def _near_ranks(graph: Graph, part: Part) -> tuple[Any, Any]:
    """A near part has no more rank than diagonals on a side, and an unbounded one the rank of its value."""
    guard = part.piece.guard
    opaque = bool(guard.pairs) or any(term.opaque for term in part.terms)
    found = []
    for side, bound in ((0, guard.hi), (1, guard.lo)):
        if bound is None:
            own = half() if guard.pairs else sum((_term_rank(graph, term, side) for term in part.terms), start=0)
            found.append(own)
            continue
        width = -to_sympy(bound) if side else to_sympy(bound)
        found.append(0 if width.is_nonpositive else _least(width, half()) if opaque else width)
    return found[0], found[1]


def half() -> sympy.Expr:
    """The rank that no off-diagonal block of a T by T matrix exceeds."""
    return symbol("time") // 2


def _least(a: sympy.Expr, b: sympy.Expr) -> sympy.Expr:
    from sympy import Min

    return Min(a, b)


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
