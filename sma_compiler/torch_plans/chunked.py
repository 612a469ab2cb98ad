"""The plan `chunked`: matrix products inside chunks, a state between them (Dao & Gu 2024, state-space duality).

Lanes whose state is narrow and whose gates move with time walk through the positions of all chunks at once instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from sma_compiler.torch_plans.frame import Frame
from sma_compiler.torch_plans.gates import Path, cumulate, places
from sma_compiler.torch_plans.intra import blocks, first_distance, moves, scores, table_axes
from sma_compiler.torch_plans.lanes import Lane
from sma_compiler.torch_plans.layout import (
    add,
    add_product,
    apply,
    contract,
    cut,
    exp2,
    merge,
    multiply,
    number,
    pick,
    product,
    rename,
    reorder,
    some,
)
from sma_compiler.torch_plans.named import Named
from sma_compiler.torch_plans.scan import carry, chunks, moved
from sma_compiler.torch_plans.strided import as_named, last_places, run_strided, tile
from sma_compiler.torch_plans.walk import own_terms

CHUNK = 32
"""Positions in a chunk; twice as many where the state is so wide that fewer states are better than fewer scores."""
_NARROW = 128
_WIDE = 2048


@dataclass(frozen=True)
class Tiles:
    """A lane cut into `count` chunks of `size`: `chunk` and `pos` in place of `time`.

    still, flow: the paths of static gates, and of the others and resets.
    """

    lane: Lane
    size: int
    count: int
    still: Path | None
    flow: Path | None
    like: Named

    def paths(self) -> list[Path]:
        """The paths that there are."""
        return [path for path in (self.still, self.flow) if path is not None]

    def alone(self, chunk: int | Tensor) -> Tiles:
        """One chunk (of each batch row) alone, without the axis `chunk`."""

        def one(x: Named) -> Named:
            return pick(x, "chunk", chunk, 0)

        columns = tuple(replace(c, keys=tuple(map(one, c.keys)), value=one(c.value)) for c in self.lane.columns)
        flow = self.flow.each(one) if self.flow is not None else None
        return replace(self, lane=replace(self.lane, columns=columns), count=1, flow=flow)


def run_chunked(lane: Lane, frame: Frame, initial: Named | None, want_state: bool = True) -> tuple[Named, Named | None]:
    """The lane's result over `time` (but for `outer`), and, if wanted, its state behind the end of each row.

    initial: the state before the first position; None: empty. The turns of both states are about the boundary.
    """
    tabled = table_axes(lane)
    width = _state_width(lane)
    if width <= _NARROW and (tabled is None or any(moves(gate.log) for gate in lane.gates)):
        return run_strided(lane, frame, initial, want_state)
    tiles = cut_up(lane, frame, at_most(CHUNK if width <= _WIDE else 2 * CHUNK, frame.length, tabled is None))
    totals = [path.total(tiles.size - 1) for path in tiles.paths()]
    added = written(tiles, tiles.size - 1, frame)
    before = carry(added, add(*totals) if totals else None, lane.basis, tiles.size, initial)
    found = add_product(_inside(tiles, tabled, frame), *_read(tiles, before, frame))
    result = cut(merge(found, "chunk", "pos", "time"), "time", 0, frame.length)
    return result, final(tiles, before, frame) if want_state else None


def read(tiles: Tiles, before: Named, frame: Frame) -> Named:
    """What the rows of each chunk see of the state before it."""
    weight, found = _read(tiles, before, frame)
    return multiply(*some(weight), found)


def _read(tiles: Tiles, before: Named, frame: Frame) -> tuple[Named | None, Named]:
    """The same as two factors, the first without contracted axes."""
    weight, row = reading(tiles, frame)
    return weight, contract(row, rounded(before, frame), *tiles.lane.inner, *tiles.lane.basis.axes)


def reading(tiles: Tiles, frame: Frame) -> tuple[Named | None, Named]:
    """What rows read the state before their chunk with: a weight for the product, and the product's operand."""
    lane = tiles.lane
    distance = Named(places(tiles.like).data + 1, ("pos",))
    weights = [*(path.read().to(frame.compute) for path in tiles.paths()), *some(lane.basis.rows(distance))]
    rows, outside = _sides(lane.rows, weights, {*lane.inner, *lane.basis.axes})
    row = multiply(*rows) if rows else number(1, frame.compute, frame.device)
    return product(*outside), rounded(row, frame)


def written(tiles: Tiles, last: int | Tensor, frame: Frame) -> Named:
    """What the positions up to `last` of each chunk add to the state behind it."""
    values = [column.value for column in tiles.lane.columns]
    return add(*map(partial(write, frame=frame), writing(tiles, last, frame), values))


def writing(tiles: Tiles, last: int | Tensor, frame: Frame) -> list[tuple[Named, list[Named]]]:
    """What each column's values are written with: the product's operand, and weights for the values."""
    lane = tiles.lane
    distance = apply(lambda e, p: (e - p).clamp(min=0), as_named(last, frame), places(tiles.like))
    weights = [*(path.write(last).to(frame.compute) for path in tiles.paths()), *some(lane.basis.columns(distance))]
    found = []
    for column in lane.columns:
        keys, outside = _sides(column.keys, weights, {*lane.inner, *lane.basis.axes})
        key = multiply(*keys) if keys else number(1, frame.compute, frame.device)
        found.append((rounded(key, frame), outside))
    return found


def write(written_with: tuple[Named, list[Named]], value: Named, frame: Frame) -> Named:
    """The sum over a chunk of a column's values."""
    key, weights = written_with
    return contract(key, rounded(multiply(value, *weights), frame), "pos")


def final(tiles: Tiles, before: Named, frame: Frame) -> Named:
    """The state behind the last position of each row, from the states before every chunk."""
    chunk, last = last_places(frame, tiles.size)
    return behind(tiles.alone(chunk), pick(before, "chunk", chunk, 0), last, frame)


def behind(tile: Tiles, state: Named | None, last: int | Tensor, frame: Frame) -> Named:
    """The state behind the position `last` (-1: none) of a single chunk, from the one before it."""
    added = written(tile, last, frame)
    if state is None:
        return added
    steps = as_named(last, frame)
    state = moved(state, tile.lane.basis, steps.data + 1, steps.axes)
    kept = [exp2(path.total(last)).to(frame.compute) for path in tile.paths()]
    return add(multiply(state, *kept), added)


def _inside(tiles: Tiles, tabled: frozenset[str] | None, frame: Frame) -> Named:
    """What rows see of their own chunk."""
    lane, terms = tiles.lane, []
    for column, matrix in zip(lane.columns, matrices(tiles, tabled, frame), strict=True):
        value = rename(rounded(column.value, frame), {"pos": "col"})
        terms.append(rename(contract(rounded(matrix, frame), value, "col"), {"row": "pos"}))
    skipped = tabled is not None and any(first_distance(lane, column) > column.first for column in lane.columns)
    return add(*terms, *some(own_terms(lane) if skipped else None))


def matrices(tiles: Tiles, tabled: frozenset[str] | None, frame: Frame) -> Iterator[Named]:
    """The weights [row, col] of each column's values, in its chunk; tabled: `table_axes`."""
    lane = tiles.lane
    if tabled is not None:
        for column in lane.columns:
            yield scores(lane, column, tiles.still, tiles.flow, tabled, tiles.like, frame)
        return
    path = cumulate(lane.gates, lane.resets, tiles.size, number(0, frame.compute, frame.device))
    for column in lane.columns:
        yield blocks(lane, column, path, tiles.like, frame)


def _state_width(lane: Lane) -> int:
    """How many entries of the state share their batch-like entries."""
    own = {axis for x in (*lane.rows, *(gate.log for gate in lane.gates)) for axis in x.axes}
    own |= {axis for column in lane.columns for key in column.keys for axis in key.axes}
    inside = {axis for column in lane.columns for axis in column.value.axes} - own - {"batch", "time"}
    return math.prod(lane.size(axis) for axis in (*lane.inner, *inside))


def at_most(size: int, length: int, power: bool) -> int:
    """The size of a chunk, less where the frame is shorter; a power of two if asked for."""
    if not isinstance(length, int) or length >= size:
        return size
    return 1 << (length - 1).bit_length() if power else length


def cut_up(lane: Lane, frame: Frame, size: int) -> Tiles:
    """The lane in chunks, contiguous for matrix products."""
    count = chunks(frame.length, size)
    tiled = lane.each(lambda x: reorder(tile(x, count, size, frame.length)))
    return _tiled(tiled, size, count, frame.compute, frame)


def one_chunk(lane: Lane, frame: Frame) -> Tiles:
    """All positions as one chunk, without the axis `chunk`; sums of gates are in fp64, as they are long."""
    tile = lane.each(lambda x: rename(x, {"time": "pos"}))
    gates = tuple(replace(gate, log=gate.log.to(torch.float64)) for gate in tile.gates)
    return _tiled(replace(tile, gates=gates), frame.length, 1, torch.float64, frame)


def _tiled(lane: Lane, size: int, count: int, dtype: torch.dtype, frame: Frame) -> Tiles:
    """dtype: of the sums of gates."""
    zero = number(0, dtype, frame.device)
    still = cumulate([gate for gate in lane.gates if not moves(gate.log)], None, size, zero)
    flow = cumulate([gate for gate in lane.gates if moves(gate.log)], lane.resets, size, zero)
    like = Named(torch.zeros(size, dtype=frame.compute, device=frame.device), ("pos",))
    return Tiles(lane, size, count, still, flow, like)


def _sides(factors: Sequence[Named], weights: Sequence[Named], inner: set[str]) -> tuple[list[Named], list[Named]]:
    """The factors of one operand of a matrix product, weights of contracted axes among them, and other weights.

    A static operand takes static weights, too: it then has neither batch nor chunks.
    """
    chosen = [*factors, *(x for x in weights if inner & set(x.axes))]
    others = [x for x in weights if not inner & set(x.axes)]
    if any("chunk" in x.axes for x in chosen):
        return chosen, others
    return [*chosen, *(x for x in others if "chunk" not in x.axes)], [x for x in others if "chunk" in x.axes]


def rounded(x: Named, frame: Frame) -> Named:
    """An operand of a product."""
    return Named(frame.dot(x.data), x.axes)
