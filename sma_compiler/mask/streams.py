"""Decomposes a mask into streams that a state carries and near parts that only tiles compute."""

from __future__ import annotations

from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

from sma_compiler.ir.graph import Graph
from sma_compiler.ir.nodes import Apply, At, Expr, Lag, Levels, MaskProduct, PathSum, children
from sma_compiler.mask.algebra import constant, mask_nodes
from sma_compiler.mask.band import band
from sma_compiler.mask.guards import Guard, Piece
from sma_compiler.mask.nodes import Decomposition, Gate, Near, Stream
from sma_compiler.mask.pieces import Splitter
from sma_compiler.mask.terms import Expander, Term

MAX_NODES, MAX_DEPTH = 400, 80
"""A mask of more operators, or more deeply nested ones (a chain of one operator is flat), is not taken apart."""

MAX_DELAY = 16
"""The widest band of a mask product, and the latest start of a stream, that become delays."""


@dataclass(frozen=True)
class Part:
    """One piece on one side: its terms, and the streams they became; no streams where it stays near.

    `first` is the least |i - j| where the side is "lower" or "upper"; "band" is bounded on both sides.
    """

    piece: Piece
    side: str
    terms: tuple[Term, ...]
    streams: tuple[Stream, ...]
    why_near: str


@dataclass(frozen=True)
class Analysis:
    """Everything known of a mask's make-up."""

    parts: tuple[Part, ...]
    decomposition: Decomposition


def decompose(graph: Graph, mask: Expr) -> Decomposition:
    """The mask as streams and near parts."""
    return analyse(graph, mask).decomposition


_KNOWN: WeakKeyDictionary[Graph, dict[Expr, Analysis]] = WeakKeyDictionary()


def analyse(graph: Graph, mask: Expr) -> Analysis:
    """The mask's pieces with their terms, and the decomposition they make; made once for each mask of a graph."""
    known = _KNOWN.setdefault(graph, {})
    if mask not in known:
        known[mask] = _analyse(graph, mask) if is_small(mask) else _left_whole(graph, mask)
    return known[mask]


def is_small(mask: Expr) -> bool:
    """Whether a mask is small enough to be taken apart."""
    depth: dict[Expr, int] = {}
    for node in mask_nodes(mask):
        below = children(node) if node.positions and not isinstance(node, At | Levels) else ()
        chained = [isinstance(x, Apply) and isinstance(node, Apply) and x.fn == node.fn for x in below[:1]]
        depth[node] = max([depth[x] + (0 if chained[0] and n == 0 else 1) for n, x in enumerate(below)], default=0)
        if len(depth) > MAX_NODES or depth[node] > MAX_DEPTH:
            return False
    return True


def _left_whole(graph: Graph, mask: Expr) -> Analysis:
    """A mask that is too large to be taken apart: one near part, within the band that its conditions show."""
    lo, hi = band(mask)
    guard = Guard(None if lo is None else graph.const(lo), None if hi is None else graph.const(hi))
    why = f"it has more than {MAX_NODES} operators, or more than {MAX_DEPTH} nested ones: too many to be taken apart"
    part = Part(Piece(guard, mask), "whole", (Term(opaque=(mask,)),), (), why)
    return Analysis((part,), Decomposition((), (Near(mask, guard.lo, guard.hi),), guard.lo, guard.hi))


def _analyse(graph: Graph, mask: Expr) -> Analysis:
    splitter = Splitter(graph)
    pieces = splitter.pieces(mask)
    parts = [part for piece in pieces for part in _parts(splitter, piece)]
    sides = {stream.side for part in parts for stream in part.streams}
    if "full" in sides and (len(sides) > 1 or any(not part.streams for part in parts)):
        parts = [cut for part in parts for cut in _halved(part)]
    near = tuple(_near(splitter, part) for part in parts if not part.streams)
    streams = tuple(stream for part in parts for stream in part.streams)
    lo, hi = splitter.hull(pieces)
    return Analysis(tuple(parts), Decomposition(streams, near, lo, hi))


def _near(splitter: Splitter, part: Part) -> Near:
    guard = part.piece.guard
    mask = splitter.expression(guard)
    if constant(part.piece.value) != 1:
        mask = splitter.graph.apply("mul", mask, part.piece.value)
    return Near(mask, guard.lo, guard.hi)


def _parts(splitter: Splitter, piece: Piece) -> list[Part]:
    """The piece cut at the diagonal where it must be, each cut as streams if it can be."""
    g = splitter.graph
    guard = piece.guard
    lo = None if guard.lo is None else constant(guard.lo)
    hi = None if guard.hi is None else constant(guard.hi)
    if guard.lo is not None and guard.hi is not None:
        sign = 1 if lo is not None and lo >= 0 else -1
        return [Part(piece, "band", tuple(Expander(g, sign, 0).terms(piece.value)), (), "its band is bounded")]
    if guard.lo is None and guard.hi is None:
        whole = _full(splitter, piece)
        if whole is not None:
            return [whole]
        below = replace(piece, guard=replace(guard, lo=g.const(0)))
        above = replace(piece, guard=replace(guard, hi=g.const(-1)))
        return _parts(splitter, below) + _parts(splitter, above)
    if guard.lo is not None:
        if lo is not None and lo < 0:
            edge = replace(piece, guard=replace(guard, hi=g.const(-1)))
            rest = replace(piece, guard=replace(guard, lo=g.const(0)))
            return _parts(splitter, edge) + _parts(splitter, rest)
        return [_one_sided(splitter, piece, "lower", lo)]
    if hi is not None and hi > 0:
        edge = replace(piece, guard=replace(guard, lo=g.const(1)))
        rest = replace(piece, guard=replace(guard, hi=g.const(0)))
        return _parts(splitter, edge) + _parts(splitter, rest)
    return [_one_sided(splitter, piece, "upper", None if hi is None else -hi)]


def _full(splitter: Splitter, piece: Piece) -> Part | None:
    """A piece over all pairs with nothing but factors of i and of j, waves of i - j among them."""
    expander = Expander(splitter.graph, 1, 0)
    terms = tuple(part for term in expander.terms(piece.value) for part in expander.without_turns(term))
    plain = all(not (term.gates or term.degree or term.opaque or term.unsafe or term.product) for term in terms)
    if piece.guard.segments or piece.guard.pairs or not plain:
        return None
    return Part(piece, "full", terms, tuple(_stream(term, piece.guard, "full", 0) for term in terms), "")


def _halved(part: Part) -> list[Part]:
    """A full part as a lower one with the diagonal and an upper one without."""
    if part.side != "full":
        return [part]
    lower = tuple(replace(stream, side="lower", first=0) for stream in part.streams)
    upper = tuple(replace(stream, side="upper", first=1) for stream in part.streams)
    return [replace(part, side="lower", streams=lower), replace(part, side="upper", streams=upper)]


def _one_sided(splitter: Splitter, piece: Piece, side: str, first: int | None) -> Part:
    g = splitter.graph
    sign = 1 if side == "lower" else -1
    terms = tuple(Expander(g, sign, first or 0).terms(piece.value))
    streams: list[Stream] = []
    why = _why_not(piece, terms, first)
    for term in terms if not why else ():
        made, why = _streams(splitter, term, piece.guard, side, first or 0)
        streams += made
        if why:
            break
    return Part(piece, side, terms, () if why else tuple(streams), why)


def _why_not(piece: Piece, terms: tuple[Term, ...], first: int | None) -> str:
    """Why no stream holds the piece; empty where nothing forbids one."""
    if first is None:
        return "where it starts is known only at the call"
    if piece.guard.pairs:
        return _why_pairs(piece.guard.pairs)
    for term in terms:
        if term.opaque:
            return _why_opaque(term.opaque)
        if term.unsafe:
            return "exp(x[i] - x[j]) separates only into halves that may overflow: write exp(sum(g[t], j < t <= i))"
    return ""


def _why_pairs(conditions: tuple[Expr, ...]) -> str:
    for condition in conditions:
        if any(isinstance(node, PathSum) for node in mask_nodes(condition)):
            return "it compares a sum over a path: compare cumulative sums instead, cumsum(x)[i] == cumsum(x)[j]"
        if isinstance(condition, Apply) and condition.fn == "eq" and all(isinstance(x, At) for x in condition.args):
            return "equal ids may come back after others: where they do not, write documents(id)"
    return "it selects pairs by a condition that is no band, run of equal ids, or condition on i or j alone"


def _why_opaque(factors: tuple[Expr, ...]) -> str:
    nodes = {type(node) for factor in factors for node in mask_nodes(factor)}
    if Levels in nodes:
        return "the blocks of `levels` grow with the distance: no state of fixed size holds them"
    if Lag in nodes:
        return "a table over `lag` is no sum of a few exponentials and waves: its rank grows with the table"
    if PathSum in nodes:
        return "a sum over a path separates in exp alone: elsewhere write x[i] - x[j] with x = cumsum(g)"
    return "it has a factor that does not separate into a function of i and a function of j"


def _stream(term: Term, guard: Guard, side: str, first: int) -> Stream:
    return Stream(
        side=side,
        first=first,
        row=(*guard.rows, *term.row),
        col=(*guard.cols, *term.col),
        gates=term.gates,
        segments=guard.segments,
        degree=term.degree,
        turns=term.turns,
        contracted=term.contracted,
    )


def _streams(splitter: Splitter, term: Term, guard: Guard, side: str, first: int) -> tuple[list[Stream], str]:
    stream = _stream(term, guard, side, first)
    if term.product is not None:
        return _product(splitter, stream, term.product)
    if first <= 1:
        return [stream], ""
    return _late(splitter.graph, stream)


def _late(graph: Graph, stream: Stream) -> tuple[list[Stream], str]:
    """A lower stream that starts at distance `first` >= 2, as one that sees its columns `first` positions late."""
    plain = not stream.segments and not stream.degree and not stream.turns
    static = all(not gate.log.axes or "time" not in gate.log.axes for gate in stream.gates)
    static = static and all("t" not in gate.log.positions for gate in stream.gates)
    if stream.side != "lower" or stream.first > MAX_DELAY or not plain or not static:
        return [], f"it starts at a distance of {stream.first} with gates or a kernel of its own"
    steps = graph.const(stream.first)
    skipped = tuple(graph.apply("exp", graph.apply("mul", gate.log, steps)) for gate in stream.gates)
    return [replace(stream, first=0, delay=stream.first, feed=skipped)], ""


def _product(splitter: Splitter, outer: Stream, product: MaskProduct) -> tuple[list[Stream], str]:
    """`L @ M` with L a lower stream and M a narrow band below the diagonal: M feeds L's state, column by column.

    The block of `outer` is all pairs j <= i, as the product of two causal masks is; its row and column factors stay.
    """
    g = splitter.graph
    left, right = analyse(g, product.left), analyse(g, product.right)
    plain = not (outer.gates or outer.segments or outer.turns or outer.degree or outer.contracted)
    if outer.side != "lower" or not plain:
        return [], "a product of masks is multiplied by more than factors of i and of j"
    if left.decomposition.near or any(s.side != "lower" or s.delay for s in left.decomposition.streams):
        return [], "the left of a product of masks is no sum of causal streams"
    found: list[Stream] = []
    for part in right.parts:
        offsets = _offsets(part)
        if offsets is None:
            return [], "both masks of a product are unbounded, or the band of the right one is wide"
        for offset in offsets:
            for term in _at_offset(splitter, part.piece, offset):
                if term is None:
                    return [], "the band of a product of masks does not separate into functions of i and of j"
                for stream in left.decomposition.streams:
                    if stream.first + offset < outer.first:
                        return [], "a product of masks is cut off above its own diagonal"
                    feed = (*stream.col, *(g.reposition(factor, {"i": "j"}) for factor in term.row))
                    found.append(
                        replace(
                            stream,
                            row=(*outer.row, *stream.row),
                            col=(*outer.col, *term.col),
                            feed=feed,
                            delay=offset,
                        )
                    )
    return found, ""


def _offsets(part: Part) -> range | None:
    """The distances of a narrow literal band on or below the diagonal."""
    guard = part.piece.guard
    if guard.lo is None or guard.hi is None or guard.pairs or guard.segments:
        return None
    lo, hi = constant(guard.lo), constant(guard.hi)
    if lo is None or hi is None or lo < 0 or hi > MAX_DELAY:
        return None
    return range(lo, hi + 1)


def _at_offset(splitter: Splitter, piece: Piece, offset: int) -> list[Term | None]:
    """The terms of a piece where i - j is `offset`; None for one that does not separate there."""
    g = splitter.graph
    found: list[Term | None] = []
    for term in Expander(g, 1, 0).terms(piece.value):
        if term.opaque or term.product or term.unsafe or term.contracted:
            return [None]
        fixed: list[Expr] = [] if not term.degree else [g.const(offset**term.degree)]
        fixed += [g.apply(turn.fn, g.apply("mul", turn.rate, g.const(offset))) for turn in term.turns]
        ends = [_ends(g, gate, offset) for gate in term.gates]
        if None in ends:
            return [None]
        rows = [factor for end in ends if end for factor in end[0]]
        cols = [factor for end in ends if end for factor in end[1]]
        row = (*piece.guard.rows, *term.row, *fixed, *rows)
        found.append(replace(term, row=row, col=(*piece.guard.cols, *term.col, *cols)))
    return found


def _ends(graph: Graph, gate: Gate, offset: int) -> tuple[list[Expr], list[Expr]] | None:
    """A path of this length as factors of its two ends; None where a varying gate lies strictly between them."""
    if "t" not in gate.log.positions:
        steps = (
            offset - 1 + gate.key_closed + gate.query_closed if offset else int(gate.key_closed and gate.query_closed)
        )
        return [graph.apply("exp", graph.apply("mul", gate.log, graph.const(steps)))] if steps else [], []
    if offset > 1:
        return None
    at_i = graph.apply("exp", graph.reposition(gate.log, {"t": "i"}))
    at_j = graph.apply("exp", graph.reposition(gate.log, {"t": "j"}))
    if offset == 0:
        return [at_i] if gate.key_closed and gate.query_closed else [], []
    return [at_i] if gate.query_closed else [], [at_j] if gate.key_closed else []
