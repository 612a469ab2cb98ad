"""Colours and type of the pictures, and the colour scale that suits a mask's values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.colors import Colormap, Normalize

PAPER = "#ffffff"
INK = "#1b2430"
QUIET = "#66707c"
RULE = "#d5dae0"
FULL_TILE = "#35618f"
PARTIAL_TILE = "#a9c4de"
EMPTY_TILE = "#e8edf3"
STATE = "#c8551b"
CARRIED = "#fbe9de"

SEQUENTIAL = ("#e3f1ef", "#b5dcd8", "#7cc1c4", "#479fb4", "#2d7a9f", "#2a5587", "#252f63")
"""From faint to strong; the lightness falls evenly, and its first colour can be told from the paper."""

DIVERGING = ("#7a2c07", "#bf5a1f", "#e59a62", "#f8d9bf", "#ffffff", "#c9dfec", "#7fb0d2", "#3479ab", "#123f68")
"""Negative is brown, positive is blue, 0 is the paper."""

DECADES = 4
"""The most powers of ten a logarithmic scale shows; smaller values take the faintest colour."""


@dataclass(frozen=True)
class Scale:
    """How values become colours.

    kind: "constant" (one value besides 0), "linear", "log", "signed" or "signed_log". low and high are the ends; on
    signed scales low = -high, and `threshold` bounds the linear part of "signed_log".
    """

    kind: str
    low: float
    high: float
    threshold: float = 0.0


def choose_scale(values: NDArray[np.float64]) -> Scale:
    """The scale for these values: signed about 0 where any is negative, logarithmic where most are a hundredth of the
    largest or less."""
    live = values[values != 0]
    if not live.size:
        return Scale("constant", 1.0, 1.0)
    low, high = float(live.min()), float(live.max())
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        return Scale("constant", low, high)
    size = np.abs(live)
    top = float(size.max())
    steep = bool(np.quantile(size, 0.25) < top * 1e-2)
    if low < 0:
        return Scale("signed_log" if steep else "signed", -top, top, top * 10.0 ** (1 - DECADES))
    if steep:
        return Scale("log", max(low, high * 10.0**-DECADES), high)
    return Scale("linear", min(low, 0.0) if low > 0.3 * high else 0.0, high)


def norm_and_map(scale: Scale) -> tuple[Normalize, Colormap]:
    """Matplotlib's norm and colour map for a scale; masked entries (zeros) are paper."""
    from matplotlib import colors

    signed = scale.kind.startswith("signed") or (scale.kind == "constant" and scale.high < 0)
    palette: Colormap = colors.LinearSegmentedColormap.from_list("sma", DIVERGING if signed else SEQUENTIAL, N=512)
    palette = palette.with_extremes(bad=PAPER, under=palette(0.0))
    match scale.kind:
        case "constant":
            reach = abs(scale.high) / 0.7
            return colors.Normalize(-reach if signed else 0.0, reach), palette
        case "log":
            return colors.LogNorm(scale.low, scale.high), palette
        case "signed_log":
            return colors.SymLogNorm(scale.threshold, vmin=scale.low, vmax=scale.high, base=10), palette
    return colors.Normalize(scale.low, scale.high), palette


TYPE: Any = {
    "font.family": "STIXGeneral",
    "mathtext.fontset": "stix",
    "font.size": 13,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.8,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "svg.fonttype": "path",
    "svg.hashsalt": "sma",
    "hatch.linewidth": 0.6,
}
"""Matplotlib settings of every picture: fonts that come with matplotlib, and the same SVG twice for the same mask."""
