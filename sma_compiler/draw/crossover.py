"""Draws predicted times of plans over the length, and the lengths from which on another plan is the fastest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sma_compiler.draw.colours import FULL_TILE, INK, QUIET, RULE, STATE
from sma_compiler.draw.render import figure_for

COLOURS = (FULL_TILE, STATE, "#5a8f3c", "#8a5aa8", "#b08b1e", "#3b9a9c", "#9c4d6b", "#6b6f76")
"""One for each plan, in the order of the first point."""


@dataclass(frozen=True)
class Curves:
    """seconds: by plan, at `lengths`. wins: from which length on which plan is the fastest. title: of the picture."""

    title: str
    lengths: tuple[int, ...]
    seconds: Mapping[str, tuple[float, ...]]
    wins: tuple[tuple[int, str], ...]


def save_curves(curves: Curves, path: Path) -> None:
    """Write the picture as PNG or SVG, by the ending of the name.

    Raises UnknownPictureFormat, PlottingMissing, OSError.
    """
    with figure_for(path, (8.0, 4.8), constrained=True) as figure:
        axes = figure.add_subplot()
        axes.set_title(curves.title, color=INK, fontsize=10, loc="left")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        for number, (name, seconds) in enumerate(curves.seconds.items()):
            axes.plot(curves.lengths, [1e3 * x for x in seconds], label=name, color=COLOURS[number % len(COLOURS)])
        for time, name in curves.wins[1:]:
            axes.axvline(time, color=QUIET, linestyle=":", linewidth=1)
            axes.annotate(
                f"T = {time}: {name}",
                (time, 0.02),
                xycoords=("data", "axes fraction"),
                xytext=(3, 0),
                textcoords="offset points",
                rotation=90,
                color=QUIET,
                fontsize=8,
                va="bottom",
            )
        axes.set_xlabel("T, positions", color=INK)
        axes.set_ylabel("predicted forward pass, ms", color=INK)
        axes.grid(color=RULE, linewidth=0.6)
        axes.legend(frameon=False, fontsize=9)
