"""The tunable numbers of chunked kernels, chosen from sizes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

MULTIPROCESSORS = 132
"""Of an H100: how many programs run at once, times those that fit on one."""


@dataclass(frozen=True)
class Config:
    """chunk: positions of a chunk. value: value channels of a program.

    programs: how many should run at once, where sequences are cut into parts for it; 0: they are not.
    """

    chunk: int
    value: int
    warps: int
    stages: int
    programs: int


def power_of_two(n: int) -> int:
    """The next power of two."""
    return 1 << max(n - 1, 0).bit_length()


def forward(sizes: Mapping[str, int], dtype: str, target: str) -> Config:
    """The configuration of the fused forward kernel."""
    key = max(16, power_of_two(sizes["key"]))
    value = max(16, power_of_two(sizes["value"]))
    if dtype == "float32":
        found = Config(chunk=16, value=min(16, value), warps=4, stages=1, programs=0)
    elif not target.startswith("sm_9"):
        found = Config(chunk=64, value=min(32, value), warps=4, stages=1, programs=0)
    elif sizes["batch"] * sizes["head"] * -(-sizes["value"] // 64) < MULTIPROCESSORS and key <= 64:
        found = Config(chunk=64, value=min(32, value), warps=4, stages=3, programs=0)
    else:
        found = Config(chunk=64, value=min(64, value), warps=4, stages=2, programs=0)
    rows = sizes["batch"] * sizes["head"] * -(-sizes["value"] // found.value)
    if rows < MULTIPROCESSORS and sizes["time"] >= 256 * found.chunk:
        found = replace(found, programs=3 * MULTIPROCESSORS)
    return found
