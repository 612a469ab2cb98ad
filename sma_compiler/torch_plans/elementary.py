"""Time operators that need no plan: `L @ x` where L is one shifted diagonal, or all ones on one side of it.

They are executed as they are: integers stay integers, sums are taken in fp64, and no operand is rounded.
State: `tail` [batch, by, ...], the last inputs of a shift; `sum` [batch, ...], the sum of all inputs (real ones in
fp64). Axes are in the order of `AXES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sma_compiler.ir.nodes import Expr, Kind, MaskTimes
from sma_compiler.mask.elementary import Shift, Sum
from sma_compiler.torch_plans.evaluate import Evaluator
from sma_compiler.torch_plans.frame import Frame
from sma_compiler.torch_plans.named import Named
from sma_compiler.torch_plans.named_ops import arranged, dropped, select

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Elementary:
    """One elementary operator of an op.

    name: what its states are called after. wide: its result feeds phases, so it is computed in fp64.
    """

    node: MaskTimes
    name: str
    what: Shift | Sum
    wide: bool

    def run(self, evaluator: Evaluator, frame: Frame, state: State | None) -> tuple[Named, dict[str, Tensor]]:
        """The result at the new positions, and the state after them (empty where it looks ahead)."""
        x = evaluator.tensor(self.node.x, self.wide)
        if self.node.kind is not Kind.REAL:
            x = x.to(torch.int64)
        axes = _axes(self.node.x)
        sizes = [evaluator.axis_size(axis) for axis in axes[2:]]
        valid = frame.valid()
        x = x if valid is None else select(valid, x, 0)
        data = arranged(x, axes, [frame.batch, frame.length, *sizes])
        if isinstance(self.what, Shift):
            found, after = _shift(data, self.what.by, frame, state)
        else:
            found, after = _sum(data, self.what, state)
        return Named(found, axes), after

    def empty(self, evaluator: Evaluator, batch: int) -> dict[str, Tensor]:
        """The state before the first position."""
        sizes = [evaluator.axis_size(axis) for axis in _axes(self.node.x)[2:]]
        real = self.node.kind is Kind.REAL
        dtype = evaluator.dtype if real else torch.int64
        if isinstance(self.what, Shift):
            dtype = torch.float64 if real and self.wide else dtype
            shape = {"tail": [batch, self.what.by, *sizes]} if self.what.by > 0 else {}
        else:
            dtype = torch.float64 if real else dtype
            shape = {} if self.what.backward else {"sum": [batch, *sizes]}
        return {name: torch.zeros(one, dtype=dtype, device=evaluator.device) for name, one in shape.items()}


def _axes(x: Expr) -> tuple[str, ...]:
    return ("batch", "time", *dropped(x.axes, "batch", "time"))


def _shift(x: Tensor, by: int, frame: Frame, state: State | None) -> tuple[Tensor, dict[str, Tensor]]:
    """x [batch, time, ...], 0 past the end of a row."""
    length, rest = x.shape[1], [0, 0] * (x.dim() - 2)
    if by <= 0:
        ahead = functional.pad(x, [*rest, 0, -by])
        return ahead.narrow(1, -by, length), {}
    before = x.new_zeros(x.shape[0], by, *x.shape[2:]) if state is None else state["tail"].to(x.dtype)
    line = torch.cat((before, x), 1)
    if frame.lengths is None:
        return line.narrow(1, 0, length), {"tail": line.narrow(1, length, by)}
    index = frame.lengths[:, None] + torch.arange(by, device=x.device)
    index = index.reshape(*index.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:])
    return line.narrow(1, 0, length), {"tail": line.gather(1, index)}


def _sum(x: Tensor, what: Sum, state: State | None) -> tuple[Tensor, dict[str, Tensor]]:
    """x [batch, time, ...], 0 past the end of a row."""
    length, wide = x.shape[1], x.to(torch.float64) if x.is_floating_point() else x
    if what.backward:
        found = functional.pad(wide.flip(1).cumsum(1).flip(1), [*[0, 0] * (x.dim() - 2), 0, 1])
        return found.narrow(1, -what.by, length).to(x.dtype), {}
    before = torch.zeros_like(wide.sum(1)) if state is None else state["sum"]
    found = torch.cat((before.unsqueeze(1), wide.cumsum(1) + before.unsqueeze(1)), 1)
    return found.narrow(1, 1 - what.by, length).to(x.dtype), {"sum": found.select(1, length)}
