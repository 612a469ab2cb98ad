"""Softmax over columns whose score does not depend on the row, against the same sums in fp64 written out."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_plans.stream_cases import Case, blank, cut, expanded, frame_of, meaning, same

from sma_compiler.ir.nodes import Expr
from sma_compiler.mask.nodes import Gate, Stream
from sma_compiler.torch_plans.layout import order
from sma_compiler.torch_plans.named import Named
from sma_compiler.torch_plans.stabilised import run_stabilised

SEEDS = st.integers(0, 10**6)


def positive_case(seed: int, side: str = "lower") -> Case:
    """Streams without a negative factor; the score is the tensor `s`."""
    pick = random.Random(seed)
    case = Case(seed=seed * 100)
    case.keyed = False
    case.sizes["time"] = pick.choice([1, 2, 7, 33, 50, 70])
    case.operand("v", pick.choice(["time head value", "time head", "time value", "time"]))
    case.operand("s", pick.choice(["time head", "time"]))

    def factor(position: str) -> Expr:
        return case.over(pick.choice(["head", "time", "time head", "time head value"]), position, 0, 2)

    def gate() -> Gate:
        low = pick.choice([-0.01, -1, -30])
        log = case.tensor(pick.choice(["head", "time head", "time", "time value"]), low, 0)
        if pick.random() < 0.3:
            case.infinite(log, 0.2)
        return Gate(case.graph.at(log, "t"), pick.random() < 0.4, pick.random() < 0.6)

    def selecting(position: str) -> Expr:
        where = case.graph.position(position)
        return case.graph.apply("ge", where, case.graph.const(pick.randrange(4)))

    for _ in range(pick.choice([1, 1, 2])):
        row = tuple(factor("i") for _ in range(pick.choice([0, 0, 1])))
        row += tuple(selecting("i") for _ in range(pick.choice([0, 0, 1])))
        gates = tuple(gate() for _ in range(pick.choice([0, 1, 2])))
        segments = tuple(case.ids() for _ in range(pick.choice([0, 0, 1])))
        degree = pick.choice([0, 0, 1, 2])
        for _ in range(pick.choice([1, 1, 2])):
            col = tuple(factor("j") for _ in range(pick.choice([0, 0, 1])))
            col += tuple(selecting("j") for _ in range(pick.choice([0, 0, 1])))
            case.streams.append(Stream(side, pick.choice([0, 1]), row, col, gates, segments, degree))
    return case


def run(
    case: Case,
    plan: str,
    data: dict[str, Named] | None = None,
    start: int = 0,
    state: dict[str, Tensor] | None = None,
    lengths: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Named, Named, Named, dict[str, Tensor]]:
    data = case.data if data is None else data
    data = {name: x.to(dtype) if x.data.is_floating_point() else x for name, x in data.items()}
    length = data["s"].size("time")
    starts = torch.full((case.sizes["batch"],), start) if start else None
    frame = frame_of(case, data, dtype, length, starts, lengths)
    return run_stabilised(plan, case.streams, data["s"], data["v"], frame, state)


def sums(found: tuple[Named, Named, Named, dict[str, Tensor]]) -> tuple[Named, Named]:
    """The true numerator and denominator."""
    numerator, denominator, top, _ = found
    scale = Named(top.data.exp(), top.axes)
    return tuple(
        Named(x.view(axes) * scale.view(axes), axes)
        for x, axes in ((x, order((*x.axes, *scale.axes))) for x in (numerator, denominator))
    )


def wanted(case: Case) -> tuple[Named, Named]:
    """Numerator and denominator by their meaning."""
    v, s = case.data["v"], case.data["s"]
    case.data["k"] = Named(s.data.exp(), s.axes)
    numerator = meaning(case)
    case.data["v"] = Named(torch.ones((), dtype=torch.float64), ())
    denominator = meaning(case)
    case.data["v"] = v
    del case.data["k"]
    return numerator, denominator


@pytest.mark.parametrize("plan", ["chunked", "recurrent"])
@given(seed=SEEDS)
@settings(max_examples=100)
def test_lower(plan: str, seed: int) -> None:
    case = positive_case(seed)
    for ours, theirs in zip(sums(run(case, plan)), wanted(case), strict=True):
        same(ours, theirs, 1e-11)


@given(seed=SEEDS)
@settings(max_examples=50)
def test_upper(seed: int) -> None:
    case = positive_case(seed, "upper")
    for ours, theirs in zip(sums(run(case, "chunked")), wanted(case), strict=True):
        same(ours, theirs, 1e-11)


@given(seed=SEEDS, where=st.integers(0, 100), plans=st.permutations(["chunked", "recurrent", "advance"]))
@settings(max_examples=150)
def test_a_cut_sequence_joins_by_its_state(seed: int, where: int, plans: list[str]) -> None:
    case = positive_case(seed)
    length = case.sizes["time"]
    middle = where % length
    whole = run(case, "recurrent")
    state = run(case, plans[0], cut(case.data, 0, middle))[3] if middle else None
    rest = cut(case.data, middle, length)
    found = run(case, plans[1], rest, middle, state)
    for name, x in whole[3].items():
        torch.testing.assert_close(found[3][name], x, rtol=1e-10, atol=1e-10)
    if plans[1] == "advance":
        fresh = sums(run(case, "recurrent", rest, middle))
        pairs = zip(sums(found), fresh, strict=True)
        found_sums = [Named(a.view(b.axes) + b.data, b.axes) for a, b in pairs]
    else:
        found_sums = list(sums(found))
    for ours, theirs in zip(found_sums, sums(whole), strict=True):
        same(expanded(ours, length - middle), cut({"x": expanded(theirs, length)}, middle, length)["x"], 1e-10)


@pytest.mark.parametrize("plan", ["chunked", "recurrent", "advance"])
@given(seed=SEEDS, where=st.integers(0, 100))
@settings(max_examples=50)
def test_rows_end_where_they_end(plan: str, seed: int, where: int) -> None:
    case = positive_case(seed)
    length, batch = case.sizes["time"], case.sizes["batch"]
    ends = torch.tensor([where % (length + 1), length])
    found = run(case, plan, lengths=ends)
    full = run(case, "recurrent")
    short = run(case, "recurrent", cut(case.data, 0, int(ends[0])))[3] if ends[0] else None
    for name, x in full[3].items():
        torch.testing.assert_close(found[3][name][1], x[1], rtol=1e-10, atol=1e-10)
        if short is not None:
            torch.testing.assert_close(found[3][name][0], short[name][0], rtol=1e-10, atol=1e-10)
        else:
            assert name.startswith("segment") or not found[3][name][0].nan_to_num(neginf=0).any()
    if plan != "advance":
        valid = torch.arange(length) < ends[:, None]
        for ours, theirs in zip(sums(found), sums(full), strict=True):
            same(blank(expanded(ours, length, batch), valid), blank(expanded(theirs, length, batch), valid), 1e-10)


@pytest.mark.parametrize("plan", ["chunked", "recurrent"])
def test_scores_of_ten_thousand_are_exact(plan: str) -> None:
    case = Case()
    case.keyed = False
    case.sizes["time"] = 200
    case.operand("v", "time head")
    case.operand("s", "time head")
    large = torch.where(torch.rand(2, 200, 2) < 0.5, -1e4, 1e4)
    case.data["s"] = Named((large + case.data["s"].data.float()).float().double(), case.data["s"].axes)
    log = case.tensor("head", -2, 0)
    case.streams = [Stream("lower", 0, (), (), (Gate(log, False, True),))]
    found = run(case, plan, dtype=torch.float32)
    ours = found[0].data / found[1].data
    scores = (
        case.data["s"].data[:, None]
        + (torch.arange(200)[:, None] - torch.arange(200))[..., None] * case.data[log.name].data
    )
    future = torch.arange(200)[:, None] < torch.arange(200)
    weights = scores.masked_fill(future[..., None], -torch.inf).softmax(2)
    theirs = torch.einsum("bijh,bjh->bih", weights, case.data["v"].data)
    assert ours.isfinite().all()
    assert ((ours - theirs).square().mean() / theirs.square().mean()).sqrt() < 3e-7
