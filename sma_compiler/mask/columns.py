"""What later rows need of earlier columns: keys, values, and what a mask reads there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sma_compiler.ir.nodes import (
    At,
    Attend,
    Contraction,
    Expr,
    Levels,
    MaskProduct,
    MaskTimes,
    PathSum,
    children,
)


def held_by(node: Contraction, masks: Sequence[Expr]) -> dict[str, Expr]:
    """What a cache for these parts of the mask holds: keys, values, and what the masks read at columns."""
    match node:
        case Attend(k=k, v=v):
            named: dict[str, Expr] = {"k": k, "v": v}
        case MaskTimes(x=x):
            named = {"x": x}
        case _:
            named = {"b": node.b, "x": node}
    found = {name: expr for name, expr in named.items() if "time" in expr.axes}
    for expr in _read_at_columns(masks):
        if expr not in found.values():
            found[f"mask{len(found)}"] = expr
    return found


def _read_at_columns(masks: Sequence[Expr]) -> list[Expr]:
    """The tensors that masks read at positions other than the row's, in the order of their text."""
    found: dict[Expr, None] = {}
    between: list[Expr] = []
    for node in _mask_nodes(masks):
        if isinstance(node, MaskProduct | PathSum):
            between.extend(children(node))
        elif isinstance(node, At) and node.position == "j":
            found[node.x] = None
        elif isinstance(node, Levels) and node.row == "j":
            found[node.weights] = None
    for node in _mask_nodes(between):
        if isinstance(node, At):
            found[node.x] = None
        elif isinstance(node, Levels):
            found[node.weights] = None
    return list(found)


def _mask_nodes(masks: Iterable[Expr]) -> list[Expr]:
    """The nodes of masks in the order of their text, without those of the tensors that they read."""
    found: dict[Expr, None] = {}
    stack = list(masks)[::-1]
    while stack:
        node = stack.pop()
        if node.positions and node not in found:
            found[node] = None
            if not isinstance(node, At):
                stack.extend(reversed(children(node)))
    return list(found)
