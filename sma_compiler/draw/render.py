"""Draws a `Picture` with matplotlib: a row of panels per mask, the mask's values left, its plans' tiles right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sma_compiler.draw.blocks import Block
from sma_compiler.draw.colours import INK, PAPER, QUIET, TYPE, Scale, choose_scale, norm_and_map
from sma_compiler.draw.panels import draw_legend, draw_plan, legend_entries
from sma_compiler.draw.picture import MaskView, Picture
from sma_compiler.errors import SmaError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

SIDE = 4.6
GAP = 0.55
MARGIN = 0.5
HEAD = 0.92
FOOT = 0.95
LONG_FOOT = 1.5
LINE = 0.205
GUTTER = 0.42
DOTS_PER_INCH = 160


class PlottingMissing(SmaError):
    """matplotlib is not installed; it comes with the extra `plot`."""

    def __init__(self) -> None:
        super().__init__("drawing needs matplotlib: pip install 'sma-compiler[plot]'")


class UnknownPictureFormat(SmaError):
    """A picture was asked for under a name that ends in neither .png nor .svg."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path}: a picture's name ends in .png or .svg")


def check_target(path: Path) -> None:
    """Raises UnknownPictureFormat where no picture could be written under this name."""
    if path.suffix not in (".png", ".svg"):
        raise UnknownPictureFormat(path)


def save(picture: Picture, path: Path) -> None:
    """Writes the picture as PNG or SVG, by the ending of the name.

    Raises UnknownPictureFormat, PlottingMissing, OSError.
    """
    with figure_for(path, _size(picture)) as figure:
        _draw(figure, picture)


@contextmanager
def figure_for(path: Path, size: tuple[float, float], *, constrained: bool = False) -> Iterator[Figure]:
    """An empty figure of so many inches, which is written to the path in the end. constrained: laid out by matplotlib.

    Raises UnknownPictureFormat, PlottingMissing, OSError.
    """
    check_target(path)
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlottingMissing from error
    with matplotlib.rc_context(TYPE):
        figure = Figure(figsize=size, facecolor=PAPER, layout="constrained" if constrained else None)
        FigureCanvasAgg(figure)
        yield figure
        still = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=DOTS_PER_INCH, metadata=still)


def _size(picture: Picture) -> tuple[float, float]:
    width = 2 * MARGIN + 2 * SIDE + GAP
    return width, 0.55 + _caption_height(picture) + sum(_row_height(mask) for mask in picture.masks)


def _row_height(mask: MaskView) -> float:
    return HEAD + SIDE + (LONG_FOOT if len(mask.plans) > 3 else FOOT)


def _caption_height(picture: Picture) -> float:
    return LINE * len(picture.equation) + 0.42


class _Sheet:
    """Places axes on a figure by inches from the top left corner."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure
        self.width, self.height = figure.get_size_inches()

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        w, h = self.width, self.height
        return self.figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))

    def text(
        self,
        left: float,
        top: float,
        text: str,
        size: float,
        color: str = INK,
        ha: str = "left",
        va: str = "top",
        bold: bool = False,
        italic: bool = False,
        family: str | None = None,
        math: bool = False,
    ) -> None:
        self.figure.text(
            left / self.width,
            1 - top / self.height,
            text,
            fontsize=size,
            color=color,
            ha=ha,
            va=va,
            weight="bold" if bold else "normal",
            style="italic" if italic else "normal",
            family=family,
            parse_math=math,
        )


def _draw(figure: Figure, picture: Picture) -> None:
    sheet = _Sheet(figure)
    sheet.text(MARGIN, 0.3, picture.name, size=21, bold=True)
    sheet.text(sheet.width - MARGIN, 0.38, picture.note, ha="right", size=12.5, color=QUIET, italic=True)
    top = 0.72
    for number, line in enumerate(picture.equation):
        sheet.text(MARGIN, top + LINE * number, line, family="DejaVu Sans Mono", size=9.6, color=INK)
    top += LINE * len(picture.equation) + 0.12
    for mask in picture.masks:
        _draw_mask(sheet, mask, top)
        _draw_plans(sheet, mask, top)
        top += _row_height(mask)


def _draw_mask(sheet: _Sheet, mask: MaskView, top: float) -> None:
    sheet.text(MARGIN, top + 0.08, mask.title, size=15, bold=True)
    sheet.text(MARGIN, top + 0.35, mask.facts, size=12, color=QUIET)
    axes = sheet.axes(MARGIN, top + HEAD, SIDE, SIDE)
    scale = choose_scale(mask.values)
    norm, palette = norm_and_map(scale)
    count = mask.values.shape[0]
    shown = np.where(mask.values == 0.0, np.nan, mask.values)
    image = axes.imshow(shown, cmap=palette, norm=norm, interpolation="nearest", extent=(0, count, count, 0))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("key position  $j$", fontsize=12, color=QUIET, labelpad=4)
    axes.set_ylabel("query position  $i$", fontsize=12, color=QUIET, labelpad=4)
    for block in mask.blocks:
        bound = mask.lower if block.lower else mask.upper
        if bound != "0":
            _draw_block(axes, block, bound, count)
    _draw_heading(sheet, MARGIN, top + HEAD, SIDE, "mask", "blocks: numerical rank ≤ inferred rank")
    _draw_scale(sheet, image, scale, mask.values, top + HEAD + SIDE + 0.34)


def _draw_block(axes: Axes, block: Block, bound: str, count: int) -> None:
    from matplotlib import patches

    size = block.bottom - block.top
    corner = (block.left, block.top)
    axes.add_patch(patches.Rectangle(corner, block.right - block.left, size, fill=False, edgecolor=INK, linewidth=0.9))
    words = f"{block.rank} ≤ {bound}"
    if block.level == 1 and len(bound) < 5:
        words = "rank " + words
    room = SIDE * 72 * size / count / (0.52 * len(words) + 0.6)
    axes.text(
        (block.left + block.right) / 2,
        (block.top + block.bottom) / 2,
        words,
        ha="center",
        va="center",
        fontsize=min(room, {1: 14.0, 2: 12.5}.get(block.level, 10.0)),
        bbox={"boxstyle": "round,pad=0.22", "facecolor": PAPER, "edgecolor": "none", "alpha": 0.88},
    )


def _draw_scale(sheet: _Sheet, image: AxesImage, scale: Scale, values: NDArray[np.float64], top: float) -> None:
    if scale.kind == "constant":
        swatch = sheet.axes(MARGIN, top, 0.17, 0.17)
        swatch.set_facecolor(image.to_rgba(np.array([scale.high]))[0])
        swatch.set_xticks([])
        swatch.set_yticks([])
        sheet.text(MARGIN + 0.26, top + 0.085, f"$L_{{ij}} = {scale.high:.4g}$", va="center", size=12, math=True)
        sheet.text(MARGIN + SIDE, top + 0.085, "white: 0", va="center", ha="right", size=12, color=QUIET)
        return
    bar = sheet.axes(MARGIN, top, SIDE * 0.72, 0.13)
    under = scale.kind == "log" and float(values[values > 0].min()) < scale.low * 0.999
    drawn = sheet.figure.colorbar(image, cax=bar, orientation="horizontal", extend="min" if under else "neither")
    drawn.outline.set_linewidth(0.6)
    drawn.outline.set_edgecolor(QUIET)
    drawn.ax.tick_params(length=2.5, width=0.6, pad=2, labelsize=11)
    if scale.kind == "signed_log":
        drawn.set_ticks([scale.low, -scale.threshold, 0, scale.threshold, scale.high])
        drawn.set_ticklabels([f"{tick:.2g}" for tick in (scale.low, -scale.threshold, 0, scale.threshold, scale.high)])
    drawn.minorticks_off()
    sheet.text(
        MARGIN + SIDE, top + 0.065, "$L_{ij}$   white: 0", va="center", ha="right", size=12, color=QUIET, math=True
    )


def _draw_heading(sheet: _Sheet, left: float, bottom: float, width: float, name: str, note: str) -> None:
    sheet.text(left, bottom - 0.06, name, va="bottom", size=14, bold=True)
    sheet.text(left + width, bottom - 0.06, note, va="bottom", ha="right", size=11, color=QUIET)


def _draw_plans(sheet: _Sheet, mask: MaskView, top: float) -> None:
    left, top = MARGIN + SIDE + GAP, top + HEAD
    side = SIDE if len(mask.plans) == 1 else (SIDE - GUTTER) / 2
    step = SIDE - side
    for place, plan in enumerate(mask.plans[:4]):
        across, down = left + step * (place % 2), top + step * (place // 2)
        draw_plan(sheet.axes(across, down, side, side), plan.name, mask, side)
        _draw_heading(sheet, across, down, side, plan.name, plan.cost)
    entries = legend_entries(tuple(plan.name for plan in mask.plans), mask)
    match len(mask.plans):
        case 2:
            spot, columns = (left, top + step, SIDE, side), 2
        case 3:
            spot, columns = (left + step, top + step, side, side), 1
        case _:
            spot, columns = (left, top + SIDE + 0.12, SIDE, _row_height(mask) - HEAD - SIDE - 0.2), 2
    draw_legend(sheet.axes(*spot), entries, spot[2], spot[3], columns)
