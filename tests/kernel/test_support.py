"""The tiles that a mask's support visits, counted, and compared with the dense mask."""

from __future__ import annotations

import pytest
import torch
from kernel.pair_specs import compiled

from sma_compiler.emit.tile_counts import tile_counts
from sma_compiler.kernel.pairs import pairs
from sma_compiler.kernel.support import Positions, Tiles, count_tiles
from sma_compiler.runtime.op import CompiledOp

INTERVALS = (
    *("attention", "sliding_window", "document", "prefix_lm", "forgetting", "linear_attention_full"),
    *("document_window", "both_ways", "prefix_in_document", "far_band", "open_path", "anticausal", "two_sided"),
)
"""Ops whose mask is an interval of columns in every row."""
LENGTHS = (1, 16, 37, 64, 101)
NUMBERS = (1, 5, 16, 40, 200)
LENGTH_OF_RUNS = (1, 30, 3, 7, 22, 64)


def ids(length: int) -> torch.Tensor:
    """Runs of several lengths; ids come back."""
    parts = [torch.full((run,), n % 3) for n, run in enumerate(LENGTH_OF_RUNS)]
    return torch.cat(parts)[:length]


def dense(op: CompiledOp, length: int, number: int) -> torch.Tensor:
    """Where pairs are live, [T, T]: the weights of equal scores, by the reference."""
    given: dict[str, torch.Tensor | int] = {}
    for decl in op.ir.params:
        if decl.number:
            given[decl.name] = number
        elif decl.name == "doc":
            given[decl.name] = ids(length)[None]
        else:
            sizes = {"batch": 1, "time": length, "head": 1, "key": 1, "value": length}
            given[decl.name] = torch.zeros([sizes[axis] for axis in decl.dims])
    given["q"] = torch.ones(1, length, 1, 1)
    given["k"] = torch.ones(1, length, 1, 1)
    given["v"] = torch.eye(length)[None, :, None]
    return op.reference(**given)[0, :, 0] != 0


def exact(live: torch.Tensor, rows: int, columns: int) -> Tiles:
    """The tiles that are live as a whole, in part, and not at all. A tile past the end is no whole one."""
    length = live.shape[0]
    full = partial = total = 0
    for top in range(0, length, rows):
        for left in range(0, length, columns):
            tile = live[top : top + rows, left : left + columns]
            whole = bool(tile.all()) and left + columns <= length
            full += whole
            partial += bool(tile.any()) and not whole
            total += 1
    return Tiles(full, partial, total - full - partial)


def places(op: CompiledOp, length: int, number: int) -> Positions:
    found = pairs(op.ir, op.program.plans)
    starts, ends, first = [], [], 0
    told = ids(length).tolist()
    for t in range(length):
        first = t if t == 0 or told[t] != told[t - 1] else first
        starts.append(first)
    for t in range(length):
        later = [n for n in range(t + 1, length) if starts[n] == n]
        ends.append(later[0] if later else length)
    numbers = {decl.name: number for decl in op.ir.params if decl.number}
    return Positions(length, numbers, dict.fromkeys(found.turns, starts), dict.fromkeys(found.turns, ends))


@pytest.mark.parametrize("name", INTERVALS)
def test_counts_are_those_of_the_dense_mask(name: str) -> None:
    op = compiled(name)
    found = pairs(op.ir, op.program.plans)
    assert found.support.exact
    numbers = NUMBERS if any(decl.number for decl in op.ir.params) else (1,)
    for length in LENGTHS:
        for number in numbers:
            live = dense(op, length, number)
            for support, seen in ((found.support, live), (found.support.transposed(found.graph), live.T)):
                for rows, columns in ((16, 8), (8, 16), (32, 32)):
                    counted = count_tiles(support, places(op, length, number), rows, columns)
                    assert counted == exact(seen, rows, columns), (length, number, rows, columns)


@pytest.mark.parametrize("name", ["sinks", "returning", "overlapping"])
def test_what_is_no_interval_is_visited_between_bounds(name: str) -> None:
    op = compiled(name)
    found = pairs(op.ir, op.program.plans)
    assert not found.support.exact
    counted = count_tiles(found.support, Positions(64, {"w": 8}, {}, {}), 16, 16)
    assert counted == Tiles(0, 10, 6)


def test_the_work_that_a_window_leaves() -> None:
    op = compiled("sliding_window")
    sizes = {"batch": 4, "time": 8192, "head": 16, "key": 128, "value": 128}
    found = tile_counts(op.ir, op.program.plans, {**sizes, "w": 1024}, "bfloat16", "sm_90")
    assert found is not None
    every = (8192 // found.rows) * (8192 // found.columns)
    assert found.tiles.full + found.tiles.partial + found.tiles.skipped == every
    assert found.operations * 6 < found.dense
    assert "partial" in str(found)
    assert tile_counts(op.ir, op.program.plans, sizes, "bfloat16", "sm_90") is None
