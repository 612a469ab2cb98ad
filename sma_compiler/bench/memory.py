"""The peak memory of one forward and backward, measured in a process of its own: run by `suite.py`."""

from __future__ import annotations

import json
import resource
import sys

import torch

from sma_compiler.bench.cases import CASES, SSD_SIZES, leaves

WARM_UP = 256
"""Positions of the call that loads everything before the baseline is read."""


def peak_mib() -> float:
    """The largest resident set of this process so far, in MiB (Linux counts KiB, macOS bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def run(name: str, length: int) -> None:
    """One forward and backward of a case of `CASES` on fresh inputs, the inputs' memory included."""
    sizes = {**SSD_SIZES, "time": length}
    inputs = leaves(sizes)
    y = CASES[name](inputs)
    torch.autograd.grad(y, inputs, torch.ones_like(y))


def main() -> None:
    """`python -m sma_compiler.bench.memory CASE LENGTH` prints the MiB above the warm baseline as JSON."""
    name, length = sys.argv[1], int(sys.argv[2])
    run(name, WARM_UP)
    before = peak_mib()
    run(name, length)
    print(json.dumps({"case": name, "T": length, "mib": peak_mib() - before}))


if __name__ == "__main__":
    main()
