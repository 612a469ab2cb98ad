"""The plan `chunked` of solve: the delta rule by matrix products, in its WY form (Yang et al. 2024).

Inside a chunk x + A x = r, where A holds the weights of the chunk's own pairs, strictly lower, and r is the right side
less what the rows see of the state before the chunk. With N = (I + A)^-1 - I, which all chunks find at once,
x = r + N r: the identity is never rounded. What is left for each chunk in turn are three matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sma_compiler.mask.nodes import Stream
from sma_compiler.torch_plans.chunked import at_most, behind, cut_up, matrices, reading, rounded, write, writing
from sma_compiler.torch_plans.frame import Frame
from sma_compiler.torch_plans.intra import table_axes
from sma_compiler.torch_plans.lanes import Column, Lane, Preparation, State
from sma_compiler.torch_plans.layout import (
    add,
    add_product,
    apply,
    contract,
    cut,
    exp2,
    multiply,
    order,
    pick,
    product,
    rename,
    reorder,
    some,
    without,
)
from sma_compiler.torch_plans.named import Named
from sma_compiler.torch_plans.scan import moved
from sma_compiler.torch_plans.solve_streams import like_of
from sma_compiler.torch_plans.streams import about_boundary, over_time, stored
from sma_compiler.torch_plans.strided import last_places, tile
from sma_compiler.torch_plans.walk import stacked, steps

SIZE = 64
"""Positions in a chunk."""


def solve_chunked(
    streams: Sequence[Stream],
    a: Named,
    b: Named,
    u: Named,
    frame: Frame,
    state: State | None,
    key: int | None,
    want_state: bool = True,
) -> tuple[Named, dict[str, Tensor]]:
    """x = (I + L o A B^T)^-1 U and the state behind, as `solve_recurrent` gives them; no stream has a delay."""
    preparation = Preparation(frame, state, key)
    lanes = preparation.lanes(streams, a, b, None)
    like = like_of(lanes, u, frame)
    size = at_most(SIZE, frame.length, any(table_axes(lane) is None for lane in lanes))
    solving = [_Solving(lane, like, size, frame, state) for lane in lanes]
    count = solving[0].tiles.count
    inverses = steps(rounded(_inverse(add(*(one.weights() for one in solving))), frame), count, "chunk")
    rights = steps(tile(u, count, size, frame.length), count, "chunk")
    axes = order((*like.axes, "pos"))
    shape = [size if axis == "pos" else like.size(axis) for axis in axes]
    found = []
    for chunk in range(count):
        right = Named(rights[chunk].view(axes).expand(shape), axes)
        for one in solving:
            right = one.unseen(chunk, right)
        x = _solved(inverses[chunk], right, frame)
        for one in solving:
            one.take(chunk, x)
        found.append(x)
    if want_state:
        preparation.after.update({one.lane.name: one.behind(found) for one in solving})
    whole = Named(torch.cat([x.view(axes) for x in found], axes.index("pos")), axes)
    result = cut(rename(whole, {"pos": "time"}), "time", 0, frame.length)
    return over_time(result, frame), preparation.after if want_state else {}


def _inverse(weights: Named) -> Named:
    """(I + weights)^-1 - I, where weights [row, col] are strictly lower."""
    axes = (*without(weights.axes, "row", "col"), "row", "col")
    lower = weights.view(axes)
    return Named(torch.linalg.solve_triangular(lower, -lower, upper=False, unitriangular=True), axes)


def _solved(inverse: Named, right: Named, frame: Frame) -> Named:
    """(I + A)^-1 right, where `inverse` is all of it but the identity."""
    more = contract(inverse, rename(rounded(right, frame), {"pos": "col"}), "col")
    return add(right, rename(more, {"row": "pos"}))


class _Solving:
    """One lane in chunks, and its state before each chunk that was reached."""

    def __init__(self, lane: Lane, like: Named, size: int, frame: Frame, state: State | None) -> None:
        columns = tuple(replace(c, value=multiply(c.value, *some(c.fed)), fed=None) for c in lane.columns)
        gates = tuple(replace(gate, exact=True) for gate in lane.gates)
        self.frame = frame
        self.lane = replace(lane, columns=(*lane.columns, Column(0, 0, (), like)))
        self.tiles = cut_up(replace(lane, gates=gates, columns=columns), frame, size)
        count = self.tiles.count
        self.outer = None if lane.outer is None else reorder(tile(lane.outer, count, size, frame.length))
        weight, row = reading(self.tiles, frame)
        self.seen = steps(product(*some(weight), *some(self.outer)), count, "chunk")
        self.rows = steps(row, count, "chunk")
        self.written = [
            (steps(key, count, "chunk"), steps(multiply(column.value, *weights), count, "chunk"))
            for column, (key, weights) in zip(
                self.tiles.lane.columns, writing(self.tiles, size - 1, frame), strict=True
            )
        ]
        totals = [path.total(size - 1) for path in self.tiles.paths()]
        self.kept = steps(exp2(add(*totals)) if totals else None, count, "chunk")
        self.step = torch.tensor(size, device=frame.device)
        self.before: list[Named | None] = [about_boundary(self.lane, frame, state)]

    def weights(self) -> Named:
        """The weights [row, col] of x in its own chunk."""
        outer = [rename(x, {"pos": "row"}) for x in some(self.outer)]
        terms = []
        found = matrices(self.tiles, table_axes(self.lane), self.frame)
        for column, matrix in zip(self.tiles.lane.columns, found, strict=True):
            terms.append(multiply(matrix, rename(column.value, {"pos": "col"}), *outer))
        return add(*terms)

    def unseen(self, chunk: int, right: Named) -> Named:
        """The right side less what the rows see of the state before their chunk."""
        before = self.before[chunk]
        if before is None:
            return right
        lane, weight = self.tiles.lane, self.seen[chunk]
        found = contract(self.rows[chunk], rounded(before, self.frame), *lane.inner, *lane.basis.axes)
        if weight is None:
            return apply(torch.sub, right, found)
        return apply(lambda x, w, y: torch.addcmul(x, w, y, value=-1), right, weight, found)

    def take(self, chunk: int, x: Named) -> None:
        """Moves the state behind a chunk whose x is known."""
        if chunk == self.tiles.count - 1:
            return
        after = add(*(write((keys[chunk], [weights[chunk]]), x, self.frame) for keys, weights in self.written))
        before = self.before[chunk]
        if before is not None:
            after = add_product(after, self.kept[chunk], moved(before, self.lane.basis, self.step, ()))
        self.before.append(after)

    def behind(self, found: Sequence[Named]) -> Tensor:
        """The state behind the last position of each row, as it is kept, from x in every chunk."""
        chunk, last = last_places(self.frame, self.tiles.size)
        one, x = self.tiles.alone(chunk), _picked(found, chunk)
        columns = tuple(replace(column, value=multiply(column.value, *some(x))) for column in one.lane.columns)
        filled = replace(one, lane=replace(one.lane, columns=columns))
        return stored(self.lane, self.frame, behind(filled, _picked(self.before, chunk), last, self.frame))


def _picked(entries: Sequence[Named | None], chunk: int | Tensor) -> Named | None:
    """The entry of a chunk, or of one for each batch row; None stands for zeros."""
    if not isinstance(chunk, Tensor):
        return entries[chunk]
    like = next((entry for entry in entries if entry is not None), None)
    if like is None:
        return None
    zero = Named(torch.zeros_like(like.data), like.axes)
    return pick(stacked([zero if entry is None else entry for entry in entries], "chunk"), "chunk", chunk, 0)
