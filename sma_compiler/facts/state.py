"""The size of the state that a causal contraction carries from one position to the next."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from sma_compiler.facts.sizes import symbol, to_sympy
from sma_compiler.ir.nodes import Attend, Const, Contraction, Expr, MaskTimes, Solve
from sma_compiler.mask.columns import held_by
from sma_compiler.mask.nodes import Decomposition, Stream

if TYPE_CHECKING:
    import sympy


def state_size(node: Contraction, decomposition: Decomposition, behind: bool, exact: bool) -> sympy.Expr:
    """Elements of the state for one batch row and head.

    behind: whether a product of masks reads positions before its band. exact: whether integers are summed, for which a
    cache keeps them. Streams whose rows differ have a state each, as the two waves of `s4d`. What all heads share is
    not counted: the ids of segments, what a mask reads that has no head, absolute positions.
    """
    from sympy import Integer

    streams, near = decomposition.streams, decomposition.near
    if behind or exact or not linear(node) or any(part.hi is None for part in near) or (near and not streams):
        far = behind or decomposition.hi is None
        rows = symbol("time") if far or decomposition.hi is None else to_sympy(decomposition.hi)
        return 0 if rows.is_nonpositive else rows * _slot(node, (node.mask,))
    total = _carried(node, streams)
    held = tuple(part for part in near if not (isinstance(part.hi, Const) and part.hi.value <= 0))
    if not held:
        return total
    widths = {to_sympy(part.hi) for part in held if part.hi is not None}
    return total + _largest({Integer(0), *widths}) * _slot(node, tuple(part.mask for part in held))


def linear(node: Contraction) -> bool:
    """Whether a state of the mask's rank can carry the contraction: its weight is linear in the score, or the score
    does not depend on i."""
    if not isinstance(node, Attend):
        return True
    if node.activation != "none":
        return False
    return node.normalize != "softmax" or "time" not in node.q.axes


def _largest(counts: set[sympy.Expr]) -> sympy.Expr:
    """The largest of some sizes."""
    from sympy import Max

    return Max(*counts)


def _slot(node: Contraction, masks: tuple[Expr, ...]) -> sympy.Expr:
    """Elements that a cache holds of one position."""
    held = held_by(node, masks)
    mine = [expr for name, expr in held.items() if not name.startswith("mask") or "head" in expr.axes]
    return sum((_elements(expr) for expr in mine), start=0)


def _elements(expr: Expr) -> sympy.Expr:
    """The size of one position of a tensor for one row and head."""
    return prod(symbol(axis) for axis in expr.axes if axis not in ("batch", "time", "head"))


def _carried(node: Contraction, streams: tuple[Stream, ...]) -> sympy.Expr:
    """Elements of the states of streams."""
    keys, values = _widths(node)
    total: Any = 0
    runs = 1
    if isinstance(node, Attend) and node.normalize in ("sum", "max1", "softmax"):
        total = 1 if streams and node.normalize == "softmax" else 0  # the running maximum
        apart = "value" in node.mask.axes  # then the weights' own sums differ from value to value
        runs, values = (2, values) if apart else (1, values + 1)
    for members in _shared(streams):
        size: Any = keys * values * runs
        for axis in members[0].contracted:
            size = size * symbol(axis.partition("'")[0])
        tail = values if isinstance(node, MaskTimes) else keys + values
        late = max(stream.delay for stream in members)
        total = total + size * 2 ** len(members[0].turns) * (members[0].degree + 1) + late * tail
    return total


def _shared(streams: tuple[Stream, ...]) -> list[list[Stream]]:
    """Streams that differ in their columns only: one state serves them together."""
    groups: dict[Any, list[Stream]] = {}
    for stream in streams:
        key = (stream.side, stream.row, stream.gates, stream.segments, stream.degree, stream.turns, stream.contracted)
        groups.setdefault(key, []).append(stream)
    return list(groups.values())


def _widths(node: Contraction) -> tuple[Any, Any]:
    """The sizes of the key and the value axis as the state has them; a key axis of q or k alone is summed at once."""
    match node:
        case Attend(mask=mask, q=q, k=k, v=v):
            keyed = "key" in mask.axes or ("key" in q.axes and "key" in k.axes and node.normalize != "softmax")
            valued: tuple[Expr, ...] = (mask, q, k, v)
        case Solve(mask=mask, a=a, b=b, u=u):
            keyed = "key" in mask.axes or ("key" in a.axes and "key" in b.axes)
            valued = (mask, u)
        case MaskTimes(mask=mask, x=x):
            keyed = any("key" in part.axes for part in (mask, x))
            valued = (mask, x)
    key = symbol("key") if keyed else 1
    value = symbol("value") if any("value" in part.axes for part in valued) else 1
    return key, value
