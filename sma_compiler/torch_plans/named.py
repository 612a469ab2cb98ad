"""Tensors whose dimensions are named axes, broadcast by name.

Axes are the language's (`ir.nodes.AXES`), fresh names of contracted axes, and `i`, `j` where a mask is evaluated at
pairs of positions. A missing axis means: the same for all its entries.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sma_compiler.ir.graph import sort_axes


@dataclass(frozen=True)
class Named:
    """`data` has one dimension for each of `axes`, in that order."""

    data: Tensor
    axes: tuple[str, ...]

    def to(self, dtype: torch.dtype) -> Named:
        """The same tensor in another dtype."""
        return Named(self.data.to(dtype), self.axes)

    def size(self, axis: str) -> int:
        """The size of an axis; 1 where it is missing."""
        return self.data.shape[self.axes.index(axis)] if axis in self.axes else 1

    def view(self, axes: tuple[str, ...]) -> Tensor:
        """The data with dimensions exactly `axes` in that order, missing ones of size 1 (to broadcast)."""
        assert set(self.axes) <= set(axes), (self.axes, axes)
        data = self.data.permute([self.axes.index(axis) for axis in axes if axis in self.axes])
        return data[tuple(slice(None) if axis in self.axes else None for axis in axes)]

    def rename(self, old: str, new: str) -> Named:
        """The same data with one axis under another name."""
        return Named(self.data, tuple(new if axis == old else axis for axis in self.axes))

    def sum(self, axis: str, size: int) -> Named:
        """Sum over an axis of this size; where the axis is missing, `size` times the value."""
        if axis not in self.axes:
            return Named(self.data * size, self.axes)
        at = self.axes.index(axis)
        return Named(self.data.sum(at), self.axes[:at] + self.axes[at + 1 :])


def union(tensors: Iterable[Named]) -> tuple[str, ...]:
    """All axes of some tensors, in the order of `AXES`."""
    return sort_axes(axis for tensor in tensors for axis in tensor.axes)


def aligned(*tensors: Named) -> tuple[tuple[str, ...], list[Tensor]]:
    """The union of the axes, and each tensor's view over it."""
    axes = union(tensors)
    return axes, [tensor.view(axes) for tensor in tensors]
