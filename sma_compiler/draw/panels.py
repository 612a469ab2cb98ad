"""One panel a plan: the tiles it computes, in the order and direction it computes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sma_compiler.draw.colours import CARRIED, EMPTY_TILE, FULL_TILE, INK, PAPER, PARTIAL_TILE, QUIET, RULE, STATE
from sma_compiler.draw.picture import MaskView
from sma_compiler.draw.tiles import EMPTY, FULL, PARTIAL, SKIPPED, classify, holds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TILES = 8
"""Tiles a side in the pictures of plans that work by tiles; a power of two."""

STEPS = 32
"""Positions drawn in the picture of the recurrent plan."""

LEGEND_LINE = 0.26
"""Inches from one line of a legend to the next."""


def draw_plan(axes: Axes, name: str, mask: MaskView, inches: float) -> None:
    """Fills square axes with the picture of one plan. `inches` is the side of the panel."""
    axes.set_xlim(0, TILES)
    axes.set_ylim(TILES, 0)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    {
        "quadratic": _quadratic,
        "chunked": _chunked,
        "recurrent": _recurrent,
        "global": _global,
        "toeplitz": _toeplitz,
        "hierarchical": _hierarchical,
    }[name](axes, mask, inches)


def _box(
    axes: Axes, left: float, top: float, width: float, height: float, fill: str, edge: str = PAPER, line: float = 1.0
) -> None:
    from matplotlib import patches

    axes.add_patch(patches.Rectangle((left, top), width, height, facecolor=fill, edgecolor=edge, linewidth=line))


def _arrow(axes: Axes, start: tuple[float, float], stop: tuple[float, float], inches: float, line: float) -> None:
    style = {"color": STATE, "linewidth": line, "mutation_scale": 4.5 * inches + 2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=stop, xytext=start, arrowprops={"arrowstyle": "-|>", **style})


def _tile(axes: Axes, row: int, column: int, state: int) -> None:
    match state:
        case 3:
            _box(axes, column, row, 1, 1, FULL_TILE)
        case 2:
            _box(axes, column, row, 1, 1, PARTIAL_TILE)
        case 1:
            _box(axes, column, row, 1, 1, EMPTY_TILE)
        case _:
            _box(axes, column + 0.44, row + 0.44, 0.12, 0.12, RULE)


def _tiles(mask: MaskView) -> NDArray[np.int8]:
    return classify(mask.live, mask.visited, TILES)


def _quadratic(axes: Axes, mask: MaskView, inches: float) -> None:
    for (row, column), state in np.ndenumerate(_tiles(mask)):
        _tile(axes, row, column, int(state))


def _carried(mask: MaskView) -> NDArray[np.bool_]:
    """The tiles off the diagonal that hold pairs which a state stands for."""
    carried: NDArray[np.bool_] = holds(mask.live & ~mask.near, TILES) & ~np.eye(TILES, dtype=bool)
    return carried


def _near(mask: MaskView) -> NDArray[np.bool_]:
    """The tiles that hold pairs which no state stands for."""
    return holds(mask.visited & mask.near, TILES)


def _tint(axes: Axes, carried: NDArray[np.bool_]) -> None:
    for row, column in np.argwhere(carried):
        _box(axes, column, row, 1, 1, CARRIED, CARRIED, 0.3)


def _chunked(axes: Axes, mask: MaskView, inches: float) -> None:
    states, carried = _tiles(mask), _carried(mask)
    _tint(axes, carried)
    for row, column in np.argwhere(_near(mask) | np.eye(TILES, dtype=bool)):
        _tile(axes, row, column, PARTIAL if carried[row, column] else int(states[row, column]))
    for chunk in range(TILES - 1):
        for live, x, y, turn in (
            (carried[chunk + 1, chunk], chunk + 0.5, chunk + 1.5, 1),
            (carried[TILES - 2 - chunk, TILES - 1 - chunk], TILES - chunk - 0.5, TILES - chunk - 1.5, -1),
        ):
            if not live:
                continue
            if chunk < TILES - 2:
                _arrow(axes, (x, y), (x + 0.84 * turn, y + 0.84 * turn), inches, line=0.5 * inches + 0.3)
            axes.plot([x], [y], "o", color=STATE, markersize=1.7 * inches, markeredgewidth=0)


def _recurrent(axes: Axes, mask: MaskView, inches: float) -> None:
    carried = _carried(mask)
    _tint(axes, carried)
    for row, column in np.argwhere(_near(mask) & ~np.eye(TILES, dtype=bool)):
        _tile(axes, row, column, PARTIAL if carried[row, column] else int(_tiles(mask)[row, column]))
    size = TILES / STEPS
    for step in range(STEPS):
        _box(axes, step * size, step * size, size, size, FULL_TILE, line=0.6)
    if carried[1:, :-1].diagonal().any():
        _arrow(axes, (0.35, 1.35), (TILES - 1.35, TILES - 0.35), inches, line=0.6 * inches + 0.3)
    if carried[:-1, 1:].diagonal().any():
        _arrow(axes, (TILES - 0.35, TILES - 1.35), (1.35, 0.35), inches, line=0.6 * inches + 0.3)


def _global(axes: Axes, mask: MaskView, inches: float) -> None:
    _box(axes, 0, 0, TILES, TILES, FULL_TILE)
    words = r"$Q\,(K^{\top} V)$"
    axes.text(TILES / 2, TILES / 2, words, ha="center", va="center", color=PAPER, fontsize=6 + 4.5 * inches)


def _toeplitz(axes: Axes, mask: MaskView, inches: float) -> None:
    from matplotlib import colors

    count = mask.live.shape[0]
    lag = np.subtract.outer(np.arange(count), np.arange(count))
    stripe = np.abs(lag) // max(1, count // (2 * TILES))
    shade = np.where(mask.live, stripe % 2 * 0.55 + stripe / (6 * stripe.max() + 1), np.nan)
    shades = colors.LinearSegmentedColormap.from_list("lags", (FULL_TILE, PARTIAL_TILE)).with_extremes(bad=PAPER)
    axes.imshow(shade, cmap=shades, vmin=0, vmax=0.8, extent=(0, TILES, TILES, 0), interpolation="nearest")


def _hierarchical(axes: Axes, mask: MaskView, inches: float) -> None:
    from matplotlib import colors

    shades = colors.LinearSegmentedColormap.from_list("levels", (PARTIAL_TILE, FULL_TILE, INK))
    for chunk in range(TILES):
        _tile(axes, chunk, chunk, PARTIAL)
    levels = TILES.bit_length() - 1
    for level in range(levels):
        size = 2**level
        for left in range(0, TILES, 2 * size):
            _box(axes, left, left + size, size, size, colors.to_hex(shades((level + 1) / (levels + 1))))


_ENTRIES: dict[str, tuple[str, ...]] = {
    "quadratic": ("full", "partial", "empty", "skipped"),
    "chunked": ("partial", "carried", "state"),
    "recurrent": ("step", "carried", "state"),
    "global": ("full",),
    "toeplitz": ("lag",),
    "hierarchical": ("partial", "level"),
}
_WORDS = {
    "full": "tile computed",
    "partial": "computed and masked",
    "empty": "computed, all masked",
    "skipped": "tile skipped",
    "step": "position by position",
    "carried": "carried by the state",
    "state": "state handed on",
    "lag": "one entry a diagonal",
    "level": "one state a block",
}


def legend_entries(plans: tuple[str, ...], mask: MaskView) -> list[str]:
    """Which marks the panels of these plans contain, in the order they are explained."""
    states = _tiles(mask)
    wanted = {entry for plan in plans for entry in _ENTRIES[plan]}
    if "global" not in plans and FULL not in (states if "quadratic" in plans else states.diagonal()):
        wanted.discard("full")
    if not _carried(mask).any():
        wanted -= {"carried", "state"}
    if EMPTY not in states:
        wanted.discard("empty")
    if SKIPPED not in states:
        wanted.discard("skipped")
    if PARTIAL not in states:
        wanted.discard("partial")
    return [entry for entry in _WORDS if entry in wanted]


def draw_legend(axes: Axes, entries: list[str], width: float, height: float, columns: int) -> None:
    """Swatches and what they mean, down each column. The axes are `width` by `height` inches."""
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    lines = -(-len(entries) // columns)
    for number, entry in enumerate(entries):
        left = number // lines * width / columns
        middle = LEGEND_LINE * (number % lines + 0.5)
        _swatch(axes, entry, left, middle)
        axes.text(left + 0.37, middle, _WORDS[entry], va="center", fontsize=12, color=QUIET)


def _swatch(axes: Axes, entry: str, left: float, middle: float) -> None:
    fills = {
        "empty": EMPTY_TILE,
        "full": FULL_TILE,
        "partial": PARTIAL_TILE,
        "carried": CARRIED,
        "lag": FULL_TILE,
        "level": FULL_TILE,
    }
    match entry:
        case "state":
            _arrow(axes, (left + 0.05, middle), (left + 0.27, middle), 1.6, line=1.4)
            axes.plot([left + 0.05], [middle], "o", color=STATE, markersize=4.2, markeredgewidth=0, clip_on=False)
        case "skipped":
            _box(axes, left + 0.11, middle - 0.03, 0.06, 0.06, RULE, RULE)
        case "step":
            for step in range(3):
                _box(axes, left + 0.05 + 0.06 * step, middle - 0.09 + 0.06 * step, 0.06, 0.06, FULL_TILE)
        case _:
            _box(axes, left + 0.05, middle - 0.09, 0.18, 0.18, fills[entry], fills[entry])
