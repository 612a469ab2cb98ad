"""Chosen configurations: what they emit is right, and compiles in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tune.interpret_choices import CHOSEN

from sma_compiler.interface import library
from sma_compiler.kernel.choices import Choices
from sma_compiler.plan.devices import H100
from sma_compiler.runtime.self_check import SLACK, TIMES
from sma_compiler.tune.compile import Work, compile_work, work_of
from sma_compiler.tune.report import Candidate
from sma_compiler.tune.setting import situation
from sma_compiler.tune.usage import known

ROOT = Path(__file__).parents[2]
SIZES = {"batch": 1, "time": 128, "head": 2, "key": 16, "value": 16, "group": 2}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SMA_CACHE_DIR", str(tmp_path / "cache"))


def test_chosen_configurations_compute_the_same() -> None:
    pytest.importorskip("triton")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tune.interpret_choices"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ratios = json.loads(done.stdout)
    assert set(ratios) == {pick for _, pick in CHOSEN}
    assert all(ratio < SLACK for ratio in ratios.values()), ratios


def work(pick: str, dtype: str = "float32") -> Work:
    sizes = tuple(sorted(SIZES.items()))
    return Work(library("linear_attention").program.handle, pick, sizes, dtype, "sm_80")


def test_files_compile_in_processes_of_their_own_and_failures_are_told() -> None:
    pytest.importorskip("triton")
    good = Candidate("triton", "recurrent")
    bad = Candidate("triton", "recurrent", Choices.of({"recurrent": {"warps": 2}}))
    refused = compile_work({good: [work("recurrent")], bad: [work("recurrent", "float8")]}, workers=2)
    assert set(refused) == {bad}, refused[good]
    assert refused[bad].startswith("does not compile: no dtype 'float8'")
    needed = known(work("recurrent").text, "sm_80")
    assert needed["linear_attention_forward_kernel"].registers > 0


def test_a_process_that_dies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    one = Candidate("triton", "recurrent")
    assert compile_work({one: [work("recurrent")]}, workers=1) == {
        one: "does not compile: the process died with status 1"
    }


def test_checks_compile_at_the_sizes_that_they_have() -> None:
    program = library("simple_gla").program
    shape = {"B": 4, "T": 1024, "H": 8, "K": 64, "V": 64}
    at = situation(program, shape, "bfloat16", H100, "sm_90", training=True)
    for one in (at, situation(library("mamba2").program, {**shape, "G": 1}, "bfloat16", H100, "sm_90", training=True)):
        main, *checks = work_of(one, Candidate("triton", "chunked"))
        assert dict(main.sizes) == one.sizes
        assert [dict(check.sizes)["time"] for check in checks] == list(TIMES)
        for check in checks:
            sizes = dict(check.sizes)
            assert sizes.get("group", sizes["head"]) in (1, sizes["head"])
