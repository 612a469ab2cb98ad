"""How long a call takes: by the clock on a CPU, by events on a GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import torch

Run = Callable[[], object]

ROUNDS = 5
"""Calls that a median is of."""
SLOW = 3.0
"""Times the fastest first call: what takes longer is called once more and no further."""
ENOUGH = 0.5
"""Seconds in which a median is taken of as many calls as fit, at least `ROUNDS`."""
MOST = 50
WAKING = 0.05
"""Seconds that a GPU is kept busy before calls are timed."""
TURNS = 3
"""Medians that a call on a GPU has; the least counts."""
SHORT, MORE = 5e-4, 9
"""Seconds of a call that waits for the host as much as for the GPU, and how many more it has."""
LONG = 0.02
"""Seconds of a call on a GPU that is made but twice, after it was made once for nothing."""


class Timer(Protocol):
    """Median seconds of calls, by name. A call that raises has no time, but its error."""

    def __call__(self, runs: Mapping[str, Run]) -> Mapping[str, float | Exception]:
        """Time them all."""
        ...


def by_clock(runs: Mapping[str, Run]) -> dict[str, float | Exception]:
    """On a CPU. The calls take turns, so that a machine that is busy for a while slows them alike."""
    found: dict[str, float | Exception] = {}
    times: dict[str, list[float]] = {}
    for name, run in runs.items():
        try:
            _seconds(run)
            times[name] = [_seconds(run)]
        except Exception as error:
            found[name] = error
    if times:
        best = min(first for (first,) in times.values())
        rounds = min(max(ROUNDS, round(ENOUGH / max(best, 1e-9))), MOST)
        close = [name for name, (first,) in times.items() if first <= SLOW * best]
        for _ in range(rounds - 1):
            for name in close:
                times[name].append(_seconds(runs[name]))
    return found | {name: statistics.median(own) for name, own in times.items()}


def by_events(runs: Mapping[str, Run], *, warmup: int = 25, repeat: int = 100) -> dict[str, float | Exception]:
    """On a GPU, its cache flushed between calls; each for so many milliseconds.

    The least of `TURNS` medians counts, which the calls take in turns: what is short waits for a host that others use.
    """
    from triton.testing import do_bench

    found: dict[str, float | Exception] = {}
    _wake()
    for name, run in runs.items():
        try:
            _on_device(run)
            found[name] = min(_on_device(run), _on_device(run))
        except Exception as error:
            found[name] = error
    short = [name for name, once in found.items() if isinstance(once, float) and once <= LONG]
    medians: dict[str, list[float]] = {name: [] for name in short}
    often = [name for name in short if isinstance(once := found[name], float) and once <= SHORT]
    for name in [*TURNS * short, *MORE * often]:
        median = do_bench(runs[name], warmup=warmup / TURNS, rep=repeat / TURNS, return_mode="median")
        medians[name].append(float(median) / 1e3)
    return found | {name: min(own) for name, own in medians.items()}


def _wake() -> None:
    """Keep the GPU busy until its clocks are up."""
    x = torch.zeros(4096, 4096, dtype=torch.float16, device="cuda")
    start = time.perf_counter()
    while time.perf_counter() - start < WAKING:
        x @ x
        torch.cuda.synchronize()


def _on_device(run: Run) -> float:
    """Seconds of a call and of what it leaves the GPU to do."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def timer_of(device: torch.device) -> Timer:
    """The timer for a device."""
    return by_events if device.type == "cuda" else by_clock


def _seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
