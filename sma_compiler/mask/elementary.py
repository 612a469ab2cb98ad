"""Elementary time operators: shifts and cumulative sums, which one pass over time computes whatever the plan."""

from __future__ import annotations

from sma_compiler.ir.graph import Graph
from sma_compiler.ir.nodes import Contraction, Kind, MaskTimes, Param, Size, postorder
from sma_compiler.mask.algebra import constant
from sma_compiler.mask.streams import decompose


def is_elementary(graph: Graph, node: Contraction) -> bool:
    """Whether `L @ x` has a mask of constants that is one shifted diagonal, or all ones on one side."""
    if not isinstance(node, MaskTimes):
        return False
    if any(isinstance(leaf, Param | Size) for leaf in postorder((node.mask,))):
        return False
    mask = decompose(graph, node.mask)
    if len(mask.near) == 1 and not mask.streams and mask.lo is not None and mask.hi is not None:
        offset = constant(mask.lo)
        return offset is not None and offset == constant(mask.hi) and mask.near[0].mask.kind is Kind.BOOL
    if len(mask.streams) == 1 and not mask.near:
        stream = mask.streams[0]
        plain = not (stream.row or stream.col or stream.gates or stream.segments or stream.turns or stream.degree)
        return plain and not stream.delay and stream.side != "full"
    return False
