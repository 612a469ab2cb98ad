"""The kernels of gradients, one by one, in Triton's interpreter: against autograd of the fp64 reference."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from kernel.interpret_walks import CASES

ROOT = Path(__file__).parents[2]
LIMIT = 6e-7
"""Relative errors of fp32 sums of a few hundred products."""


@cache
def errors() -> dict[str, dict[str, float]]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "kernel.interpret_walks"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, float]] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_gradients_match_autograd(case: tuple[str, ...]) -> None:
    pytest.importorskip("triton")
    found = errors()[" ".join(case)]
    assert {f"{name} {calls}" for name in "qkv" for calls in ("whole", "joined")} <= set(found)
    assert max(found.values()) < LIMIT, found
