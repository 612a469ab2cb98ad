"""The quadratic plan of solve: forward substitution in blocks of rows, each block against all solved ones."""

from __future__ import annotations

from math import prod

import torch

from sma_compiler.ir.graph import sort_axes
from sma_compiler.torch_plans.dense import Mask, dots, linear_weights
from sma_compiler.torch_plans.frame import Frame
from sma_compiler.torch_plans.named import Named
from sma_compiler.torch_plans.named_ops import add, arranged, common, contract, cut, dropped, join
from sma_compiler.torch_plans.pairs import Run

BLOCK = 64
"""Rows of a block, which is solved by substitution."""


def solve(mask: Mask, a: Named, b: Named, u: Named, solved: Named | None, frame: Frame) -> Named:
    """x at the new positions, where x_i + sum over j < i of L_ij (a_i . b_j) x_j = u_i.

    a, u: over the new positions, or static. b: over the mask's line, or static. solved: x at the line's first
    positions, which a cache holds; None: the line has new positions only.
    """
    line, first = mask.line, mask.columns[0]
    step = BLOCK if "key" not in mask.expr.axes else BLOCK // 4
    found = [] if solved is None else [cut(solved, "time", 0, line.new)]
    sizes = [one.size("time") for one in found]
    for start in range(line.new, max(line.length, line.new + 1), step):
        stop = min(start + step, line.length)
        begin = first if mask.band.hi is None else max(first, start - mask.band.hi)
        pairs = mask.pairs(Run("i", start, stop), Run("j", begin, stop))
        rows, columns = pairs.points["i"], pairs.points["j"]
        weights = linear_weights(mask.expr, pairs, rows.take(a, -line.new), columns.take(b), frame)
        right = rows.take(u, -line.new).to(frame.compute)
        if begin < start:
            earlier = cut(join(found, "time", sizes), "time", begin, start).rename("time", "j")
            known = contract(*dots(frame, cut(weights, "j", 0, start - begin), earlier), "j")
            right = add(right, Named(-known.data, known.axes))
        ours = cut(weights, "j", start - begin, stop - begin)
        found.append(_substitute(ours, right, stop - start).rename("i", "time"))
        sizes.append(stop - start)
    return cut(join(found, "time", sizes), "time", line.new, line.length)


def _substitute(weights: Named, right: Named, size: int) -> Named:
    """(I + weights)^-1 right along `i`; the diagonal of weights [i, j] and what is above it are not read."""
    groups = dropped(weights.axes, "i", "j")
    free = dropped(right.axes, "i", *groups)
    shape = [common((weights.size(axis), right.size(axis))) for axis in groups]
    widths = [right.size(axis) for axis in free]
    matrix = arranged(weights, (*groups, "i", "j"), [*shape, size, size])
    vectors = arranged(right, (*groups, "i", *free), [*shape, size, *widths])
    flat = vectors.reshape(*shape, size, prod(widths))
    found = torch.linalg.solve_triangular(matrix, flat, upper=False, unitriangular=True)
    axes = sort_axes((*groups, "i", *free))
    return Named(Named(found.reshape(*shape, size, *widths), (*groups, "i", *free)).view(axes), axes)
