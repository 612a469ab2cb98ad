"""The states before every chunk, from what each chunk adds and how much of a state it keeps.

No loop over chunks: within a group, a matrix of decays (sums of the totals between two chunks, never differences of
cumulative sums); between groups the same again. Cost and memory are linear in the number of chunks.
"""

from __future__ import annotations

import torch

from sma_compiler.torch_plans.basis import Basis
from sma_compiler.torch_plans.layout import (
    add,
    apply,
    at,
    choose,
    contract,
    cut,
    exp2,
    merge,
    multiply,
    pad,
    rename,
    split,
    summed,
)
from sma_compiler.torch_plans.named import Named


def carry(items: Named, totals: Named | None, basis: Basis, steps: int, initial: Named | None, width: int) -> Named:
    """The state before each chunk.

    items: what each `chunk` adds to the state behind it. totals: binary log of what a state keeps through each chunk,
    or through any (no `chunk`); finite; None: everything. steps: positions in a chunk.
    initial: the state before the first chunk. width: the number of chunks in a group.
    """
    count = items.size("chunk")
    if count <= width:
        return _within(items, totals, basis, steps, initial, count)
    groups = -(-count // width)
    padding = groups * width - count
    items = split(pad(items, "chunk", 0, padding), "chunk", "group", "chunk", width)
    if totals is not None and "chunk" in totals.axes:
        totals = split(pad(totals, "chunk", 0, padding), "chunk", "group", "chunk", width)
    found = _within(items, totals, basis, steps, None, width + 1)
    added = at(found, "chunk", width).rename("group", "chunk")
    sums = _sums(totals, width)
    sums = sums.rename("group", "chunk") if sums is not None else None
    before = carry(added, sums, basis, steps * width, initial, width)
    kept = carried(before.rename("chunk", "group"), totals, basis, steps, width)
    return cut(merge(add(cut(found, "chunk", 0, width), kept), "group", "chunk", "chunk"), "chunk", 0, count)


def _within(items: Named, totals: Named | None, basis: Basis, steps: int, initial: Named | None, rows: int) -> Named:
    """The states before the first `rows` chunks of each group (one more than there are: also behind the last)."""
    count, device = items.size("chunk"), items.data.device
    places = torch.arange(rows, device=device)
    between = Named(places[:, None] - places[None, :count] - 1, ("chunk", "chunk_from"))
    future = torch.full_like(between.data, -torch.inf, dtype=items.data.dtype).triu()
    weights = exp2(add(Named(future, between.axes), *_kept(totals, between)))
    move = basis.move(Named(between.data.clamp(min=0) * steps, between.axes))
    if move is not None:
        weights = multiply(weights, move)
    names = {axis: f"{axis}_from" for axis in ("chunk", *basis.axes)}
    found = contract(weights, rename(items, names), *names.values())
    return found if initial is None else add(found, carried(initial, totals, basis, steps, rows))


def carried(initial: Named, totals: Named | None, basis: Basis, steps: int, rows: int) -> Named:
    """What the state before a group's first chunk is before each of its first `rows` chunks.

    It lacks `chunk` where it stays the same.
    """
    count = Named(torch.arange(rows, device=initial.data.device), ("chunk",))
    move = basis.move(Named(count.data * steps, count.axes))
    if move is not None:
        names = {axis: f"{axis}_from" for axis in basis.axes}
        initial = contract(move, rename(initial, names), *names.values())
    if totals is None:
        return initial
    if "chunk" in totals.axes:
        sums = totals.data.cumsum(totals.axes.index("chunk"))
        kept = cut(pad(Named(sums, totals.axes), "chunk", 1, 0), "chunk", 0, rows)
    else:
        kept = _times(totals, count)
    return multiply(exp2(kept), initial)


def _kept(totals: Named | None, between: Named) -> list[Named]:
    """Binary log of what a state keeps through the chunks strictly between `chunk_from` and `chunk`."""
    if totals is None:
        return []
    if "chunk" not in totals.axes:
        return [_times(totals, between)]
    rows = between.size("chunk")
    passed = Named(between.data[1:] >= 1, between.axes)
    entries = choose(passed, cut(totals, "chunk", 0, rows - 1), 0)
    sums = Named(entries.data.cumsum(entries.axes.index("chunk")), entries.axes)
    return [pad(sums, "chunk", 1, 0)]


def _times(x: Named, count: Named) -> Named:
    return apply(torch.mul, x, Named(count.data.clamp(min=0).to(x.data.dtype), count.axes))


def _sums(totals: Named | None, width: int) -> Named | None:
    """Binary log of what a state keeps through each group."""
    if totals is None:
        return None
    if "chunk" in totals.axes:
        return summed(totals, ("chunk",))
    return Named(totals.data * width, totals.axes)
