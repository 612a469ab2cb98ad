"""Caches: what the contractions that no stream carries remember of earlier positions.

A shift register of slots in time order, the newest last: `pos` [batch, slots] int64 holds absolute positions, -1 where
a slot is empty; the other tensors, [batch, slots, ...] with their axes in the order of `AXES`, hold 0 there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from sma_compiler.ir.nodes import (
    Expr,
    Kind,
)
from sma_compiler.torch_plans.evaluate import Evaluator
from sma_compiler.torch_plans.frame import Frame
from sma_compiler.torch_plans.named import Named
from sma_compiler.torch_plans.named_ops import arranged, join, select, spread
from sma_compiler.torch_plans.pairs import Line, fresh_line
from sma_compiler.torch_plans.scope import Mode

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Cache:
    """What one contraction holds of earlier positions.

    held: names and what they are; the values that a solve reads are its own results. slots: how many positions, None:
    all. wide: what is kept in fp64, because it feeds phases.
    """

    held: Mapping[str, Expr]
    slots: int | None
    wide: frozenset[Expr]

    def line(self, frame: Frame, state: State | None) -> Line:
        """The cache's slots, then the new positions. It holds nothing yet: see `hold`."""
        line = fresh_line(frame)
        if state is None:
            return line
        past = Named(state["pos"], ("batch", "time"))
        sizes = [past.size("time"), frame.length]
        new = line.exists or Named(torch.ones((), dtype=torch.bool, device=frame.device), ())
        exists = [Named(past.data >= 0, past.axes), spread(new, "time", frame.length)]
        return Line(sum(sizes), sizes[0], join([past, line.places], "time", sizes), join(exists, "time", sizes))

    def hold(self, line: Line, evaluator: Evaluator, frame: Frame, state: State | None, names: Iterable[str]) -> Line:
        """The line with some of what the cache holds: its slots and the values at the new positions."""
        found, valid = dict(line.held), frame.valid()
        for name in names:
            expr = self.held[name]
            new = evaluator.limit(expr, Mode.WIDE if expr in self.wide else Mode.PLAIN)
            new = new if valid is None else select(valid, new, 0)
            if state is not None:
                past = Named(state[name], stored_axes(expr))
                new = join([past, new.to(past.data.dtype)], "time", [line.new, line.length - line.new])
            found[expr] = new
        return replace(line, held=found)

    def renewed(self, line: Line, evaluator: Evaluator, frame: Frame, slots: int | None) -> dict[str, Tensor]:
        """The cache after the call; `slots` says how many, where that is not for the cache to say."""
        count = self.slots if self.slots is not None else slots if slots is not None else line.length
        found = {"pos": _last(Named(line.places.data + 1, line.places.axes), (), (), line, frame, count) - 1}
        for name, expr in self.held.items():
            axes = stored_axes(expr)[2:]
            sizes = [evaluator.axis_size(axis) for axis in axes]
            value = line.held[expr].to(self._dtype(expr, frame.compute))
            found[name] = _last(value, axes, sizes, line, frame, count)
        return found

    def empty(self, evaluator: Evaluator, batch: int, capacity: int | None) -> dict[str, Tensor]:
        """The state of a cache that has seen nothing; `capacity` slots where it may hold every position."""
        count = self.slots if self.slots is not None else capacity or 0
        device = evaluator.device
        found = {"pos": torch.full((batch, count), -1, dtype=torch.int64, device=device)}
        for name, expr in self.held.items():
            shape = [evaluator.axis_size(axis) for axis in stored_axes(expr)[2:]]
            dtype = self._dtype(expr, evaluator.dtype)
            found[name] = torch.zeros(batch, count, *shape, dtype=dtype, device=device)
        return found

    def _dtype(self, expr: Expr, compute: torch.dtype) -> torch.dtype:
        real = torch.float64 if expr in self.wide else compute
        return {Kind.BOOL: torch.bool, Kind.INT: torch.int64, Kind.REAL: real}[expr.kind]


def stored_axes(expr: Expr) -> tuple[str, ...]:
    """The dimensions of a cached tensor."""
    return ("batch", "time", *(axis for axis in expr.axes if axis not in ("batch", "time")))


def _last(x: Named, rest: tuple[str, ...], sizes: Sequence[int], line: Line, frame: Frame, slots: int) -> Tensor:
    """The newest entries up to each row's end: [batch, slots, *rest], 0 where there are none."""
    if line.exists is not None:
        x = select(line.exists, x, 0)
    data = arranged(x, ("batch", "time", *rest), [frame.batch, line.length, *sizes])
    missing = max(0, slots - line.length)
    data = functional.pad(data, [0, 0] * (len(rest)) + [missing, 0])
    first = missing + line.length - slots
    if frame.lengths is None:
        return data.narrow(1, first, slots)
    behind = (frame.length - frame.lengths)[:, None]  # how far each row ends before the line does
    index = first - behind + torch.arange(slots, device=frame.device)
    index, exists = index.clamp(min=0), index >= 0
    wanted = [frame.batch, slots, *([1] * len(rest))]
    taken = data.gather(1, index.view(wanted).expand(frame.batch, slots, *sizes))
    return torch.where(exists.view(wanted), taken, torch.zeros((), dtype=taken.dtype, device=taken.device))
