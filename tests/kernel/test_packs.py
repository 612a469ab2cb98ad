"""Packs of sequences in Triton's interpreter: each gives what it gives alone, forward, backward and in its states."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from kernel.interpret_packs import CASES

ROOT = Path(__file__).parents[2]


@cache
def ran() -> subprocess.CompletedProcess[str]:
    """The script in the interpreter, run once."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "kernel.interpret_packs"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def errors() -> dict[str, list[float]]:
    done = ran()
    assert done.returncode == 0, done.stderr
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("case", [f"{name} {plan}" for name, plans in CASES.items() for plan in plans])
def test_a_pack_is_its_sequences(case: str) -> None:
    pytest.importorskip("triton")
    forward, backward = errors()[case]
    assert forward < 5e-7
    assert backward < 5e-7
