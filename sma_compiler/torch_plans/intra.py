"""What rows see of columns of their own chunk, as a matrix [row, col] for each chunk.

`scores`: the path weighs a pair alike in all contracted axes (but for those that static factors alone have, which are
summed beforehand into one table), so the matrix is R C^T o path. `blocks`: a gate differs among contracted axes. Pairs
are split at the middle of the chunk, of its halves, and so on; each is a row that reads a column across a boundary,
and nothing of the size row x col x contracted is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from sma_compiler.torch_plans.basis import Basis
from sma_compiler.torch_plans.frame import Frame
from sma_compiler.torch_plans.gates import Path, decay, places, triangle
from sma_compiler.torch_plans.lanes import Column, Lane
from sma_compiler.torch_plans.layout import (
    apply,
    at,
    common,
    contract,
    exp2,
    multiply,
    number,
    order,
    rename,
    split,
    summed,
)
from sma_compiler.torch_plans.named import Named


def moves(x: Named) -> bool:
    """Whether a factor depends on the position."""
    return "time" in x.axes or "pos" in x.axes


def table_axes(lane: Lane) -> frozenset[str] | None:
    """The contracted axes that static factors alone have; None: `scores` cannot be used."""
    factors = [*lane.rows, *(key for column in lane.columns for key in column.keys)]
    moving = {axis for x in factors if moves(x) for axis in x.axes} & set(lane.inner)
    for _ in factors:
        for x in factors:
            if moving & set(x.axes):
                moving |= set(x.axes) & set(lane.inner)
    if any(moves(gate.log) and set(gate.log.axes) & set(lane.inner) for gate in lane.gates):
        return None
    still = [*(gate.log for gate in lane.gates), *(rate for _, rate in lane.basis.turns)]
    return None if any(moving & set(x.axes) for x in still) else frozenset(lane.inner) - moving


def first_distance(lane: Lane, column: Column) -> int:
    """The smallest distance at which differences of cumulative sums are the path's sum."""
    opened = any(not gate.key_closed and not gate.query_closed for gate in lane.gates)
    return 1 if opened else column.first


def scores(
    lane: Lane, column: Column, still: Path | None, flow: Path | None, tabled: frozenset[str], like: Named, frame: Frame
) -> Named:
    """The matrix of one column, from the distance `first_distance` on.

    still, flow: the paths of static gates, and of the others and resets. tabled: `table_axes`. like: has `pos`.
    """
    first = first_distance(lane, column)
    factors = [flow.pairs(first)] if flow is not None else []
    table = [x for x in (*lane.rows, *column.keys) if set(x.axes) & tabled]
    if still is not None:
        table.append(still.pairs(first))
    elif flow is None:
        table.append(exp2(triangle(like, first)))
    kernel = lane.basis.kernel(_distance(like))
    if kernel is not None:
        table.append(kernel)
    if table:
        factors.append(summed(multiply(*table), tabled))
    rows = [x for x in lane.rows if not set(x.axes) & tabled]
    keys = [x for x in column.keys if not set(x.axes) & tabled]
    over = [axis for axis in lane.inner if axis not in tabled]
    ends = [_rounded(multiply(*x), name, frame) for x, name in ((rows, "row"), (keys, "col")) if x]
    if len(ends) == 2:
        factors.append(contract(ends[0], ends[1], *over))
    else:
        factors.extend(summed(x, over) for x in ends)
    return multiply(*factors)


def blocks(lane: Lane, column: Column, path: Path | None, like: Named, frame: Frame) -> Named:
    """The matrix of one column; the chunk's length is a power of two.

    path: of all gates and resets. like: has `pos`.
    """
    length = like.size("pos")
    own = own_weight(lane, column) if column.first == 0 else None
    diagonal = Named(torch.zeros(length, 1, 1, dtype=frame.compute, device=frame.device), ("half", "row", "col"))
    if own is not None:
        diagonal = apply(torch.add, diagonal, rename(own, {"pos": "half"}))
    one = number(1, frame.compute, frame.device)
    row, key = multiply(one, *lane.rows), multiply(one, *column.keys)
    found = diagonal
    for size in _doubling(length):
        late, early = _crossing(path, lane.basis, like, size)
        read = _rounded(multiply(at(_halves(row, size), "side", 1), *late), "row", frame)
        written = _rounded(multiply(at(_halves(key, size), "side", 0), *early), "col", frame)
        found = _joined(found, contract(read, written, *lane.inner, *lane.basis.axes))
    return at(found, "half", 0)


def own_weight(lane: Lane, column: Column) -> Named | None:
    """The weight of distance 0; None: it is 0."""
    if lane.basis.degree or any(fn == "sin" for fn, _ in lane.basis.turns):
        return None
    both = decay([gate for gate in lane.gates if gate.key_closed and gate.query_closed], None, column.value.data.dtype)
    factors = [*lane.rows, *column.keys, *([both] if both is not None else [])]
    present = {axis for factor in factors for axis in factor.axes}
    repeats = math.prod(lane.size(axis) for axis in lane.inner if axis not in present)
    return summed(multiply(number(repeats, column.value.data.dtype, column.value.data.device), *factors), lane.inner)


def _doubling(length: int) -> Iterator[int]:
    size = 1
    while size < length:
        yield size
        size *= 2


def _halves(x: Named, size: int) -> Named:
    """`pos` as `half` blocks of two sides of this size."""
    return split(split(x, "pos", "half", "pos", 2 * size), "pos", "side", "pos", size)


def _crossing(path: Path | None, basis: Basis, like: Named, size: int) -> tuple[list[Named], list[Named]]:
    """The weights of later rows and of earlier columns at the boundary in the middle of each block."""
    near = Named(torch.arange(size, device=like.data.device), ("pos",))
    components = basis.rows(Named(near.data + 1, near.axes)), basis.columns(Named(size - 1 - near.data, near.axes))
    late, early = ([x] if x is not None else [] for x in components)
    if path is not None:
        sides = path.each(lambda x: _halves(x, size))
        middle = sides.ends.each(lambda x: at(at(x, "side", 0), "pos", size - 1))
        late.append(exp2(sides.rows.each(lambda x: at(x, "side", 1)).since(middle)))
        early.append(exp2(middle.since(sides.columns.each(lambda x: at(x, "side", 0)))))
    return late, early


def _joined(diagonal: Named, below: Named) -> Named:
    """Pairs of blocks and what lies below each pair, as blocks of twice the size."""
    pairs = split(diagonal, "half", "half", "side", 2)
    parts = [at(pairs, "side", 0), at(pairs, "side", 1), below]
    axes = order(axis for part in parts for axis in part.axes)
    views = [part.view(axes) for part in parts]
    shape = [common(sizes) for sizes in zip(*(view.shape for view in views), strict=True)]
    first, second, under = (view.expand(shape) for view in views)
    row, col = axes.index("row"), axes.index("col")
    upper = torch.cat((first, torch.zeros_like(under)), col)
    return Named(torch.cat((upper, torch.cat((under, second), col)), row), axes)


def _rounded(x: Named, name: str, frame: Frame) -> Named:
    return rename(Named(frame.dot(x.data), x.axes), {"pos": name})


def _distance(like: Named) -> Named:
    along = places(like).data
    return Named((along[:, None] - along[None, :]).clamp(min=0), ("row", "col"))
