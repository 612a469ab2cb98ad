"""The quadratic plan of solve: forward substitution in blocks of rows, each block against all solved ones."""

from __future__ import annotations

from math import prod

import torch

from sma_compiler.torch_plans.dense import Mask, dots, linear_weights
from sma_compiler.torch_plans.frame import Frame
from sma_compiler.torch_plans.named import Named
from sma_compiler.torch_plans.named_ops import (
    add,
    arranged,
    canonical,
    common,
    contract,
    cut,
    dropped,
    join,
    negative,
    spread,
)
from sma_compiler.torch_plans.pairs import Run

BLOCK = 64
"""Rows of a block, which is solved by substitution."""


def solve(mask: Mask, a: Named, b: Named, u: Named, frame: Frame) -> Named:
    """x at the new positions, where x_i + sum over j < i of L_ij (a_i . b_j) x_j = u_i.

    a, b, u: over the new positions, or static.
    """
    new, hi = mask.line.new, mask.band.hi
    length = mask.line.length - new
    step = BLOCK if "key" not in mask.expr.axes else BLOCK // 4
    found: list[Named] = []
    sizes: list[int] = []
    for start in range(0, max(length, 1), step):
        stop = min(start + step, length)
        begin = 0 if hi is None else min(start, max(0, start - hi))
        rows, columns = Run("i", start, stop), Run("j", begin, stop)
        pairs = mask.pairs(Run("i", new + start, new + stop), Run("j", new + begin, new + stop))
        weights = linear_weights(mask.expr, pairs, rows.take(a), columns.take(b), frame)
        right = rows.take(u)
        if begin < start:
            earlier = cut(join(found, "time", sizes), "time", begin, start).rename("time", "j")
            right = add(right, negative(contract(*dots(frame, cut(weights, "j", 0, start - begin), earlier), "j")))
        found.append(_substitute(cut(weights, "j", start - begin, stop - begin), right, stop - start))
        sizes.append(stop - start)
    return join(found, "time", sizes)


def _substitute(weights: Named, right: Named, size: int) -> Named:
    """(I + weights)^-1 right along `i`, over `time`; weights [i, j] on and above the diagonal are not read."""
    groups = dropped(weights.axes, "i", "j")
    right = spread(right, "i", size)
    free = dropped(right.axes, "i", *groups)
    shape = [common((weights.size(axis), right.size(axis))) for axis in groups]
    widths = [right.size(axis) for axis in free]
    matrix = arranged(weights, (*groups, "i", "j"), [*shape, size, size])
    vectors = arranged(right, (*groups, "i", *free), [*shape, size, *widths])
    flat = vectors.reshape(*shape, size, prod(widths))
    found = torch.linalg.solve_triangular(matrix, flat, upper=False, unitriangular=True)
    return canonical(Named(found.reshape(*shape, size, *widths), (*groups, "time", *free)))
