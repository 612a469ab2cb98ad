"""What is compiled ahead is what a launch of the same sizes asks for: it finds Triton's cache warm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_a_launch_compiles_nothing_that_was_compiled_ahead(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "target.launched"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    ahead, later = json.loads(done.stdout)
    assert ahead >= 6
    assert later == 0
