"""Heads without channels of their own as the channels of one head.

An op whose values have no value axis, and whose queries and keys are those of all heads (or, under a softmax of scores
that do not depend on the row, a score for each head), has a channel for each head:
v [time, head] is v [time, value] of one head, and a gate that differs by head is one that differs by channel. Then what
lies side by side in memory is side by side in a tile.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sma_compiler.ir.graph import Graph
from sma_compiler.ir.nodes import Attend, Expr, Op, Param, Size, children, postorder
from sma_compiler.mask.nodes import Decomposition


def are_channels(nodes: Iterable[Expr], attend: Attend) -> bool:
    """Whether the heads of an op are channels of one. nodes: of its result."""
    scores = {*attend.q.axes, *attend.k.axes}
    alone = ("key" if is_column(attend) else "head") not in scores
    return alone and "head" in attend.v.axes and all("value" not in node.axes for node in nodes)


def is_column(attend: Attend) -> bool:
    """Whether weights are exponentials of scores that do not depend on the row."""
    return attend.normalize == "softmax" and not ("time" in attend.q.axes or attend.q.positions)


def as_channels(graph: Graph, op: Op, attend: Attend, mask: Decomposition) -> tuple[Op, Attend, Decomposition]:
    """The op, its contraction and its mask with a value axis in the place of the heads."""
    streams = [(*s.row, *s.col, *(gate.log for gate in s.gates)) for s in mask.streams]
    done: dict[Expr, Expr] = {}
    for node in postorder((op.result, attend, *(near.mask for near in mask.near), *(x for s in streams for x in s))):
        match node:
            case Param(name=name, kind=kind, axes=axes, number=number):
                done[node] = graph.param(name, kind, map(_channel, axes), number, node.span)
            case Size(axis="head"):
                done[node] = graph.size("value", node.span)
            case Attend(normalize=normalize, activation=activation):
                parts = (done[x] for x in children(node))
                made, q, k, v, scale = parts
                done[node] = graph.attend(made, q, k, v, normalize, activation, scale, node.span)
            case _:
                done[node] = graph.rebuild(node, done)
    found = done[attend]
    assert isinstance(found, Attend)
    params = tuple(replace(decl, dims=tuple(map(_channel, decl.dims))) for decl in op.params)
    moved = tuple(
        replace(
            s,
            row=tuple(done[x] for x in s.row),
            col=tuple(done[x] for x in s.col),
            gates=tuple(replace(gate, log=done[gate.log]) for gate in s.gates),
        )
        for s in mask.streams
    )
    near = tuple(replace(part, mask=done[part.mask]) for part in mask.near)
    return replace(op, params=params, result=done[op.result]), found, replace(mask, streams=moved, near=near)


def _channel(axis: str) -> str:
    return "value" if axis == "head" else axis
