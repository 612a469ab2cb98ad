"""Runs the streams of a contraction by a plan, with their states; see `lanes` for what a state holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sma_compiler.ir.graph import sort_axes
from sma_compiler.mask.nodes import Stream
from sma_compiler.torch_plans.chunked import behind, one_chunk, read, run_chunked
from sma_compiler.torch_plans.frame import Frame
from sma_compiler.torch_plans.lanes import Lane, Preparation, State
from sma_compiler.torch_plans.layout import add, choose, contract, flip, multiply, number, rename, some
from sma_compiler.torch_plans.named import Named
from sma_compiler.torch_plans.strided import turned
from sma_compiler.torch_plans.walk import Walk


def run_streams(
    plan: str,
    streams: Sequence[Stream],
    q: Named,
    k: Named,
    v: Named,
    frame: Frame,
    state: State | None,
    key: int | None,
    want_state: bool = True,
) -> tuple[Named, dict[str, Tensor]]:
    """Sum over streams, columns and contracted axes of row * path * kernel * column * value; and the state behind.

    plan: `"chunked"`, `"recurrent"` (lower streams alone have one) or `"global"`. q (with the scale), k, v: tensors
    over time or static; `L @ x` has q = k = 1 and v = x. state: None at the start of the sequences.
    key: the size of the axis `key`, which is contracted; 1 where nothing has it; None: `key` is like any other axis.
    want_state: whether the state behind will be used; without, it is empty.
    """
    preparation = Preparation(frame, state, key)
    results = []
    for lane in preparation.lanes(streams, q, k, v):
        if lane.side == "full":
            found = _whole(lane, frame)
        elif plan == "recurrent":
            found, preparation.after[lane.name] = _recurrent(lane, frame, state)
        else:
            found, after = run_chunked(lane, frame, about_boundary(lane, frame, state), want_state)
            if after is not None and lane.side == "lower":
                preparation.after[lane.name] = stored(lane, frame, after)
        results.append(multiply(flip(found, "time") if lane.side == "upper" else found, *some(lane.outer)))
    return over_time(add(*results), frame), preparation.after if want_state else {}


def advance_streams(
    streams: Sequence[Stream],
    q: Named,
    k: Named,
    v: Named,
    frame: Frame,
    state: State | None,
    key: int | None,
    want_state: bool = True,
) -> tuple[Named | None, dict[str, Tensor]]:
    """What every row sees of the state alone (None: there is none), and the state behind; lower streams only.

    The plans that write a mask out need no more of streams. Arguments as for `run_streams`.
    """
    preparation = Preparation(frame, state, key)
    results = []
    for lane in preparation.lanes(streams, q, k, v):
        tile = one_chunk(lane, frame)
        before = about_boundary(lane, frame, state)
        if want_state:
            last = frame.length - 1 if frame.lengths is None else frame.lengths - 1
            preparation.after[lane.name] = stored(lane, frame, behind(tile, before, last, frame))
        if before is not None and any(column.delay for column in lane.columns):
            results.append(multiply(run_chunked(_tails(lane, frame), frame, before, False)[0], *some(lane.outer)))
        elif before is not None:
            results.append(multiply(rename(read(tile, before, frame), {"pos": "time"}), *some(lane.outer)))
    found = over_time(add(*results), frame) if results else None
    return found, preparation.after if want_state else {}


def _tails(lane: Lane, frame: Frame) -> Lane:
    """The lane with those columns alone that hold what lies before the frame."""
    steps = torch.arange(frame.length, device=frame.device)
    columns = []
    for column in lane.columns:
        earlier = Named(steps < column.delay, ("time",))
        columns.append(replace(column, value=choose(earlier, column.value, 0)))
    return replace(lane, columns=tuple(columns))


def _whole(lane: Lane, frame: Frame) -> Named:
    """Every row sees every column: two matrix products."""
    terms = []
    for column in lane.columns:
        key = multiply(*column.keys) if column.keys else number(1, frame.compute, frame.device)
        terms.append(contract(_rounded(key, frame), _rounded(column.value, frame), "time"))
    state = add(*terms)
    row = multiply(*lane.rows) if lane.rows else number(1, frame.compute, frame.device)
    return contract(_rounded(row, frame), _rounded(state, frame), *lane.inner)


def _recurrent(lane: Lane, frame: Frame, state: State | None) -> tuple[Named, Tensor]:
    """Position by position."""
    names = {"time": "pos"}
    walked = lane.each(lambda x: rename(x, names))
    shape, axes = lane.state_shape(frame), lane.state_axes()
    data = torch.zeros(shape, dtype=frame.compute, device=frame.device) if state is None else state[lane.name]
    valid = frame.valid() if lane.side == "lower" else None  # what lies past the end of a row comes first, and is 0
    walk = Walk(walked, frame.length, origin_of(frame), frame.compute, wide=True)
    found, after = walk.run(Named(data, axes), rename(valid, names) if valid is not None else None)
    return rename(found, {"pos": "time"}), after.view(axes).expand(shape)


def about_boundary(lane: Lane, frame: Frame, state: State | None) -> Named | None:
    """The lane's state as it is kept, about the boundary before the frame; None: there is none."""
    if state is None or lane.side != "lower":
        return None
    stored = Named(state[lane.name], lane.state_axes())
    start = frame.start if frame.start is not None else torch.zeros((), dtype=torch.int64, device=frame.device)
    return turned(stored, lane.basis, Named(start - 1, ("batch",) * start.dim()))


def stored(lane: Lane, frame: Frame, after: Named) -> Tensor:
    """A state about the boundary behind each row's end, as it is kept."""
    length = torch.full((), frame.length, device=frame.device) if frame.lengths is None else frame.lengths
    end = length - 1 if frame.start is None else frame.start + length - 1
    axes = lane.state_axes()
    return turned(after, lane.basis, Named(end, ("batch",) * end.dim())).view(axes).expand(lane.state_shape(frame))


def origin_of(frame: Frame) -> Named:
    """The positions of a frame, from the start of the sequences, along `pos`."""
    steps = torch.arange(frame.length, device=frame.device)
    start = torch.zeros((), dtype=torch.int64, device=frame.device) if frame.start is None else frame.start
    return Named(start[..., None] + steps, (*("batch",) * start.dim(), "pos"))


def over_time(x: Named, frame: Frame) -> Named:
    """In the order of `AXES`, with `time`."""
    axes = sort_axes((*x.axes, "time"))
    shape = [frame.length if axis == "time" else x.size(axis) for axis in axes]
    return Named(x.view(axes).expand(shape), axes)


def _rounded(x: Named, frame: Frame) -> Named:
    return Named(frame.dot(x.data), x.axes)
