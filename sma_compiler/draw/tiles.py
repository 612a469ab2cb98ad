"""Which tiles of the T x T square a plan computes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SKIPPED, PARTIAL, FULL = 0, 1, 2


def classify(live: NDArray[np.bool_], tiles: int) -> NDArray[np.int8]:
    """SKIPPED, PARTIAL or FULL for each of `tiles` x `tiles` tiles, by which pairs of [T, T] `live` holds.

    T >= tiles; where it is no multiple, tiles differ by one position in size.
    """
    starts = np.arange(tiles) * live.shape[0] // tiles
    some = np.logical_or.reduceat(np.logical_or.reduceat(live, starts, 0), starts, 1)
    every = np.logical_and.reduceat(np.logical_and.reduceat(live, starts, 0), starts, 1)
    return some.astype(np.int8) + every.astype(np.int8)


def within_band(length: int, low: int | None, high: int | None) -> NDArray[np.bool_]:
    """The pairs [T, T] with low <= i - j <= high; None leaves that side open."""
    lag = np.arange(length)[:, None] - np.arange(length)[None, :]
    below = np.full_like(lag, True, dtype=bool) if high is None else lag <= high
    above = np.full_like(lag, True, dtype=bool) if low is None else lag >= low
    return below & above
