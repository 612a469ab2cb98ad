"""The three contractions of the language, written out over all pairs of positions, in blocks of rows, in fp64."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sma_compiler.ir.graph import sort_axes
from sma_compiler.ir.nodes import Apply, Attend, Const, Contraction, Expr, Kind, MaskTimes, Solve, children, postorder
from sma_compiler.oracle.masks import Pairs
from sma_compiler.oracle.values import Value, apply, contract, keep, named, pointwise, reduce
from sma_compiler.source import NOWHERE

BLOCK_ELEMENTS = 2**24
"""The most elements that one intermediate of a block of rows may have (one row is always evaluated whole)."""

Tensors = Callable[[Expr], Value]
"""The value of an expression without positions, at all positions."""


def run(node: Contraction, tensors: Tensors, rows: Tensor, sizes: dict[str, int]) -> tuple[Value, Value | None]:
    """The contraction at the positions `rows`, and under softmax the log-sum-exp of each row."""
    if isinstance(node, Solve):
        return _solve(node, tensors, rows, sizes), None
    at_once = _rows_at_once(node, sizes)
    block: Callable[[Tensors, Tensor, dict[str, int]], tuple[Value, ...]]
    block = partial(_attend, node) if isinstance(node, Attend) else partial(_mask_times, node)
    axes: list[tuple[str, ...]] = []

    def compute(some: Tensor) -> tuple[Tensor, ...]:
        found = block(tensors, some, sizes)
        axes[:] = [value.axes for value in found]
        return tuple(value.data for value in found)

    parts = [
        _checkpointed(compute, some) if len(some) < len(rows) else compute(some) for some in _blocks(rows, at_once)
    ]
    found = [
        Value(torch.cat([part[number] for part in parts], names.index("time")), names)
        for number, names in enumerate(axes)
    ]
    return found[0], found[1] if len(found) > 1 else None


def _blocks(rows: Tensor, size: int) -> list[Tensor]:
    return [rows[start : start + size] for start in range(0, len(rows), size)] or [rows]


def _checkpointed(compute: Callable[[Tensor], tuple[Tensor, ...]], rows: Tensor) -> tuple[Tensor, ...]:
    if not torch.is_grad_enabled():
        return compute(rows)
    found: tuple[Tensor, ...] = checkpoint(compute, rows, use_reentrant=False, preserve_rng_state=False)
    return found


def _rows_at_once(node: Contraction, sizes: dict[str, int]) -> int:
    """How many rows of the largest intermediate stay within `BLOCK_ELEMENTS`."""
    inside = postorder(child for child in children(node) if child.positions)
    widest = max((_size(expr.axes, sizes) for expr in inside if expr.positions), default=1)
    if isinstance(node, MaskTimes):
        widest = max(widest, _size((*node.mask.axes, *node.x.axes), sizes))
    else:
        factors = (node.mask, *((node.q, node.k) if isinstance(node, Attend) else (node.a, node.b)))
        outside_key = [axis for expr in factors for axis in expr.axes if axis != "key" or "key" in node.mask.axes]
        widest = max(widest, _size(outside_key, sizes))
    return max(1, BLOCK_ELEMENTS // max(1, widest * sizes["time"]))


def _size(axes: tuple[str, ...] | list[str], sizes: dict[str, int]) -> int:
    product = 1
    for axis in set(axes) - {"time", "lag", "level"}:
        product *= sizes.get(axis.split("'")[0], 1)
    return product


def _positions(x: Value, rows: Tensor, name: str) -> Value:
    """x at some positions, along an axis called `name`; a value without time is itself."""
    return x.select("time", rows, name) if "time" in x.axes else x


def _shaped(x: Value, axes: tuple[str, ...], rows: Tensor, sizes: dict[str, int]) -> Value:
    """The result of a block: dimension `i` becomes `time`, missing axes are repeated."""
    x = x.renamed("i", "time") if "i" in x.axes else x
    return x.expanded({axis: len(rows) if axis == "time" else sizes[axis] for axis in axes if axis not in x.axes})


def _weighted(weights: Value, x: Value, over: tuple[str, ...]) -> Value:
    """Σ_j weights x, and over the other axes in `over` that they have; a weight of 0 drops an infinite or NaN x."""
    over = tuple(axis for axis in over if axis in (*weights.axes, *x.axes))
    if bool(x.data.isfinite().all()):
        return contract(weights, x, over)
    chosen = keep(weights.map(lambda data: data != 0), pointwise(torch.mul, weights, x))
    for axis in over:
        chosen = reduce("sum", chosen, axis)
    return chosen


def _mask_times(node: MaskTimes, tensors: Tensors, rows: Tensor, sizes: dict[str, int]) -> tuple[Value, ...]:
    length = sizes["time"]
    columns = torch.arange(length, device=rows.device)
    mask = Pairs(tensors, rows, columns, length).value(node.mask).expanded({"i": len(rows), "j": length})
    result = _weighted(mask, _positions(tensors(node.x), columns, "j"), ("j",)).to(node.kind)
    return (_shaped(result, node.axes, rows, sizes),)


def _attend(node: Attend, tensors: Tensors, rows: Tensor, sizes: dict[str, int]) -> tuple[Value, ...]:
    length = sizes["time"]
    columns = torch.arange(length, device=rows.device)
    pairs = Pairs(tensors, rows, columns, length)
    q, k = (tensors(x).to(Kind.REAL) for x in (node.q, node.k))
    v = _positions(tensors(node.v).to(Kind.REAL), columns, "j")
    q, k = _positions(q, rows, "i"), _positions(k, columns, "j")
    scale = tensors(node.scale).to(Kind.REAL)
    every = {"i": len(rows), "j": length}
    lse = None
    if node.normalize == "softmax":
        scores = pointwise(torch.mul, contract(q, k, ("key",)), scale)
        weights, lse = _softmax(pairs, node.mask, scores.expanded(every))
    elif node.activation != "none":
        scores = pointwise(torch.mul, contract(q, k, ("key",)), scale)
        activated = _activate(node.activation, scores)
        weights = pointwise(torch.mul, pairs.value(node.mask), activated)
        support = pairs.support(node.mask)
        weights = weights if support is None else keep(support, weights)
    else:
        mask = pointwise(torch.mul, pairs.value(node.mask), scale)
        channels = ("key",) if "key" not in v.axes else ()
        if "key" in mask.axes:
            weights = contract(pointwise(torch.mul, mask, q), k, channels)
        else:
            weights = pointwise(torch.mul, mask, contract(q, k, channels))
    weights = weights.expanded(every)
    result = contract(weights, v, [axis for axis in ("j", "key") if axis in (*weights.axes, *v.axes)])
    if node.normalize in ("sum", "max1"):
        total = reduce("sum", weights, "j")
        if node.normalize == "max1":
            total = pointwise(lambda x: x.abs().clamp(min=1), total)
        result = divide(result, total)
    if lse is None:
        return (_shaped(result, node.axes, rows, sizes),)
    return _shaped(result, node.axes, rows, sizes), _shaped(lse, weight_axes(node), rows, sizes)


def _activate(name: str, scores: Value) -> Value:
    score = Const(Kind.REAL, scores.axes, frozenset("ij"), NOWHERE, 0.0)
    return apply(Apply(Kind.REAL, scores.axes, frozenset("ij"), NOWHERE, name, (score,)), [scores])


def divide(x: Value, by: Value) -> Value:
    """x / by; 0 where the divisor is 0."""
    some = by.map(lambda data: data != 0)
    return keep(some, pointwise(torch.div, x, keep(some, by, 1)))


def _softmax(pairs: Pairs, mask: Expr, scores: Value) -> tuple[Value, Value]:
    """The rows of L exp(s) divided by their sums, and the logs of these sums; an empty row is 0 and -inf."""
    magnitude, sign = pairs.log(mask)
    logits = pointwise(torch.add, magnitude, scores)
    at = logits.axes.index("j")
    rest = tuple(axis for axis in logits.axes if axis != "j")
    lowest = logits.data.new_full((), -torch.inf)
    top = logits.data.detach().amax(at) if logits.data.shape[at] else logits.data.sum(at) + lowest
    peak = Value(torch.where(top == -torch.inf, 0.0, top), rest)
    weights = pointwise(lambda s, x, m: s * (x - m).exp(), sign, logits, peak)
    total = reduce("sum", weights, "j")
    some = total.map(lambda data: data != 0)
    lse = pointwise(lambda z, m: z.log() + m, keep(some, total, 1), peak)
    return divide(weights, total), keep(some, lse, -torch.inf)


def _solve(node: Solve, tensors: Tensors, rows: Tensor, sizes: dict[str, int]) -> Value:
    """Forward substitution by blocks of rows: u_R = (I + M_RR)^-1 (u_R - M_R,<R u_<R)."""
    length = sizes["time"]
    columns = torch.arange(length, device=rows.device)
    names = tuple(axis for axis in node.axes if axis != "time")
    system = sort_axes(axis for x in (node.mask, node.a, node.b) for axis in x.axes if axis not in ("time", "key"))
    others = tuple(axis for axis in names if axis not in system)
    right = tensors(node.u).to(Kind.REAL).expanded({axis: sizes[axis] for axis in node.axes})
    right_data = right.aligned((*system, "time", *others))
    right_data = right_data.reshape(*right_data.shape[: len(system) + 1], math.prod(sizes[axis] for axis in others))
    a, b = (tensors(x).to(Kind.REAL) for x in (node.a, node.b))

    def coefficients(some: Tensor, before: Tensor) -> Tensor:
        """[*system, rows, columns]"""
        first, second = _positions(a, some, "i"), _positions(b, before, "j")
        mask = Pairs(tensors, some, before, length).value(node.mask)
        if "key" in mask.axes:
            product = contract(pointwise(torch.mul, mask, first), second, ("key",))
        else:
            product = pointwise(torch.mul, mask, contract(first, second, ("key",)))
        product = product.expanded({"i": len(some), "j": len(before), **{axis: sizes[axis] for axis in system}})
        return product.aligned((*system, "i", "j"))

    def step(some: Tensor, *solved: Tensor) -> Tensor:
        begin, end = int(some[0]), int(some[-1]) + 1
        matrix = coefficients(some, columns[:end])
        known = right_data.narrow(len(system), begin, end - begin)
        if solved:
            known = known - matrix[..., :begin] @ torch.cat(solved, len(system))
        found: Tensor = torch.linalg.solve_triangular(matrix[..., begin:], known, upper=False, unitriangular=True)
        return found

    solved: list[Tensor] = []
    size = _rows_at_once(node, sizes)
    for some in _blocks(columns, size) if length else []:
        if size < length and torch.is_grad_enabled():
            solved.append(checkpoint(step, some, *solved, use_reentrant=False, preserve_rng_state=False))
        else:
            solved.append(step(some, *solved))
    whole = torch.cat(solved, len(system)) if solved else right_data
    shape = (*whole.shape[:-1], *(sizes[axis] for axis in others))
    result = named(whole.reshape(shape), (*system, "time", *others))
    return result if torch.equal(rows, columns) else _positions(result, rows, "time")


def weight_axes(node: Attend) -> tuple[str, ...]:
    """The axes of a row's log-sum-exp."""
    factors = (node.mask, node.q, node.k, node.scale)
    return sort_axes(("batch", "time", *(axis for x in factors for axis in x.axes if axis != "key")))
