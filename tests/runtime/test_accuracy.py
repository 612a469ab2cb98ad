"""The accuracy contract where rounding shows most: rows of one pair, and gradients that sum over positions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from runtime.interpret_accuracy import CASES, DIVIDED

ROOT = Path(__file__).parents[2]


@cache
def failures() -> dict[str, list[str]]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "runtime.interpret_accuracy"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case)))
def test_keeps_the_contract(case: tuple[str, str, int, int]) -> None:
    pytest.importorskip("triton")
    assert failures()[" ".join(map(str, case))] == []


@pytest.mark.parametrize("case", DIVIDED, ids=" ".join)
def test_what_was_divided_by_large_sums_keeps_the_range_of_fp16(case: tuple[str, str]) -> None:
    pytest.importorskip("triton")
    assert failures()[" ".join(case)] == []
    assert failures()[" ".join(("mutant", *case))] != []
