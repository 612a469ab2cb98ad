"""The off-diagonal blocks of a mask and their numerical ranks (a HODLR partition: every split halves the diagonal)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

RANK_TOLERANCE = 1e-10
"""Singular values below this part of the largest one count as 0: far above fp64's rounding, far below any structure."""


@dataclass(frozen=True)
class Block:
    """Rows [top, bottom) and columns [left, right) of the mask, wholly below the diagonal or wholly above it.

    rank: the numerical rank of these entries. level: 1 for the two largest blocks, one more at every halving.
    """

    top: int
    bottom: int
    left: int
    right: int
    level: int
    rank: int

    @property
    def lower(self) -> bool:
        """Whether the block lies below the diagonal: queries after keys."""
        return self.top >= self.right


def numerical_rank(entries: Tensor) -> int:
    """The number of singular values above `RANK_TOLERANCE` of the largest, after every row and column is scaled to 1.

    The scaling keeps the rank and lifts rows that a steep decay has made tiny. entries: [rows, columns], fp64.
    """
    scaled = entries.double()
    for axis in (1, 0):
        largest = scaled.abs().amax(axis, keepdim=True)
        scaled = scaled / torch.where(largest > 0, largest, torch.ones_like(largest))
    values = torch.linalg.svdvals(scaled)
    return int((values > RANK_TOLERANCE * values[0]).sum()) if values.numel() and values[0] > 0 else 0


def partition(mask: Tensor, depth: int = 3) -> list[Block]:
    """Every off-diagonal block down to `depth` halvings of the [T, T] mask, below and above the diagonal."""
    return [
        Block(top, bottom, left, right, level, numerical_rank(mask[top:bottom, left:right]))
        for top, bottom, left, right, level in _split(0, mask.shape[0], 1, depth)
    ]


def _split(start: int, stop: int, level: int, depth: int) -> Iterator[tuple[int, int, int, int, int]]:
    if level > depth or stop - start < 2:
        return
    middle = (start + stop) // 2
    yield middle, stop, start, middle, level
    yield start, middle, middle, stop, level
    yield from _split(start, middle, level + 1, depth)
    yield from _split(middle, stop, level + 1, depth)
