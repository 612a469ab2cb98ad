"""Which tiles of the T x T square a plan computes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SKIPPED, EMPTY, PARTIAL, FULL = 0, 1, 2, 3
"""A tile outside the band that a plan visits; visited with no live pair, with some, with all."""


def holds(pairs: NDArray[np.bool_], tiles: int) -> NDArray[np.bool_]:
    """Whether each of `tiles` x `tiles` tiles holds any of the pairs [T, T].

    T >= tiles; where it is no multiple, tiles differ by one position in size.
    """
    starts = np.arange(tiles) * pairs.shape[0] // tiles
    found: NDArray[np.bool_] = np.logical_or.reduceat(np.logical_or.reduceat(pairs, starts, 0), starts, 1)
    return found


def classify(live: NDArray[np.bool_], visited: NDArray[np.bool_], tiles: int) -> NDArray[np.int8]:
    """SKIPPED, EMPTY, PARTIAL or FULL for each tile.

    live: the pairs [T, T] that the mask leaves; visited: those within its band, the only ones known before any value.
    """
    some, every = holds(live, tiles), ~holds(~live, tiles)
    seen = holds(visited, tiles)
    return np.where(every, FULL, np.where(some, PARTIAL, np.where(seen, EMPTY, SKIPPED))).astype(np.int8)


def within_band(length: int, low: int | None, high: int | None) -> NDArray[np.bool_]:
    """The pairs [T, T] with low <= i - j <= high; None leaves that side open."""
    lag = np.arange(length)[:, None] - np.arange(length)[None, :]
    below = np.full_like(lag, True, dtype=bool) if high is None else lag <= high
    above = np.full_like(lag, True, dtype=bool) if low is None else lag >= low
    return below & above
