"""Gradients of quadratic kernels where nearly all rows have one pair alone, in Triton's interpreter, and mutants."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@cache
def ratios() -> dict[str, dict[str, float]]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "kernel.interpret_sharp"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, float]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", ["attention", "alibi", "forgetting"])
def test_large_scores_keep_to_the_contract(name: str) -> None:
    assert max(ratios()[name].values()) <= 1, ratios()[name]


def test_rows_of_one_pair_have_no_gradients_though_products_round_apart() -> None:
    assert max(ratios()["alone"].values()) < 1e-30, ratios()["alone"]


def test_what_rounds_apart_would_be_seen() -> None:
    assert ratios()["rounding errors"]["d k"] > 1e-6


@pytest.mark.parametrize("name", ["rounded delta", "rounded logarithms", "whole tiles"])
def test_mutants_break_the_contract(name: str) -> None:
    assert max(ratios()[name].values()) > 1, ratios()[name]
