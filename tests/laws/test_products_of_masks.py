"""What a product of masks reads: positions after the row, which forbid a state, and before a band, which need one."""

from __future__ import annotations

import pytest
import torch

import sma_compiler as sma
from sma_compiler.runtime.op import CompiledOp
from sma_compiler.verify.samples import default_sizes, samples
from tests.laws import laws

SIZES = {"batch": 2, "time": 19, "head": 2, "key": 4, "value": 3}


def compiled(mask: str) -> CompiledOp:
    return sma.compile(f"op f(v, g, h: [time, head]):\n    return ({mask}) @ v\n")


@pytest.mark.parametrize(
    "mask",
    [
        "(transpose(window(3)) @ decay(g)) * window(4)",
        "(transpose(decay(g)) @ (i - j == 2)) * window(3)",
        "(full @ decay(g)) * causal",
        "decay(h) @ ((band(-1, 0) @ decay(g)) * causal)",
    ],
)
def test_a_row_that_reads_later_positions_is_not_causal(mask: str) -> None:
    op = compiled(mask)
    assert not op.causal
    given = samples(op.ir, default_sizes(op.ir, **SIZES), torch.float64)
    later = {**given, "g": given["g"].index_fill(1, torch.tensor([12]), -3.0)}
    whole, changed = op.reference(**given), op.reference(**later)
    assert not torch.equal(whole[:, :12], changed[:, :12])
    for plan in laws.plans_of(op):
        laws.check_plan(op, given, plan)
    assert "positions after i" in str(op.facts) or "some piece" in str(op.facts)


@pytest.mark.parametrize(
    "mask",
    [
        "(decay(g) @ transpose(decay(h))) * window(3)",
        "(decay(g) @ transpose(decay(h))) * (i == j)",
        "(decay(g) @ transpose(decay(h))) * window(3) + retention(0.9)",
        "(decay(g) @ (j - i == 4)) * window(2)",
        "(window(9) @ transpose(window(9) * decay(h))) * window(2)",
        "(window(3) @ transpose(decay(h))) * window(3)",
        "(decay(g) @ band(0, 2)) * window(3)",
        "decay(g) @ (decay(h) @ transpose(decay(g)) * window(2))",
    ],
)
def test_positions_before_a_band_are_kept(mask: str) -> None:
    op = compiled(mask)
    assert op.causal
    given = samples(op.ir, default_sizes(op.ir, **SIZES), torch.float64)
    row = {name: x[:1] for name, x in given.items()}
    for plan in laws.plans_of(op):
        laws.check_plan(op, given, plan)
        laws.check_cuts(op, given, [7, 8, 15], [plan, "quadratic"])
        laws.check_pack(op, row, [1, 1, 9], plan)
    laws.check_steps(op, given, 13, "auto")
    laws.check_steps_in_place(op, given)


@pytest.mark.parametrize(
    "mask",
    [
        "strict * (causal @ full)",
        "strict * (decay(g) @ transpose(decay(h)))",
        "window(3) * strict * (band(0, 2) @ full)",
        "strict * decay(g) + window(3) * strict * (band(0, 2) @ full)",
    ],
)
def test_solve_sums_a_product_over_history(mask: str) -> None:
    op = sma.compile(f"op f(k, v, g, h: [time, head]):\n    return solve({mask}, 0.1 * k, k, v)\n")
    assert op.causal
    given = samples(op.ir, default_sizes(op.ir, **SIZES), torch.float64)
    row = {name: x[:1] for name, x in given.items()}
    for plan in laws.plans_of(op):
        laws.check_plan(op, given, plan)
        laws.check_cuts(op, given, [1], [plan])
        laws.check_cuts(op, given, [7, 8, 15], [plan, "quadratic"])
        laws.check_pack(op, row, [1, 1, 9], plan)
    laws.check_steps(op, given, 13, "auto")
    laws.check_steps_in_place(op, given)


def test_new_positions_see_a_product_over_the_band_before_them() -> None:
    op = sma.compile(
        "op f(q, k, v, g: [time, head]):\n    return attend(decay(g) + window(3) * (band(0, 2) @ full), q, k, v)\n"
    )
    given = samples(op.ir, default_sizes(op.ir, **SIZES), torch.float64)
    for plan in laws.plans_of(op):
        laws.check_plan(op, given, plan)
        laws.check_cuts(op, given, [1, 7, 8], [plan, "quadratic"])


def test_a_product_within_its_bands_keeps_no_more_than_them() -> None:
    op = compiled("(window(3) @ transpose(decay(h))) * window(3)")
    state = op.empty_state(head=2, value=3)
    assert state["times0.cache.pos"].shape == (1, 2)
