"""Medians of times measured in one run, the candidates taking turns so that a busy machine slows them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def median_times(
    candidates: Mapping[str, Callable[[], object]], repeats: int, tick: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """The median seconds of each candidate over `repeats` rounds, after one round that is not counted.

    tick: called after every call, warm-up included: (repeats + 1) * len(candidates) times.
    """
    found: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(repeats + 1):
        for name, run in candidates.items():
            seconds = _timed(run)
            tick()
            if turn:
                found[name].append(seconds)
    return {name: statistics.median(times) for name, times in found.items()}


def _timed(run: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
