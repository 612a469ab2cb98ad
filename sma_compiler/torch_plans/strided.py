"""The plan `chunked` of lanes with a narrow state: the recurrence, position by position, in all chunks at once.

One pass gives what each chunk adds to the state; then a scan over chunks; then a second pass from the state before
each chunk. A narrow state costs less than the weights of all pairs of a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sma_compiler.torch_plans.basis import Basis
from sma_compiler.torch_plans.frame import Frame
from sma_compiler.torch_plans.gates import passed
from sma_compiler.torch_plans.lanes import Lane
from sma_compiler.torch_plans.layout import contract, cut, merge, number, padded, pick, rename, split
from sma_compiler.torch_plans.named import Named
from sma_compiler.torch_plans.scan import carry, chunks
from sma_compiler.torch_plans.walk import Walk

SIZE = 16
"""Positions in a chunk."""


def run_strided(lane: Lane, frame: Frame, initial: Named | None, want_state: bool) -> tuple[Named, Named | None]:
    """The lane's result over `time`, and its state behind the end of each row, as `chunked.run_chunked` gives them."""
    size = min(SIZE, frame.length) if isinstance(frame.length, int) else SIZE
    count = chunks(frame.length, size)
    tiles = lane.each(lambda x: tile(x, count, size, frame.length))
    walk = _walk(tiles, size, frame)
    added = turned(walk.behind(_zeros(tiles, frame), None), lane.basis, number(size, torch.int64, frame.device))
    totals = passed(tiles.gates, tiles.resets, size, frame.compute)
    before = carry(added, totals, lane.basis, size, initial)
    origin = number(0, torch.int64, frame.device)
    found, _ = walk.run(turned(before, lane.basis, origin), None)
    result = cut(merge(found, "chunk", "pos", "time"), "time", 0, frame.length)
    if not want_state:
        return result, None
    chunk, place = last_places(frame, size)
    last = as_named(place, frame)
    valid = Named(torch.arange(size, device=frame.device) <= last.data[..., None], (*last.axes, "pos"))
    ending = _walk(tiles.each(lambda x: pick(x, "chunk", chunk, 0)), size, frame)
    state = ending.behind(turned(pick(before, "chunk", chunk, 0), lane.basis, origin), valid)
    return result, turned(state, lane.basis, Named(last.data + 1, last.axes))


def turned(state: Named, basis: Basis, position: Named) -> Named:
    """A state whose turns are about the origin, about the boundary at a position; or the other way round."""
    mirror = basis.mirror(position)
    return state if mirror is None else contract(mirror, rename(state, {"turn": "turn_from"}), "turn_from")


def tile(x: Named, count: int, size: int, length: int) -> Named:
    """`chunk` and `pos` in place of `time`, with zeros behind the end."""
    if "time" not in x.axes:
        return x
    return split(padded(x, "time", count * size - length), "time", "chunk", "pos", size)


def last_places(frame: Frame, size: int) -> tuple[int | Tensor, int | Tensor]:
    """The chunk of the last position of each row, and its place there; -1: the row is empty."""
    if frame.lengths is None:
        return (frame.length - 1) // size, (frame.length - 1) % size
    chunk = torch.div(frame.lengths - 1, size, rounding_mode="floor").clamp(min=0)
    return chunk, frame.lengths - 1 - chunk * size


def as_named(place: int | Tensor, frame: Frame) -> Named:
    """A position for all rows, or one for each."""
    if isinstance(place, Tensor):
        return Named(place, ("batch",))
    return number(place, torch.int64, frame.device)


def _walk(tiles: Lane, size: int, frame: Frame) -> Walk:
    places = Named(torch.arange(1, size + 1, device=frame.device), ("pos",))
    return Walk(tiles, size, places, frame.compute, wide=False)


def _zeros(tiles: Lane, frame: Frame) -> Named:
    """The empty state of every chunk, in the order of the factors in memory."""
    sizes = dict(zip(tiles.state_axes(), tiles.state_shape(frame), strict=True))
    axes = tuple(sorted(sizes, key=lambda axis: axis not in ("batch", "chunk")))
    return Named(torch.zeros([sizes[axis] for axis in axes], dtype=frame.compute, device=frame.device), axes)
