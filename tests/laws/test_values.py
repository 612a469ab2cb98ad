"""Large scores, small differences, poison where an output must not look, NaN beside a sequence."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import sma_compiler as sma
from sma_compiler.verify.poison import leaks
from tests.laws import laws
from tests.laws.inputs import NAMES, WITH_PLAN, inputs

CLOSE = {torch.float64: 1e-9, torch.float32: 2e-6}
ROUNDED = {torch.float64: 1e-9, torch.float32: 1e4 * 2.0**-22}
"""Scores of 1e4 that depend on the row are added to a mask's logarithm in the dtype of the computation: 1e-3 is lost of
them in fp32."""


@pytest.mark.parametrize(("name", "plan"), WITH_PLAN)
def test_gradients_are_those_of_small_differences(name: str, plan: str) -> None:
    op = sma.library(name)
    given = inputs(op, time=4, batch=1, head=1, key=2, value=2, mode=1, lag=3, level=3)
    arguments, leaves = laws.with_leaves(given)

    def call(*tensors: Tensor) -> Tensor:
        return op(**{**arguments, **dict(zip(leaves, tensors, strict=True))}, plan=plan)

    assert torch.autograd.gradcheck(call, tuple(leaves.values()), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["attention", "alibi", "sliding_window", "document", "forgetting", "prefix_lm"])
def test_large_scores(name: str, dtype: torch.dtype) -> None:
    op = sma.library(name)
    given = inputs(op, dtype)
    given["k"] = 1e4 * given["k"].sign()
    given["q"] = given["q"].sign()
    if "w" in given:
        given["w"] = 5
    result, lse = op(**given, return_lse=True)
    exact, exact_lse = op.reference(**given, return_lse=True)
    close = ROUNDED if name in ("alibi", "forgetting") else CLOSE
    laws.assert_near(result, exact, name, close[dtype])
    laws.assert_near(lse, exact_lse, f"{name}, lse", min(1e-6, close[dtype]))
    arguments, leaves = laws.with_leaves(given)
    for which, grad in laws.gradients(op(**arguments), leaves, laws.cotangent_of(result)).items():
        assert bool(grad.isfinite().all()), which


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1e4, -1e4])
@pytest.mark.parametrize("plan", laws.plans_of(sma.library("rwkv4")))
def test_large_columns(plan: str, size: float, dtype: torch.dtype) -> None:
    op = sma.library("rwkv4")
    given = inputs(op, dtype, time=40)
    given["k"] = given["k"] + size
    laws.check_plan(op, given, plan, CLOSE[dtype])
    given["k"] = size * given["k"].sign() * torch.arange(40)[:, None] / 40
    laws.check_plan(op, given, plan, CLOSE[dtype])
    laws.check_cuts(op, given, [11, 30], [plan, "quadratic"], CLOSE[dtype])


@pytest.mark.parametrize("position", [0, 9, 21, 22])
@pytest.mark.parametrize(("name", "plan"), [pair for pair in WITH_PLAN if pair[1] != "toeplitz"])
def test_what_is_forbidden_changes_no_bit(name: str, plan: str, position: int) -> None:
    op = sma.library(name)
    given = inputs(op, torch.float32)
    assert leaks(op.ir, given, lambda chosen, found: op(**found, plan=chosen), plan, position) == []


@pytest.mark.parametrize("filler", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_what_other_sequences_hold_never_leaks(name: str, filler: float) -> None:
    """A pack beside whose sequences stands one of NaN: each other sequence is, bit by bit, as with zeros there."""
    op = sma.library(name)
    gates = set(op.program.roles.gates)
    given = inputs(op, torch.float32, batch=1, time=40)
    bounds = torch.tensor([0, 9, 9, 14, 40])
    bad, plain = dict(given), dict(given)
    for decl in laws.over_time(op):
        tensor = given[decl.name]
        if tensor.is_floating_point() and decl.name not in gates:
            place = decl.dims.index("time")
            where = torch.arange(9, 14)
            bad[decl.name] = tensor.index_fill(place, where, filler)
            plain[decl.name] = tensor.index_fill(place, where, 0.0)
    along = laws.time_of(op)
    kept = torch.tensor([*range(9), *range(14, 40)])
    for plan in laws.plans_of(op):
        found = op(**bad, cu_seqlens=bounds, plan=plan).index_select(along, kept)
        expected = op(**plain, cu_seqlens=bounds, plan=plan).index_select(along, kept)
        assert torch.equal(found, expected), plan
