"""Decoding with a cache by Triton kernels, in Triton's interpreter: steps in place, several new positions, prefills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from runtime.interpret_cached import MUTANTS, OPS, SIZES

import sma_compiler as sma
from sma_compiler.runtime.state_layout import in_order

ROOT = Path(__file__).parents[2]


@cache
def errors(name: str) -> dict[str, float]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "runtime.interpret_cached", name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", OPS)
def test_agrees_with_the_reference(name: str) -> None:
    pytest.importorskip("triton")
    for test, found in errors(name).items():
        assert test.endswith("mutants") or found < 1e-6, test


@pytest.mark.parametrize("name", MUTANTS)
def test_mistakes_are_found(name: str) -> None:
    pytest.importorskip("triton")
    assert errors(name)[f"{name} mutants"] < -1e-4


def test_a_ring_is_put_in_order() -> None:
    op = sma.library("attention")
    q, k, v = (torch.randn(2, 6, SIZES["H"], SIZES[axis]) for axis in "KKV")
    _, state = op(q, k, v, return_state=True)
    for turn in range(6):
        turned = {name: x.roll(turn, 1) if ".cache." in name else x for name, x in state.items()}
        for name, x in in_order(turned).items():
            assert torch.equal(x, state[name])
        y, _ = op.step(q[:, 0], k[:, 0], v[:, 0], state=sma.State(state.spec_hash, turned))
        expected, _ = op.step(q[:, 0], k[:, 0], v[:, 0], state=state)
        assert torch.equal(y, expected)


@pytest.mark.gpu
def test_steps_are_captured_in_a_graph() -> None:
    op = sma.library("attention")
    tensors = [torch.randn(2, 9, heads, 64, dtype=torch.bfloat16, device="cuda") for heads in (8, 2, 2)]
    expected = op.reference(*tensors)
    state = op.empty_state(2, capacity=9, H=8, K=64, V=64, dtype=torch.bfloat16, device="cuda")
    given = [x[:, 0].clone() for x in tensors]
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        op.step(*given, state=state.clone(), inplace=True, backend="triton")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, _ = op.step(*given, state=state, inplace=True, backend="triton")
    for time in range(9):
        for held, x in zip(given, tensors, strict=True):
            held.copy_(x[:, time])
        graph.replay()
        error = (y.double() - expected[:, time]).norm() / expected[:, time].norm()
        assert float(error) < 1e-2
