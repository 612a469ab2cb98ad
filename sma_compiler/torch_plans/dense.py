"""The quadratic plan: masks and weights written out, in blocks of rows against the columns that can be alive there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from sma_compiler.ir.nodes import Attend, Expr, Kind
from sma_compiler.torch_plans import functions
from sma_compiler.torch_plans.evaluate import Evaluator
from sma_compiler.torch_plans.frame import Frame
from sma_compiler.torch_plans.named import Named, aligned
from sma_compiler.torch_plans.named_ops import add, contract, dropped, join, multiply, select, spread
from sma_compiler.torch_plans.pairs import Line, Offsets, Pairs, Points, Run, Sums

BLOCK = 256
"""Rows of a block; fewer where the mask has a channel axis."""
NARROW = 8
"""A band of fewer diagonals than this is evaluated diagonal by diagonal."""


@dataclass(frozen=True)
class Band:
    """The pairs lo <= i - j <= hi; None: unbounded."""

    lo: int | None
    hi: int | None


@dataclass(frozen=True)
class Partial:
    """What some of the columns contribute to attend's rows: sums over them of weight * v, and of the weights.

    With `top` [row], both are in units of exp(top): the largest log weight of the row, -inf where all weights are 0.
    """

    numerator: Named
    denominator: Named | None = None
    top: Named | None = None


@dataclass(frozen=True)
class Mask:
    """A mask (or a part of one), where it lives, and the line of positions that it is evaluated on.

    columns: indices first .. last - 1 of the line that are counted. sums: of the line's paths.
    """

    expr: Expr
    band: Band
    line: Line
    columns: tuple[int, int]
    evaluator: Evaluator
    sums: Sums

    def blocks(self) -> Iterator[Pairs]:
        """The rows in blocks, at least one, each with the columns that can be alive there."""
        line, (first, last) = self.line, self.columns
        lo, hi = self.band.lo, self.band.hi
        if lo is not None and hi is not None and 0 <= hi - lo < NARROW and self.columns == (0, line.length):
            columns = Offsets("i", "j", line.new, line.length, lo, hi)
            yield self.pairs(Run("i", line.new, line.length), columns)
            return
        step = BLOCK if {"key", "value"}.isdisjoint(self.expr.axes) else BLOCK // 8
        for start in range(line.new, max(line.length, line.new + 1), step):
            stop = min(start + step, line.length)
            begin = first if hi is None else min(max(first, start - hi), last)
            end = last if lo is None else max(min(last, stop - lo), begin)
            yield self.pairs(Run("i", start, stop), Run("j", begin, end))

    def pairs(self, rows: Points, columns: Points) -> Pairs:
        """The mask at some rows and columns of its line."""
        return Pairs(self.evaluator, self.line, rows, columns, self.sums)


def attend(node: Attend, mask: Mask, q: Named, k: Named, v: Named, frame: Frame) -> Partial:
    """What one mask (a part of attend's own) contributes to the new positions.

    q: over the new positions, or static. k and v: over the mask's line, or static.
    """
    scale = mask.evaluator.tensor(node.scale).to(frame.compute)
    one_block = _softmax if node.normalize == "softmax" else _linear
    parts = []
    for pairs in mask.blocks():
        rows, columns = pairs.points["i"], pairs.points["j"]
        queries = rows.take(q, -mask.line.new)
        parts.append(one_block(node, mask.expr, pairs, (queries, columns.take(k), columns.take(v)), scale, frame))
    return Partial(
        _along_time([part.numerator for part in parts]),
        _along_time([part.denominator for part in parts if part.denominator is not None]) if wants_sum(node) else None,
        _along_time([part.top for part in parts if part.top is not None]) if node.normalize == "softmax" else None,
    )


def wants_sum(node: Attend) -> bool:
    """Whether attend divides by a sum of its weights."""
    return node.normalize != "none"


def times(kind: Kind, mask: Mask, x: Named, frame: Frame) -> Named:
    """Sum over the columns of mask * x, for the new positions; exact where the result is an integer (`kind`).

    x: over the mask's line.
    """
    rows = []
    for pairs in mask.blocks():
        weights = full_pairs(pairs.mask(mask.expr), pairs)
        columns = pairs.points["j"].take(x)
        if kind is Kind.REAL:
            weights, columns = dots(frame, weights.to(frame.compute), columns.to(frame.compute))
        else:
            weights, columns = weights.to(torch.int64), columns.to(torch.int64)
        rows.append(contract(weights, columns, "j"))
    return _along_time(rows)


def weighted_sum(mask: Mask, left: Named, right: Named, x: Named, frame: Frame) -> Named:
    """Sum over the columns and over key of mask * left * right * x, for the new positions.

    left: over the new positions, right and x: over the mask's columns, or static.
    """
    blocks = []
    for pairs in mask.blocks():
        rows, columns = pairs.points["i"], pairs.points["j"]
        weights = linear_weights(mask.expr, pairs, rows.take(left, -mask.line.new), columns.take(right), frame)
        blocks.append(contract(*dots(frame, weights, columns.take(x)), "j"))
    return _along_time(blocks)


def linear_weights(expr: Expr, pairs: Pairs, left: Named, right: Named, frame: Frame) -> Named:
    """sum over key of mask * left * right at pairs of positions; left and right are the dot's operands."""
    mask = pairs.mask(expr)
    left, right = dots(frame, left, right)
    if "key" in mask.axes:
        return full_pairs(contract(multiply(mask.to(frame.compute), left), right, "key"), pairs)
    return full_pairs(_masked(mask, contract(left, right, "key")), pairs)


def _masked(mask: Named, weights: Named) -> Named:
    """mask * weights; a boolean mask selects."""
    if mask.data.dtype == torch.bool:
        return select(mask, weights, 0)
    return multiply(mask.to(weights.data.dtype), weights)


def full_pairs(x: Named, pairs: Pairs) -> Named:
    """x with both axes of the pairs present."""
    rows, columns = pairs.points["i"], pairs.points["j"]
    return spread(spread(x, "i", rows.size), "j", columns.size)


def dots(frame: Frame, left: Named, right: Named) -> tuple[Named, Named]:
    """The operands of a dot, rounded."""
    return Named(frame.dot(left.data), left.axes), Named(frame.dot(right.data), right.axes)


Operands = tuple[Named, Named, Named]


def _linear(node: Attend, expr: Expr, pairs: Pairs, operands: Operands, scale: Named, frame: Frame) -> Partial:
    """The weights as they are, or functions of the score."""
    q, k, v = operands
    if node.activation == "none":
        weights = multiply(linear_weights(expr, pairs, q, k, frame), scale)
    else:
        score = _scores(q, k, scale, frame)
        chosen = functions.apply(node.activation, [score.data], Kind.REAL, frame.compute)
        weights = full_pairs(_masked(pairs.mask(expr), Named(chosen, score.axes)), pairs)
    numerator = contract(*dots(frame, weights, v), "j")
    if not wants_sum(node):
        return Partial(numerator)
    return Partial(numerator, Named(weights.data.sum(weights.axes.index("j")), dropped(weights.axes, "j")))


def _scores(q: Named, k: Named, scale: Named, frame: Frame) -> Named:
    """scale * sum over key of q * k; the scale goes into q where nothing is rounded, for there are fewer rows."""
    if frame.operand == frame.compute:
        return contract(multiply(q, scale), k, "key")
    return multiply(contract(*dots(frame, q, k), "key"), scale)


def _softmax(node: Attend, expr: Expr, pairs: Pairs, operands: Operands, scale: Named, frame: Frame) -> Partial:
    """exp(score) * mask, relative to the largest of each row.

    Scores that do not depend on the row may be large and alike (RWKV-4): the logarithms are then added in fp64, and the
    largest is rounded before it is subtracted.
    """
    q, k, v = operands
    score, mask = _scores(q, k, scale, frame), pairs.log_mask(expr)
    if "time" not in node.q.axes:
        score, mask = score.to(torch.float64), mask.to(torch.float64)
    logs = full_pairs(add(score, mask), pairs)
    at, rest = logs.axes.index("j"), dropped(logs.axes, "j")
    if logs.size("j") == 0:
        logs = logs.to(frame.compute)
        nothing = logs.data.sum(at)
        numerator = contract(logs, v, "j")
        return Partial(numerator, Named(nothing, rest), Named(nothing - torch.inf, rest))
    top = logs.data.detach().amax(at).to(frame.compute)
    shifted = logs.data - functions.finite(top).unsqueeze(at)
    weights = Named(shifted.to(frame.compute).exp(), logs.axes)
    numerator = contract(*dots(frame, weights, v), "j")
    return Partial(numerator, Named(weights.data.sum(at), rest), Named(top, rest))


def _along_time(blocks: list[Named]) -> Named:
    """Blocks of rows, one after the other."""
    return join([block.rename("i", "time") for block in blocks], "time", [block.size("i") for block in blocks])


def merged(parts: list[Partial]) -> Partial:
    """Contributions of disjoint sets of pairs together."""
    tops = [part.top for part in parts if part.top is not None]
    if tops:
        axes, views = aligned(*tops)
        top = functions.apply("max", views, Kind.REAL, views[0].dtype)
        shared = Named(functions.finite(top), axes)
        parts = [_scaled(part, shared) for part in parts]
    denominators = [part.denominator for part in parts if part.denominator is not None]
    return Partial(
        add(*(part.numerator for part in parts)),
        add(*denominators) if denominators else None,
        Named(top, axes) if tops else None,
    )


def _scaled(part: Partial, top: Named) -> Partial:
    """In units of exp(top)."""
    assert part.top is not None
    assert part.denominator is not None
    axes, (ours, theirs) = aligned(part.top, top)
    factor = Named((ours - theirs).exp(), axes)
    return Partial(multiply(part.numerator, factor), multiply(part.denominator, factor), part.top)


def finished(normalize: str, total: Partial) -> tuple[Named, Named | None]:
    """Attend's result, and for softmax the log-sum-exp of each row (-inf where it is empty)."""
    if normalize == "none":
        return total.numerator, None
    assert total.denominator is not None
    divisor = total.denominator.data
    if normalize == "max1":
        divisor = divisor.abs().clamp(min=1)
    axes, (numerator, below) = aligned(total.numerator, Named(divisor, total.denominator.axes))
    found = Named(functions.divide(numerator, below), axes)
    if total.top is None:
        return found, None
    logs = add(total.top, Named(functions.safe_log(total.denominator.data), total.denominator.axes))
    return found, logs
