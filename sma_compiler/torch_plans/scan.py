"""The states before every chunk, from what each chunk adds and how much of a state it keeps.

No loop over chunks: within a group, a matrix of decays (sums of the totals between two chunks, never differences of
cumulative sums); between groups the same again. Cost and memory are linear in the number of chunks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sma_compiler.torch_plans.basis import Basis
from sma_compiler.torch_plans.layout import (
    add,
    add_product,
    apply,
    choose,
    contract,
    cut,
    exp2,
    flip,
    merge,
    multiply,
    pad,
    padded,
    rename,
    shifted,
    some,
    split,
    summed,
)
from sma_compiler.torch_plans.named import Named

WIDTH = 8
"""The number of chunks in a group."""


def chunks(length: int, size: int) -> int:
    """The number of chunks of so many positions; whole groups of them where the length is symbolic."""
    return -(-length // size) if isinstance(length, int) else -(-length // (size * WIDTH)) * WIDTH


def carry(
    items: Named, totals: Named | None, basis: Basis, steps: int, initial: Named | None, grouped: bool = False
) -> Named:
    """The state before each chunk.

    items: what each `chunk` adds to the state behind it. totals: binary log of what a state keeps through each chunk,
    or through any (no `chunk`); finite; None: everything. steps: positions in a chunk.
    initial: the state before the first chunk. grouped: these are groups of chunks already, and a symbolic number of
    them is grouped no further.
    """
    count = items.size("chunk")
    if count <= 2 * WIDTH if isinstance(count, int) else grouped:
        return _within(items, totals, basis, steps, initial)
    padding = -count % WIDTH if isinstance(count, int) else 0
    items = split(padded(items, "chunk", padding), "chunk", "group", "chunk", WIDTH)
    if totals is not None and "chunk" in totals.axes:
        totals = split(padded(totals, "chunk", padding), "chunk", "group", "chunk", WIDTH)
    added = rename(_added(items, totals, basis, steps), {"group": "chunk"})
    sums = _sums(totals)
    sums = rename(sums, {"group": "chunk"}) if sums is not None else None
    before = carry(added, sums, basis, steps * WIDTH, initial, True)
    found = _within(items, totals, basis, steps, rename(before, {"chunk": "group"}))
    return cut(merge(found, "group", "chunk", "chunk"), "chunk", 0, count)


def _within(items: Named, totals: Named | None, basis: Basis, steps: int, initial: Named | None) -> Named:
    """The states before the chunks of each group, from those before the groups."""
    places = torch.arange(items.size("chunk"), device=items.data.device)
    between = Named(places[:, None] - places - 1, ("chunk", "chunk_from"))
    future = torch.full_like(between.data, -torch.inf, dtype=items.data.dtype).triu()
    weights = exp2(add(Named(future, between.axes), *_logs(totals, between)))
    move = basis.move(Named(between.data.clamp(min=0) * steps, between.axes))
    found = _moved(items, weights if move is None else multiply(weights, move), basis)
    if initial is None:
        return found
    return add_product(
        found, _kept(totals, Named(places, ("chunk",))), moved(initial, basis, places * steps, ("chunk",))
    )


def _added(items: Named, totals: Named | None, basis: Basis, steps: int) -> Named:
    """What all chunks of a group add to the state behind it."""
    places = torch.arange(WIDTH, device=items.data.device)
    later = Named(WIDTH - 1 - places, ("chunk_from",))
    weights = [*some(basis.move(Named(later.data * steps, later.axes)))]
    if totals is not None and "chunk" in totals.axes:
        kept = flip(shifted(_cumulative(flip(totals, "chunk")), "chunk"), "chunk")
        weights.append(exp2(rename(kept, {"chunk": "chunk_from"})))
    elif totals is not None:
        weights.append(exp2(_times(totals, later)))
    one = Named(torch.ones(WIDTH, dtype=items.data.dtype, device=items.data.device), ("chunk_from",))
    return _moved(items, multiply(*weights) if weights else one, basis)


def moved(state: Named, basis: Basis, distance: Tensor, axes: tuple[str, ...]) -> Named:
    """A state with its boundary moved on; the distance, in positions, may have axes."""
    move = basis.move(Named(distance, axes))
    if move is None:
        return state
    names = {axis: f"{axis}_from" for axis in basis.axes}
    return contract(move, rename(state, names), *names.values())


def _moved(items: Named, weights: Named, basis: Basis) -> Named:
    names = {axis: f"{axis}_from" for axis in ("chunk", *basis.axes)}
    return contract(weights, rename(items, names), *names.values())


def _kept(totals: Named | None, places: Named) -> Named | None:
    """What a state keeps through the chunks before each of a group; None: everything."""
    if totals is None:
        return None
    return exp2(shifted(_cumulative(totals), "chunk") if "chunk" in totals.axes else _times(totals, places))


def _logs(totals: Named | None, between: Named) -> list[Named]:
    """Binary log of what a state keeps through the chunks strictly between `chunk_from` and `chunk`."""
    if totals is None:
        return []
    if "chunk" not in totals.axes:
        return [_times(totals, between)]
    behind = Named(between.data[1:] >= 1, between.axes)
    entries = choose(behind, cut(totals, "chunk", 0, between.size("chunk") - 1), 0)
    return [pad(_cumulative(entries), "chunk", 1, 0)]


def _cumulative(x: Named) -> Named:
    return Named(x.data.cumsum(x.axes.index("chunk")), x.axes)


def _times(x: Named, count: Named) -> Named:
    return apply(torch.mul, x, Named(count.data.clamp(min=0).to(x.data.dtype), count.axes))


def _sums(totals: Named | None) -> Named | None:
    """Binary log of what a state keeps through each group."""
    if totals is None or "chunk" not in totals.axes:
        return None if totals is None else Named(totals.data * WIDTH, totals.axes)
    return summed(totals, ("chunk",))
