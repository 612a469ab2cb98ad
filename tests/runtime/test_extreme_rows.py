"""Quadratic kernels on a GPU against the fp64 reference where rows are long and where scores are large."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

import sma_compiler as sma
from sma_compiler.reference import Argument
from sma_compiler.runtime.op import CompiledOp
from sma_compiler.verify.cases import Run, make_case
from sma_compiler.verify.check import check_plan, compare_backends
from sma_compiler.verify.samples import samples

LONG = 131072
SEEDS = 8
LARGE = 60.0
"""The size of the entries of q and k that makes some of their scores exceed 1e4."""


def run_of(op: CompiledOp, backend: str) -> Run:
    """How a backend runs the quadratic plan."""

    def run(plan: str, arguments: Mapping[str, Argument], /) -> Tensor | tuple[Tensor, Tensor]:
        return op(**arguments, plan=plan, backend=backend, return_lse=True)

    return run


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["attention", "alibi", "sliding_window", "document", "forgetting"])
def test_long_rows(name: str, dtype: torch.dtype) -> None:
    op = sma.library(name)
    sizes = {"batch": 1, "time": LONG, "head": 1, "key": 64, "value": 64}
    case = make_case(op.ir, sizes, dtype, device="cuda")
    report = check_plan([case], run_of(op, "triton"), "quadratic", "triton")
    assert report.ok, "\n".join(map(str, report.failures))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["attention", "alibi", "forgetting"])
def test_large_scores(name: str, dtype: torch.dtype) -> None:
    op = sma.library(name)
    sizes = {"batch": 1, "time": 300, "head": 2, "key": 64, "value": 64}
    cases = []
    for seed in range(SEEDS):
        given = dict(samples(op.ir, sizes, dtype, seed, "cuda"))
        for operand in "qk":
            made = torch.randn(1, 300, 2, 64, generator=torch.Generator().manual_seed(seed + ord(operand)))
            given[operand] = (LARGE * made).to(dtype).cuda()
        cases.append(make_case(op.ir, sizes, dtype, seed, "cuda", arguments=given))
    scores = torch.einsum("bthk,bshk->bhts", given["q"].double(), given["k"].double()) / 8
    assert scores.abs().max() > 1e4
    report = compare_backends(cases, run_of(op, "triton"), run_of(op, "torch"), "quadratic")
    assert report.ok, "\n".join(map(str, report.failures))
