"""The arithmetic of emitted recurrent files, in Triton's interpreter: calls, states, packs and steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from kernel.interpret_recurrent_backward import OPS
from kernel.specs import LIBRARY, SPECS

ROOT = Path(__file__).parents[2]
LIMITS = {0: 5e-7, 1: 6e-4, 2: 5e-7, 3: 5e-7}
"""Relative errors by shape: fp32 sums of some hundred products, and fp16 operands and results."""


@cache
def ran(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A script in the interpreter, run once."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", f"kernel.{script}", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def run(script: str, *arguments: str) -> str:
    """What a script prints in the interpreter."""
    done = ran(script, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def errors() -> dict[str, list[float]]:
    found: dict[str, list[float]] = json.loads(run("interpret_recurrent"))
    return found


@pytest.mark.parametrize("name", [*LIBRARY, *SPECS])
def test_matches_the_reference(name: str) -> None:
    pytest.importorskip("triton")
    found = {int(key.split()[1]): values for key, values in errors().items() if key.split()[0] == name}
    assert {0, 1, 2} <= set(found)
    for shape, values in found.items():
        assert max(values) < LIMITS[shape]


def test_planted_mistakes_are_seen() -> None:
    pytest.importorskip("triton")
    found: dict[str, float] = json.loads(run("interpret_recurrent", "mutants"))
    assert all(error > 1e-3 for error in found.values()), found


@cache
def gradients() -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads(run("interpret_recurrent_backward"))
    return found


@pytest.mark.parametrize("name", OPS)
def test_gradients_match_autograd(name: str) -> None:
    pytest.importorskip("triton")
    found = [errors for key, errors in gradients().items() if key.split()[0] == name]
    assert len(found) == 2
    for errors in found:
        assert max(errors.values()) < 6e-6, errors
