"""A decomposition as a mask expression again, so that the oracle can evaluate it."""

from __future__ import annotations

from sma_compiler.ir.graph import Graph
from sma_compiler.ir.nodes import Expr
from sma_compiler.mask.nodes import Decomposition, Stream


def _times(graph: Graph, factors: list[Expr]) -> Expr:
    product: Expr = graph.const(True)
    for factor in factors:
        product = graph.apply("mul", product, factor)
    return product


def _path(graph: Graph, stream: Stream) -> list[Expr]:
    """The gates as exponentials of path sums."""
    start, end = ("j", "i") if stream.side == "lower" else ("i", "j")
    found = []
    for gate in stream.gates:
        closed = (
            (gate.key_closed, gate.query_closed) if stream.side == "lower" else (gate.query_closed, gate.key_closed)
        )
        found.append(graph.apply("exp", graph.path_sum(gate.log, start, end, *closed)))
    return found


def stream_expression(graph: Graph, stream: Stream) -> Expr:
    """What a stream adds to its mask."""
    i, j = graph.position("i"), graph.position("j")
    distance = graph.apply("sub", i, j) if stream.side != "upper" else graph.apply("sub", j, i)
    support = [] if stream.side == "full" else [graph.apply("ge", distance, graph.const(stream.first))]
    support += [graph.apply("eq", graph.reposition(s, {"j": "i"}), s) for s in stream.segments]
    kernel: list[Expr] = [distance] * stream.degree
    kernel += [graph.apply(turn.fn, graph.apply("mul", turn.rate, distance)) for turn in stream.turns]
    outer = [*support, *stream.row, *_path(graph, stream), *kernel]
    if stream.delay:
        left = _times(graph, [*outer, *stream.feed])
        late = graph.apply("eq", graph.apply("sub", i, j), graph.const(stream.delay))
        whole = graph.mask_product(left, _times(graph, [late, *stream.col]))
    else:
        whole = _times(graph, [*outer, *stream.feed, *stream.col])
    for axis in stream.contracted:
        whole = graph.reduce("sum", whole, axis)
    return whole


def mask_expression(graph: Graph, decomposition: Decomposition) -> Expr:
    """The sum of all streams and near parts."""
    total: Expr = graph.const(0)
    for stream in decomposition.streams:
        total = graph.apply("add", total, stream_expression(graph, stream))
    for near in decomposition.near:
        total = graph.apply("add", total, near.mask)
    return total
