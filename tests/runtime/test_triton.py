"""The Triton backend as a whole: in Triton's interpreter here, and on a GPU where there is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from runtime.interpret_ops import OPS, OTHERS, TESTS
from torch import Tensor

import sma_compiler as sma
from sma_compiler.backend_errors import TritonNeedsGPU
from sma_compiler.cli.verify import verify_op
from sma_compiler.verify.samples import default_sizes, samples

ROOT = Path(__file__).parents[2]
CASES = [(name, test.__name__) for name in OPS for test in TESTS if name == OPS[0] or test.__name__ != "self_checks"]
SOLVED = ("delta_net", "gated_delta_net", "kda", "rwkv7")
MORE = [(name, test.__name__) for name, tests in OTHERS.items() for test in tests]


@cache
def errors() -> dict[str, float]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "runtime.interpret_ops"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(("name", "test"), [*CASES, *MORE])
def test_in_the_interpreter(name: str, test: str) -> None:
    pytest.importorskip("triton")
    assert errors()[f"{name} {test}"] < 2e-5


def test_tensors_of_the_cpu_are_refused() -> None:
    op = sma.library("retention")
    given = samples(op.ir, default_sizes(op.ir, time=3))
    with pytest.raises(TritonNeedsGPU, match=r'move them to "cuda", or write backend="auto"'):
        op(**given, backend="triton")


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("hgrn2", ["k          1 - exp(g)"]),
        ("mamba1", ["v          dt * v", "log gate   dt * a", "result     attend0 + d * v"]),
        ("rwkv7", ["a          -a", "result     attend0 + attend2"]),
        ("rwkv6", ["result     attend0 + sum(q * k * u, key) * v"]),
    ],
)
def test_explain_says_what_is_fused(name: str, lines: list[str]) -> None:
    text = str(sma.library(name).explain())
    assert "computed inside chunked and recurrent kernels" in text
    for line in lines:
        assert f"\n    {line}\n" in text


def test_explain_says_what_runs_an_op_and_why() -> None:
    text = str(sma.library("retention").explain({"K": 64}))
    assert (
        "\n  triton       chunked, recurrent, quadratic in bf16, fp16 and fp32 on GPUs, with gradients chunked" in text
    )
    assert text.endswith("\n  on an H100   triton chunked")
    text = str(sma.library("retention").explain({"K": 2048}))
    assert "\n  on an H100   torch: key = 2048: a state of 256 channels fits on chip" in text
    text = str(sma.library("attention").explain({"K": 64, "T": 4096}))
    assert "\n  triton       quadratic in bf16, fp16 and fp32 on GPUs, with gradients quadratic" in text
    assert "\n  quadratic tiles of 64 x 64 a head: 2016 full, 64 partial, 2016 skipped; " in text
    assert text.endswith("\n  on an H100   triton quadratic")
    text = str(sma.library("hydra").explain({"K": 64}))
    assert "\n  triton       no kernel: kernels exist for one `attend`" in text


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [*OPS, *SOLVED])
def test_keeps_the_contract_on_a_gpu(name: str, dtype: torch.dtype) -> None:
    report = verify_op(sma.library(name), {"batch": 2, "time": 200, "head": 2, "key": 64, "value": 64}, dtype)
    assert {check.backend for check in report.checks} == {"torch", "triton"}
    assert report.ok, "\n".join(map(str, report.failures))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*OPS, *SOLVED])
def test_replayed_calls_on_a_gpu(name: str, dtype: torch.dtype) -> None:
    op = sma.library(name)
    first = {}
    for number in range(6):
        seed = number % 2
        given = samples(op.ir, default_sizes(op.ir, time=150), dtype, seed, "cuda")
        leaves = {key: x.requires_grad_() if isinstance(x, Tensor) else x for key, x in given.items()}
        with torch.no_grad():
            y = op(**leaves, backend="triton")
        own = [x for x in leaves.values() if isinstance(x, Tensor)]
        found = [y, *torch.autograd.grad(op(**leaves, backend="triton").float().square().sum(), own)]
        for x, again in zip(first.setdefault(seed, found), found, strict=True):
            assert torch.equal(x, again)


@pytest.mark.gpu
def test_calls_are_captured_in_cuda_graphs_and_run_on_any_stream() -> None:
    op = sma.library("mamba2")
    held = samples(op.ir, default_sizes(op.ir), torch.bfloat16, 0, "cuda")
    for _ in range(3):
        op(**held)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = op(**held)
    others = samples(op.ir, default_sizes(op.ir), torch.bfloat16, 1, "cuda")
    for name, x in others.items():
        if isinstance(x, Tensor):
            held[name].copy_(x)
    graph.replay()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        expected = op(**others)
    torch.cuda.synchronize()
    assert torch.equal(captured, expected)


@pytest.mark.gpu
def test_host_time_of_a_call() -> None:
    import time

    op = sma.library("mamba2")
    given = samples(op.ir, default_sizes(op.ir, batch=1, time=64), torch.bfloat16, 0, "cuda")
    best = float("inf")
    for _ in range(20):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(100):
            op(**given)
        best = min(best, (time.perf_counter() - start) / 100)
    assert best < 100e-6  # 60 on top of two launches
