"""The peak memory of one forward and backward, measured in a process of its own: run by `suite.py`."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import torch

from sma_compiler.bench.cases import CASES, SSD_SIZES, leaves

WARM_UP = 256
"""Positions of the call that loads everything before the baseline is read."""

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_mib() -> float:
    """The largest resident set of this process since `forget_peak`, in MiB; since its start where there is no /proc."""
    if _STATUS.exists():
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 2**10
    # macOS counts bytes; on Linux ru_maxrss would start at what the parent process had
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def forget_peak() -> None:
    """Sets the peak back to what is resident now, where the kernel can (proc(5), clear_refs)."""
    if _CLEAR.exists():
        _CLEAR.write_text("5")


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
    forget_peak()
    before = peak_mib()
    run(name, length)
    print(json.dumps({"case": name, "T": length, "mib": peak_mib() - before}))


if __name__ == "__main__":
    main()
