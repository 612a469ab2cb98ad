"""The plan `recurrent` of solve: x_t = u_t - a_t . S_{t-1}, where the state S takes b_t x_t in (the delta rule)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sma_compiler.mask.nodes import Stream
from sma_compiler.torch_plans.frame import Frame
from sma_compiler.torch_plans.intra import own_weight
from sma_compiler.torch_plans.lanes import Column, Lane, Preparation, State
from sma_compiler.torch_plans.layout import add, apply, at, common, multiply, number, order, rename, some, without
from sma_compiler.torch_plans.named import Named
from sma_compiler.torch_plans.streams import origin_of, over_time
from sma_compiler.torch_plans.walk import Walk, stacked, steps


def solve_recurrent(
    streams: Sequence[Stream],
    a: Named,
    b: Named,
    u: Named,
    frame: Frame,
    state: State | None,
    key: int | None,
    want_state: bool = True,
) -> tuple[Named, dict[str, Tensor]]:
    """x = (I + L o A B^T)^-1 U for a strictly lower L made of streams, and the state behind.

    The state, and the arguments that it shares with `run_streams`, are those of (L o A B^T) @ x.
    """
    preparation = Preparation(frame, state, key)
    lanes = preparation.lanes(streams, a, b, None)
    like = like_of(lanes, u, frame)
    solving = [_Solving(lane, like, frame, state) for lane in lanes]
    rights = steps(u, frame.length, "time")
    valid = steps(frame.valid(), frame.length, "time")
    results = []
    for step in range(frame.length):
        right = rights[step]
        for one in solving:
            right = apply(torch.sub, right, one.seen(step))
        x = Named(right.view(like.axes).expand(like.data.shape), like.axes)
        exists = valid[step]
        if exists is not None:
            x = apply(lambda c, y: torch.where(c, y, 0), exists, x)
        for one in solving:
            one.take(step, x, exists)
        results.append(x)
    for one in solving:
        one.finish(preparation)
    return over_time(stacked(results, "time"), frame), preparation.after if want_state else {}


def like_of(lanes: list[Lane], u: Named, frame: Frame) -> Named:
    """Ones with the axes and sizes of x at a position."""
    parts = [u]
    for lane in lanes:
        parts += [*lane.rows, *some(lane.outer), *lane.parts(), *(x for c in lane.columns for x in some(c.fed))]
    inner = {axis for lane in lanes for axis in lane.inner}
    axes = without(order(axis for part in parts for axis in (*part.axes, "batch")), "time", *inner)
    sizes = [frame.batch if axis == "batch" else common(part.size(axis) for part in parts) for axis in axes]
    return Named(torch.ones(sizes, dtype=frame.compute, device=frame.device), axes)


class _Solving:
    """One lane: its state, and what its delayed columns hold."""

    def __init__(self, lane: Lane, like: Named, frame: Frame, state: State | None) -> None:
        names = {"time": "pos"}
        self.lane = replace(lane, columns=(*lane.columns, Column(0, 0, (), like)))
        self.axes, self.shape = self.lane.state_axes(), self.lane.state_shape(frame)
        zero = torch.zeros(self.shape, dtype=frame.compute, device=frame.device)
        self.state = Named(zero if state is None else state[lane.name], self.axes)
        tile = lane.each(lambda x: rename(x, names))
        self.walk = Walk(tile, frame.length, origin_of(frame), frame.compute, wide=True)
        self.outer = steps(lane.outer, frame.length, "time")
        self.before = self.state
        self.columns = [_Held(tile, column, like, frame, state) for column in tile.columns]

    def seen(self, step: int) -> Named:
        """What the row sees of everything before it."""
        self.before = self.walk.moved(self.state)
        own = [x for column in self.columns for x in some(column.own(step))]
        return multiply(add(self.walk.read(step, self.before), *own), *some(self.outer[step]))

    def take(self, step: int, x: Named, exists: Named | None) -> None:
        """Moves the state behind a position whose x is known."""
        values = [column.feed(step, x) for column in self.columns]
        self.state = self.walk.after(step, self.before, values, self.state, exists)

    def finish(self, preparation: Preparation) -> None:
        """Keeps what the next call must know."""
        preparation.after[self.lane.name] = self.state.view(self.axes).expand(self.shape)
        for column in self.columns:
            if column.delay:
                preparation.delayed(stacked(column.held, "time"), column.delay, column.tail)


class _Held:
    """The values of one stream's columns, from the tail of the call before on."""

    def __init__(self, lane: Lane, column: Column, like: Named, frame: Frame, state: State | None) -> None:
        length = frame.length
        self.delay, self.tail = column.delay, column.tail
        self.weights = steps(column.value, length)
        self.fed = steps(column.fed, length)
        self.weight = steps(own_weight(lane, column) if column.first == 0 else None, length)
        self.zero = number(0, frame.compute, frame.device)
        self.held: list[Named] = []
        self.earlier: list[Named] = []
        if column.delay and state is not None:
            axes = without(order((*column.value.axes, *like.axes)), "pos", "batch")
            tail = Named(state[column.tail], ("batch", "time", *axes))
            self.earlier = [at(tail, "time", place) for place in range(column.delay)]

    def own(self, step: int) -> Named | None:
        """What a row sees of the delayed value at its own position; None: nothing."""
        weight = self.weight[step]
        return None if weight is None else multiply(weight, self._delayed(step))

    def feed(self, step: int, x: Named) -> Named:
        """The value of the column at a position."""
        self.held.append(multiply(self.weights[step], x))
        return self._delayed(step)

    def _delayed(self, step: int) -> Named:
        place = step - self.delay
        value = self.held[place] if place >= 0 else self.earlier[step] if self.earlier else self.zero
        return multiply(value, *some(self.fed[step]))
