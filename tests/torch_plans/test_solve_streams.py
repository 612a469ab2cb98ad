"""Solve by the recurrence: what it gives satisfies the equation."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_plans.stream_cases import Case, cut, expanded, frame_of, meaning, random_case, run, same

from sma_compiler.torch_plans.layout import order
from sma_compiler.torch_plans.named import Named
from sma_compiler.torch_plans.solve_streams import solve_recurrent


def strict_case(seed: int) -> Case:
    """Streams that see earlier columns only; `u` is the right side."""
    case = random_case(seed)
    case.streams = [stream if stream.delay else replace(stream, first=1) for stream in case.streams]
    case.keyed = True
    case.data.setdefault("k", Named(torch.ones((), dtype=torch.float64), ()))
    case.data["u"] = case.data.pop("v")
    small = 0.3 / (1 + case.data["k"].data.abs().amax())
    case.data["k"] = Named(case.data["k"].data * small, case.data["k"].axes)
    return case


def solved(
    case: Case,
    start: int = 0,
    stop: int | None = None,
    state: dict[str, Tensor] | None = None,
    lengths: Tensor | None = None,
) -> tuple[Named, dict[str, Tensor]]:
    """x between two positions."""
    stop = case.sizes["time"] if stop is None else stop
    data = cut(case.data, start, stop)
    starts = torch.full((case.sizes["batch"],), start)
    frame = frame_of(case, data, torch.float64, stop - start, starts, lengths)
    one = Named(torch.ones((), dtype=torch.float64), ())
    return solve_recurrent(case.streams, data.get("q", one), data["k"], data["u"], frame, state, case.key_size())


@given(seed=st.integers(0, 10**6))
@example(4382)
@settings(max_examples=60)
def test_the_equation_holds(seed: int) -> None:
    case = strict_case(seed)
    x, state = solved(case)
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


@given(seed=st.integers(0, 10**6), where=st.integers(0, 40))
@settings(max_examples=40)
def test_a_cut_sequence_joins_by_its_state(seed: int, where: int) -> None:
    case = strict_case(seed)
    length = case.sizes["time"]
    middle = where % length
    whole, wanted = solved(case)
    first, state = solved(case, 0, middle) if middle else (None, None)
    second, after = solved(case, middle, length, state)
    same(expanded(second, length - middle), cut({"x": expanded(whole, length)}, middle, length)["x"], 1e-9)
    if first is not None:
        same(expanded(first, middle), cut({"x": expanded(whole, length)}, 0, middle)["x"], 1e-9)
    for name, x in wanted.items():
        torch.testing.assert_close(after[name], x, rtol=1e-9, atol=1e-9)


@given(seed=st.integers(0, 10**6), where=st.integers(0, 40))
@settings(max_examples=30)
def test_rows_end_where_they_end(seed: int, where: int) -> None:
    case = strict_case(seed)
    length = case.sizes["time"]
    end = where % (length + 1)
    _, state = solved(case, lengths=torch.tensor([end, length]))
    short = solved(case, 0, end)[1] if end else {}
    full = solved(case)[1]
    for name, x in full.items():
        torch.testing.assert_close(state[name][1], x[1], rtol=1e-9, atol=1e-9)
        if end:
            torch.testing.assert_close(state[name][0], short[name][0], rtol=1e-9, atol=1e-9)
