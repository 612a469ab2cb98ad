"""Chosen configurations: what they emit is right, and compiles in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tune.interpret_choices import CHOSEN

from sma_compiler.interface import library
from sma_compiler.kernel.choices import Choices
from sma_compiler.plan.devices import H100
from sma_compiler.runtime.drawn import draw
from sma_compiler.runtime.self_check import SLACK, TIMES, small_sizes
from sma_compiler.runtime.usage import known
from sma_compiler.target.arguments import example
from sma_compiler.tune.compile import Work, compile_work, work_of
from sma_compiler.tune.report import Candidate
from sma_compiler.tune.setting import from_shape, situation

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


def work(pick: str, dtype: str = "float32", share: tuple[int, int] = (0, 1)) -> Work:
    sizes = tuple(sorted(SIZES.items()))
    return Work(library("linear_attention").program.handle, pick, sizes, dtype, "sm_80", share=share)


def test_files_compile_in_processes_of_their_own_and_failures_are_told() -> None:
    pytest.importorskip("triton")
    good = Candidate("triton", "recurrent")
    bad = Candidate("triton", "recurrent", Choices.of({"recurrent": {"warps": 2}}))
    shares = [work("recurrent", share=(number, 2)) for number in range(2)]
    refused = compile_work({good: shares, bad: [work("recurrent", "float8")]}, workers=2)
    assert set(refused) == {bad}, refused[good]
    assert refused[bad].startswith("does not compile: no dtype 'float8'")
    needed = known(work("recurrent").text, "sm_80")
    assert {"linear_attention_forward_kernel", "linear_attention_step_kernel"} <= needed.keys()
    assert all(need.registers > 0 for need in needed.values())


def test_a_process_that_dies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    one = Candidate("triton", "recurrent")
    assert compile_work({one: [work("recurrent")]}, workers=1) == {
        one: "does not compile: the process died with status 1"
    }


@pytest.mark.parametrize(
    ("name", "heads"), [("simple_gla", (8, 8, 8)), ("mamba2", (1, 1, 8)), ("attention", (8, 2, 2))]
)
def test_what_is_compiled_ahead_has_the_shapes_of_calls(name: str, heads: tuple[int, ...]) -> None:
    program = library(name).program
    shape = {"B": 1, "T": 64, "H": 8, "K": 4, "V": 4} | ({"G": min(heads)} if min(heads) < 8 else {})
    at = situation(program, shape, "float32", H100, "sm_90", training=True)
    setting = from_shape(program, shape, torch.float32, torch.device("cpu"), training=True, seed=0)
    assert (at.sizes, at.heads) == (setting.situation.sizes, setting.situation.heads)
    plan = "quadratic" if name == "attention" else "chunked"
    main, *checks = (work for work in work_of(at, Candidate("triton", plan)) if work.share[0] == 0)
    drawn = [setting.arguments.tensors]
    for check, time in zip(checks, TIMES, strict=True):
        sizes = small_sizes(program, at.sizes, time)
        assert dict(check.sizes)["time"] == time
        drawn.append(
            {
                name: x
                for name, x in draw(program, sizes, torch.float32, 0, torch.device("cpu")).items()
                if isinstance(x, torch.Tensor)
            }
        )
    for work, tensors in zip((main, *checks), drawn, strict=True):
        compiled = example(program.op, dict(work.sizes), "float32", "meta")
        assert {name: x.shape for name, x in tensors.items()} == {name: x.shape for name, x in compiled.items()}
    assert tuple(setting.arguments.tensors[name].shape[2] for name in "qkv") == heads
