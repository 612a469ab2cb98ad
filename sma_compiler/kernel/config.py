"""The tunable numbers of chunked kernels, chosen from sizes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MULTIPROCESSORS = 132
"""Of an H100: how many programs run at once, times those that fit on one."""


@dataclass(frozen=True)
class Config:
    """chunk: positions of a chunk. value: value channels of a program. splits: parts of a sequence that run at once."""

    chunk: int
    value: int
    warps: int
    stages: int
    splits: int


def power_of_two(n: int) -> int:
    """The next power of two."""
    return 1 << max(n - 1, 0).bit_length()


def forward(sizes: Mapping[str, int], dtype: str, target: str) -> Config:
    """The configuration of the fused forward kernel."""
    key = max(16, power_of_two(sizes["key"]))
    if dtype == "float32":
        value = min(32, max(16, power_of_two(sizes["value"])))
        return Config(chunk=32 if key <= 128 else 16, value=value, warps=4, stages=1, splits=1)
    value = min(64 if key <= 128 else 32, max(16, power_of_two(sizes["value"])))
    if not target.startswith("sm_9"):
        return Config(chunk=64, value=min(value, 32), warps=4, stages=1, splits=1)
    return Config(chunk=64, value=value, warps=4, stages=3 if key * value <= 128 * 64 else 2, splits=1)
