"""Linear kernels on a GPU where much is asked of them: many positions, many elements, first calls."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sma_compiler as sma
from sma_compiler.reference import Argument
from sma_compiler.runtime.op import CompiledOp
from sma_compiler.verify.cases import Run, make_case
from sma_compiler.verify.check import compare_backends
from sma_compiler.verify.samples import samples

LENGTH = 8192
LONG = 32768
DRIFT = 1.5
"""How much larger the relative error of a gate's gradient may be at `LONG` positions than at 1024."""
SCALARS = ("linear_attention", "linear_attention_normalized", "retention", "lightning", "simple_gla", "mamba2")
CHANNELS = ("gla", "hgrn2", "rwkv6")
FIRST_CALL = """
import time, torch, sma_compiler as sma
torch.zeros(1, device="cuda")
q, k, v = torch.randn(3, 1, 256, 2, 64, dtype=torch.bfloat16, device="cuda")
start = time.perf_counter()
sma.library("retention")(q, k, v, torch.full((2,), 0.9, device="cuda"), backend="triton")
torch.cuda.synchronize()
print(time.perf_counter() - start)
"""

pytestmark = pytest.mark.gpu


def run_of(op: CompiledOp, backend: str) -> Run:
    """How a backend runs a plan."""

    def run(plan: str, arguments: Mapping[str, Argument], /) -> Tensor | tuple[Tensor, Tensor]:
        return op(**arguments, plan=plan, backend=backend)

    return run


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [*SCALARS, *CHANNELS])
def test_many_positions(name: str, dtype: torch.dtype) -> None:
    op = sma.library(name)
    sizes = {"batch": 1, "time": LENGTH, "head": 1, "key": 64, "value": 64}
    case = make_case(op.ir, sizes, dtype, device="cuda")
    report = compare_backends([case], run_of(op, "triton"), run_of(op, "torch"), "chunked")
    assert report.ok, "\n".join(map(str, report.failures))


def gate_error(op: CompiledOp, time: int, rate: float) -> float:
    """The relative error of a gate's gradient with log gates in (-rate, 0], over as many positions at any length."""
    sizes = {"batch": LONG // time, "time": time, "head": 2, "key": 64, "value": 64}
    given = dict(samples(op.ir, sizes, torch.bfloat16, 0, "cuda"))
    given["g"] = -rate * torch.rand(LONG // time, time, 2, device="cuda")
    cotangent = torch.randn(LONG // time, time, 2, 64, dtype=torch.bfloat16, device="cuda")
    found = []
    for dtype, backend in ((torch.bfloat16, "triton"), (torch.float64, "torch")):
        own = {name: x.to(dtype) if isinstance(x, Tensor) and name != "g" else x for name, x in given.items()}
        own["g"] = gate = given["g"].to(torch.promote_types(dtype, torch.float32)).requires_grad_()
        y = op(**own, plan="chunked", backend=backend)
        found += torch.autograd.grad(y, gate, cotangent.to(y.dtype))
    mine, exact = (x.double() for x in found)
    return float((mine - exact).norm() / exact.norm())


@pytest.mark.parametrize("rate", [0.02, 0.3, 3.0])
def test_gradients_of_gates_do_not_drift(rate: float) -> None:
    op = sma.library("simple_gla")
    assert gate_error(op, LONG, rate) <= DRIFT * gate_error(op, 1024, rate)


def test_offsets_of_more_than_32_bits() -> None:
    op = sma.library("simple_gla")
    q, k = torch.randn(2, 4, 32768, 1, 64, dtype=torch.bfloat16, device="cuda") / 8
    v = torch.randn(4, 32768, 256, 64, dtype=torch.bfloat16, device="cuda").requires_grad_()
    assert v.numel() == 2**31
    g = -torch.rand(4, 32768, 256, device="cuda")
    y = op(q, k, v, g, backend="triton")
    cotangent = torch.randn(1, 32768, 1, 64, dtype=torch.bfloat16, device="cuda")
    (dv,) = torch.autograd.grad(y, v, cotangent.expand(y.shape))
    last = v.detach()[-1:, :, -1:].clone().requires_grad_()
    alone = op(q[-1:], k[-1:], last, g[-1:, :, -1:], backend="triton")
    torch.testing.assert_close(y[-1:, :, -1:], alone, rtol=1e-2, atol=1e-2)
    (dlast,) = torch.autograd.grad(alone, last, cotangent)
    torch.testing.assert_close(dv[-1:, :, -1:], dlast, rtol=1e-2, atol=1e-2)


def test_seconds_of_a_first_call(tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        folders = {"SMA_CACHE_DIR": str(tmp_path / "sma"), "TRITON_CACHE_DIR": str(tmp_path / "triton")}
        environment = {**os.environ, **folders, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", FIRST_CALL]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        found.append(float(done.stdout))
    cold, warm = found
    assert cold < 8
    assert warm < 1
