"""Errors of one tensor against the reference: sums of squares and maxima, whole and by (head, 64 positions)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

POSITIONS = 64
"""Positions in a block."""
SMALL = 4096
"""Blocks and tensors of fewer elements are judged by several seeds together."""
SEEDS = 8
"""How many seeds a small block pools."""


@dataclass(frozen=True)
class Errors:
    """Errors of a tensor, or of several pooled ones, in blocks; every field is fp64 and has the shape [heads, blocks].

    count: elements. error, exact, rounding: sums of squares of actual - exact, of exact, and of exact rounded to the
    tensor's dtype minus exact. error_max, exact_max: the largest magnitudes.
    """

    count: Tensor
    error: Tensor
    exact: Tensor
    rounding: Tensor
    error_max: Tensor
    exact_max: Tensor

    def whole(self) -> Errors:
        """All blocks as one."""
        sums = (self.count, self.error, self.exact, self.rounding)
        count, error, exact, rounding = (one.sum().view(1, 1) for one in sums)
        return Errors(count, error, exact, rounding, self.error_max.max().view(1, 1), self.exact_max.max().view(1, 1))

    def block(self, head: int, number: int) -> Errors:
        """One block."""
        return Errors(*(value[head : head + 1, number : number + 1] for value in vars(self).values()))

    def rms(self, sums: Tensor) -> float:
        """The root mean square of the only block, from one of its sums."""
        return float((sums / self.count).sqrt()) if float(self.count) else 0.0


def measure(
    actual: Tensor,
    exact: Tensor,
    axes: Sequence[str],
    *,
    rows: Tensor | None = None,
    sampled: Tensor | None = None,
    by_row_maximum: bool = False,
) -> Errors:
    """The errors of `actual`, whose dtype is what the exact values are rounded to.

    axes: names of the dimensions. rows: the positions of the entries along `time`; None: all from 0 on. sampled: of a
    gradient, the rows that alone have a cotangent: all positions that lie in no block of these, where little or nothing
    arrives, are one last block; None: all rows have one.
    by_row_maximum: everything is relative to the largest magnitude along `time` (an FFT spreads its error so).
    A NaN or infinity that the exact values do not have counts as an infinite error; the same infinity as none.
    """
    actual = actual.detach()
    rounded = exact.to(actual.dtype).to(torch.float64)
    same = exact.isinf() & (actual == exact)
    error = torch.where(same, 0.0, actual.to(torch.float64) - exact).nan_to_num(torch.inf, torch.inf, torch.inf).abs()
    rounding = torch.where(exact.isinf(), 0.0, rounded - exact).abs()
    size = torch.where(exact.isinf(), 0.0, exact).abs()
    if by_row_maximum and "time" in axes:
        top = size.amax(list(axes).index("time"), keepdim=True)
        top = torch.where(top == 0, 1.0, top)
        error, rounding, size = error / top, rounding / top, torch.ones_like(size)
    if "time" not in axes:
        heads, blocks = torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.int64)
        counts = (1, 1)
    else:
        length = exact.shape[list(axes).index("time")]
        places = torch.arange(length) if rows is None else rows.cpu()
        head_count = exact.shape[list(axes).index("head")] if "head" in axes else 1
        heads = _along(torch.arange(head_count), axes, "head")
        numbers = places // POSITIONS
        last = int(numbers.max()) if length else 0
        if sampled is not None:
            reached = torch.isin(numbers, sampled.cpu() // POSITIONS)
            last += not reached.all()
            numbers = torch.where(reached, numbers, last)
        blocks = _along(numbers, axes, "time")
        counts = (head_count, last + 1)
    index = (heads * counts[1] + blocks).to(exact.device).expand(exact.shape).reshape(-1)

    def total(values: Tensor) -> Tensor:
        flat = torch.zeros(counts[0] * counts[1], dtype=torch.float64, device=exact.device)
        return flat.index_add_(0, index, values.reshape(-1)).view(counts).cpu()

    def largest(values: Tensor) -> Tensor:
        flat = torch.zeros(counts[0] * counts[1], dtype=torch.float64, device=exact.device)
        return flat.scatter_reduce_(0, index, values.reshape(-1), "amax").view(counts).cpu()

    count = total(torch.ones_like(size))
    squares = [total(values.square()) for values in (error, size, rounding)]
    return Errors(count, squares[0], squares[1], squares[2], largest(error), largest(size))


def _along(values: Tensor, axes: Sequence[str], axis: str) -> Tensor:
    if axis not in axes:
        return values
    return values.view([-1 if name == axis else 1 for name in axes])


def pool(seeds: Sequence[Errors]) -> Errors:
    """The errors of several seeds as of one tensor with more elements."""
    stacked = [torch.stack(values) for values in zip(*(vars(one).values() for one in seeds), strict=True)]
    count, error, exact, rounding, error_max, exact_max = stacked
    return Errors(count.sum(0), error.sum(0), exact.sum(0), rounding.sum(0), error_max.amax(0), exact_max.amax(0))
