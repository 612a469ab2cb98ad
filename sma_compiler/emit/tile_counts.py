"""How many tiles of an op's mask the quadratic kernel goes over at a shape, and the work that this leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sma_compiler.ir.nodes import Expr, Op, Param, Size, postorder
from sma_compiler.kernel import config
from sma_compiler.kernel.errors import NoTritonKernel
from sma_compiler.kernel.pairs import Pairs, pairs
from sma_compiler.kernel.support import Positions, Tiles, count_tiles
from sma_compiler.plan.choose import Plans


@dataclass(frozen=True)
class TileCounts:
    """Tiles of rows by columns, of one head and sequence. operations: of the forward products, all heads and sequences.

    dense: those of all tiles. runs: whether there are fewer where ids change: they count as one run here. fades:
    whether there are fewer where decays leave nothing that fp32 holds.
    """

    rows: int
    columns: int
    tiles: Tiles
    operations: int
    dense: int
    runs: bool
    fades: bool

    def __str__(self) -> str:
        found = self.tiles
        counted = f"{found.full} full, {found.partial} partial, {found.skipped} skipped"
        left = f"{self.operations:.3g} of {self.dense:.3g} FLOPs forward"
        less = "; less where ids change" if self.runs else ""
        less += "; less where decays leave nothing" if self.fades else ""
        return f"quadratic tiles of {self.rows} x {self.columns} a head: {counted}; {left}{less}"


def tile_counts(
    op: Op, plans: Plans, known: Mapping[str, int], dtype: str, target: str, side: int = 0
) -> TileCounts | None:
    """The tiles at sizes and integers `known` by name; None where there is no such kernel, or an integer is missing.

    side: rows and columns of a tile; those of the kernel, where 0.
    """
    try:
        found = pairs(op, plans)
    except NoTritonKernel:
        return None
    sizes = {"batch": 1, "head": 1, "key": 64, "value": 64, **known}
    if "time" not in known or not all(_names(number) <= sizes.keys() for number in found.support.numbers):
        return None
    chosen = config.pairs(sizes, dtype, target, **found.traits)
    return _counted(found, sizes, replace(chosen, rows=side, columns=side) if side else chosen)


def _names(number: Expr) -> set[str]:
    """The parameters and axes that a static integer reads."""
    nodes = tuple(postorder((number,)))
    return {node.name for node in nodes if isinstance(node, Param)} | {x.axis for x in nodes if isinstance(x, Size)}


def _counted(found: Pairs, sizes: Mapping[str, int], chosen: config.PairConfig) -> TileCounts:
    tiles = count_tiles(found.support, Positions(sizes["time"], sizes, {}, {}), chosen.rows, chosen.columns)
    each = 2 * chosen.rows * chosen.columns * (sizes["key"] + sizes["value"]) * sizes["batch"] * sizes["head"]
    visited = tiles.full + tiles.partial
    every = visited + tiles.skipped
    return TileCounts(
        chosen.rows,
        chosen.columns,
        tiles,
        each * visited,
        each * every,
        bool(found.support.runs),
        found.fading is not None,
    )
