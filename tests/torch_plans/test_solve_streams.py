"""Solve by the recurrence and in chunks: what it gives satisfies the equation."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_plans.stream_cases import Case, cut, expanded, frame_of, meaning, random_case, run, same

import sma_compiler as sma
from sma_compiler.torch_plans import solve_chunks
from sma_compiler.torch_plans.layout import order
from sma_compiler.torch_plans.named import Named
from sma_compiler.torch_plans.solve_chunks import solve_chunked
from sma_compiler.torch_plans.solve_streams import solve_recurrent
from tests.laws import laws
from tests.laws.inputs import inputs

PLANS = pytest.mark.parametrize("plan", ["recurrent", "chunked"])


def strict_case(seed: int, plan: str) -> Case:
    """Streams that see earlier columns only, in chunks without delays; `u` is the right side."""
    case = random_case(seed)
    assume(plan == "recurrent" or not any(stream.delay for stream in case.streams))
    case.streams = [stream if stream.delay else replace(stream, first=1) for stream in case.streams]
    case.keyed = True
    case.data.setdefault("k", Named(torch.ones((), dtype=torch.float64), ()))
    case.data["u"] = case.data.pop("v")
    small = 0.3 / (1 + case.data["k"].data.abs().amax())
    case.data["k"] = Named(case.data["k"].data * small, case.data["k"].axes)
    return case


def solved(
    case: Case,
    plan: str,
    start: int = 0,
    stop: int | None = None,
    state: dict[str, Tensor] | None = None,
    lengths: Tensor | None = None,
) -> tuple[Named, dict[str, Tensor]]:
    """x between two positions; chunks of 4 are several."""
    stop = case.sizes["time"] if stop is None else stop
    data = cut(case.data, start, stop)
    starts = torch.full((case.sizes["batch"],), start)
    frame = frame_of(case, data, torch.float64, stop - start, starts, lengths)
    one = Named(torch.ones((), dtype=torch.float64), ())
    solve = solve_recurrent if plan == "recurrent" else solve_chunked
    with patch.object(solve_chunks, "SIZE", 4):
        return solve(case.streams, data.get("q", one), data["k"], data["u"], frame, state, case.key_size())


@PLANS
@given(seed=st.integers(0, 10**6))
@example(seed=4382)
@settings(max_examples=60)
def test_the_equation_holds(seed: int, plan: str) -> None:
    case = strict_case(seed, plan)
    x, state = solved(case, plan)
    assert not x.data.isnan().any()
    case.data["v"] = x
    seen = meaning(case)
    axes = order((*seen.axes, *x.axes, *case.data["u"].axes))
    left = Named(x.view(axes) + seen.view(axes), axes)
    # Terms that cancel are rounded by their own size
    growth = max(1.0, float(x.data.abs().amax() / case.data["u"].data.abs().amax()))
    same(left, Named(case.data["u"].view(axes), axes), 1e-9 * growth)
    for name, after in run(case, "advance")[1].items():
        torch.testing.assert_close(state[name], after, rtol=1e-9, atol=1e-9)


@PLANS
@given(seed=st.integers(0, 10**6), where=st.integers(0, 40))
@settings(max_examples=40)
def test_a_cut_sequence_joins_by_its_state(seed: int, where: int, plan: str) -> None:
    case = strict_case(seed, plan)
    length = case.sizes["time"]
    middle = where % length
    whole, wanted = solved(case, plan)
    first, state = solved(case, plan, 0, middle) if middle else (None, None)
    second, after = solved(case, plan, middle, length, state)
    same(expanded(second, length - middle), cut({"x": expanded(whole, length)}, middle, length)["x"], 1e-9)
    if first is not None:
        same(expanded(first, middle), cut({"x": expanded(whole, length)}, 0, middle)["x"], 1e-9)
    for name, x in wanted.items():
        torch.testing.assert_close(after[name], x, rtol=1e-9, atol=1e-9)


@PLANS
@given(seed=st.integers(0, 10**6), where=st.integers(0, 40))
@settings(max_examples=30)
def test_rows_end_where_they_end(seed: int, where: int, plan: str) -> None:
    case = strict_case(seed, plan)
    length = case.sizes["time"]
    end = where % (length + 1)
    _, state = solved(case, plan, lengths=torch.tensor([end, length]))
    short = solved(case, plan, 0, end)[1] if end else {}
    full = solved(case, plan)[1]
    for name, x in full.items():
        torch.testing.assert_close(state[name][1], x[1], rtol=1e-9, atol=1e-9)
        if end:
            torch.testing.assert_close(state[name][0], short[name][0], rtol=1e-9, atol=1e-9)


def test_what_is_no_operand_is_not_rounded() -> None:
    """Where the pairs weigh nothing, x is the right side, bit for bit, and behind an empty state so is its sum."""
    op = sma.compile("op f(u: [time, head, value], a, b: [time, head, key]):\n    return solve(strict, a, b, u)\n")
    u, b = torch.randn(1, 70, 2, 3), torch.randn(1, 70, 2, 4).bfloat16()
    found = op(u, torch.zeros_like(b), b, plan="chunked")
    assert torch.equal(found, u)


@pytest.mark.parametrize("mistake", ["nothing inside", "nothing before", "no decay", "an identity too many"])
def test_mutants_fail(mistake: str) -> None:
    op = sma.library("gated_delta_net")
    given = inputs(op, time=140)
    laws.check_plan(op, given, "chunked")
    solving, inverse = solve_chunks._Solving, solve_chunks._inverse
    mutants = {
        "nothing inside": patch.object(solve_chunks, "_inverse", lambda x: Named(0 * x.data, x.axes)),
        "nothing before": patch.object(solving, "unseen", lambda self, chunk, right: right),
        "no decay": patch.object(solve_chunks, "exp2", lambda x: Named(torch.ones_like(x.data), x.axes)),
        "an identity too many": patch.object(
            solve_chunks, "_inverse", lambda x: Named(inverse(x).data + torch.eye(x.size("row")), inverse(x).axes)
        ),
    }
    with mutants[mistake], pytest.raises(AssertionError):
        laws.check_plan(op, given, "chunked")
