"""The new positions of one call: how many, where they start, in which dtypes to compute, and what evaluates factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sma_compiler.ir.nodes import Expr
from sma_compiler.torch_plans.named import Named


class Evaluates(Protocol):
    """What the plans need of the evaluator (`torch_plans.evaluate.Evaluator`)."""

    def tensor(self, expr: Expr, wide: bool = False) -> Named:
        """An expression without positions, in fp64 where `wide`."""
        ...

    def along(self, expr: Expr, frame: Frame, log: bool = False) -> Named:
        """An expression that mentions at most one position letter, which becomes the `time` axis of the frame.

        A static expression comes back without `time`. `log`: its logarithm, -inf where it is 0.
        """
        ...

    def gate(self, expr: Expr, frame: Frame) -> Named:
        """A log gate, like `along`; where it is -inf, all that it is made of has the gradient 0."""
        ...

    def axis_size(self, axis: str) -> int:
        """The size of an axis in this call, also under a fresh name."""
        ...


@dataclass(frozen=True)
class Frame:
    """The positions start .. start + length - 1 of every row of the batch.

    batch: B, the number of rows.
    length: T, the number of new positions.
    start: [B] int64, the positions seen before; None: 0.
    lengths: [B] int64, how many of the new positions each row has; None: all of them.
    compute: float32, or float64 where the inputs are.
    operand: the dtype that dots round their operands to; `compute` where nothing is rounded.
    device: where everything lies.
    """

    batch: int
    length: int
    start: Tensor | None
    lengths: Tensor | None
    compute: torch.dtype
    operand: torch.dtype
    device: torch.device
    evaluate: Evaluates

    def valid(self) -> Named | None:
        """[batch, time]: which positions exist; None where all do."""
        if self.lengths is None:
            return None
        steps = torch.arange(self.length, device=self.device)
        return Named(steps < self.lengths[:, None], ("batch", "time"))

    def dot(self, x: Tensor) -> Tensor:
        """An operand of a dot: rounded to `operand`, then back to `compute`, in which the products are summed.

        Its gradient, a sum of products itself, is not rounded: under softmax it nearly cancels with another.
        """
        if self.operand == self.compute:
            return x
        if not x.requires_grad:
            return x.to(self.operand).to(self.compute)
        plain = x.detach()
        return x + (plain.to(self.operand).to(self.compute) - plain)  # exactly the rounded x

    def along(self, expr: Expr) -> Named:
        """A factor at every position of the frame."""
        return self.evaluate.along(expr, self)
