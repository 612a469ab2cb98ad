"""What a picture shows, as plain data: `render.py` needs no compiler, `gather.py` no matplotlib."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sma_compiler.draw.blocks import Block


@dataclass(frozen=True)
class PlanView:
    """A legal plan: its name and its cost as a formula in B, T, H, K, V (or any short text)."""

    name: str
    cost: str


@dataclass(frozen=True)
class MaskView:
    """One mask of an op.

    values: [T, T] fp64, one head and channel. live: [T, T], where no condition makes it 0. visited: [T, T], the band
    that holds all of `live` whatever the inputs are; tiles outside it are never computed. near: [T, T], the part of
    the band that no state stands for. lower, upper: the inferred ranks as text. causal: nothing above the diagonal.
    """

    title: str
    values: NDArray[np.float64]
    live: NDArray[np.bool_]
    visited: NDArray[np.bool_]
    near: NDArray[np.bool_]
    blocks: tuple[Block, ...]
    lower: str
    upper: str
    causal: bool
    facts: str
    plans: tuple[PlanView, ...]


@dataclass(frozen=True)
class Picture:
    """An op's name, its equation (lines of the spec), a note on the sample, and one row of panels a mask."""

    name: str
    equation: tuple[str, ...]
    note: str
    masks: tuple[MaskView, ...]
