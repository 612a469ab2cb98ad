"""Every legal plan of every library op keeps the accuracy contract, on outputs and gradients, and leaks nothing."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

import sma_compiler as sma
from sma_compiler.reference import Argument
from sma_compiler.verify.cases import make_case
from sma_compiler.verify.check import FOURIER, check_plan
from sma_compiler.verify.errors import SEEDS
from sma_compiler.verify.poison import leaks
from sma_compiler.verify.samples import default_sizes, samples

SIZES = {"batch": 2, "time": 70, "head": 2, "key": 8, "value": 8}
"""One whole block of 64 positions and a ragged one."""
SOFTMAX = ("alibi", "attention", "document", "forgetting", "prefix_lm", "rwkv4", "sliding_window")
DTYPES = [
    pytest.param(torch.float32, id="fp32"),
    pytest.param(torch.bfloat16, id="bf16", marks=pytest.mark.slow),
    pytest.param(torch.float16, id="fp16", marks=pytest.mark.slow),
]


class Runner:
    """A library op on the torch backend; with the log-sum-exp where it has one."""

    def __init__(self, name: str) -> None:
        self.op = sma.library(name)
        self.lse = name in SOFTMAX

    def __call__(self, plan: str, arguments: Mapping[str, Argument], /) -> Tensor | tuple[Tensor, Tensor]:
        positional = [arguments[decl.name] for decl in self.op.params]
        found: Tensor | tuple[Tensor, Tensor] = self.op(*positional, plan=plan, backend="torch", return_lse=self.lse)
        return found

    def output(self, plan: str, arguments: Mapping[str, Argument], /) -> Tensor:
        found = self(plan, arguments)
        return found[0] if isinstance(found, tuple) else found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", sma.library())
def test_plans_keep_the_contract(name: str, dtype: torch.dtype) -> None:
    run = Runner(name)
    sizes = default_sizes(run.op.ir, **SIZES)
    cases = [make_case(run.op.ir, sizes, dtype, seed) for seed in range(SEEDS)]
    for plan in run.op.plans:
        report = check_plan(cases, run, plan.name)
        assert report.ok, "\n".join(map(str, report.failures))
        assert ("lse" in {check.what for check in report.checks}) == run.lse


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["alibi", "document"])
def test_gradients_that_cancel_keep_the_contract(name: str, dtype: torch.dtype) -> None:
    """A last block of one position: in rows of few columns, what a softmax gains by its sum it loses by its weights."""
    run = Runner(name)
    sizes = default_sizes(run.op.ir, **(SIZES | {"time": 129}))
    report = check_plan([make_case(run.op.ir, sizes, dtype, seed) for seed in range(SEEDS)], run, "quadratic")
    assert report.worst is not None
    assert report.worst.ratio < 0.6


@pytest.mark.parametrize("name", sma.library())
def test_plans_leak_nothing(name: str) -> None:
    run = Runner(name)
    arguments = samples(run.op.ir, default_sizes(run.op.ir, **SIZES), torch.float32, seed=1)
    for plan in run.op.plans:
        if plan.name not in FOURIER:
            for position in (3, 63, 64, 69):
                assert leaks(run.op.ir, arguments, run.output, plan.name, position) == []
