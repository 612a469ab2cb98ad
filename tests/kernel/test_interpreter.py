"""The arithmetic of emitted kernels, in Triton's interpreter, against the fp64 reference."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from kernel.specs import LIBRARY, SPECS

ROOT = Path(__file__).parents[2]
LIMITS = {0: 5e-7, 1: 5e-7, 2: 6e-4, 3: 5e-7}
"""Relative errors by shape: fp32 sums of a few hundred products, and fp16 operands and results."""


@cache
def errors() -> dict[str, list[float]]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "kernel.interpret"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", [*LIBRARY, *SPECS])
def test_matches_the_reference(name: str) -> None:
    pytest.importorskip("triton")
    found = {int(key.split()[1]): pair for key, pair in errors().items() if key.split()[0] == name}
    assert {0, 2, 3} <= set(found)
    for shape, (whole, joined) in found.items():
        assert whole < LIMITS[shape]
        assert joined < LIMITS[shape]
