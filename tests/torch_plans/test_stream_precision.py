"""How exact streams are: rounded operands, long memories, fast turns, late positions."""

from __future__ import annotations

import math

import pytest
import torch
from torch_plans.stream_cases import Case, cut, expanded, run

from sma_compiler.mask.nodes import Gate, Stream, Turn
from sma_compiler.torch_plans.named import Named


def relative(ours: Named, theirs: Named) -> float:
    """Root mean square of the difference, relative."""
    difference = ours.view(theirs.axes).double() - theirs.data
    return (difference.square().mean() / theirs.data.square().mean()).sqrt().item()


def attention(length: int, gate: float, axes: str = "head", width: int = 8) -> Case:
    """Linear attention with static log gates about `gate`."""
    case = Case()
    case.sizes.update(time=length, batch=1, head=2, key=width, value=width)
    for name, dims in (("q", "key"), ("k", "key"), ("v", "value")):
        case.operand(name, f"time head {dims}")
        case.data[name] = Named(case.data[name].data.float().double(), case.data[name].axes)
    log = case.tensor(axes, 1.1 * gate, 0.9 * gate)
    case.streams = [Stream("lower", 0, (), (), (Gate(case.graph.at(log, "t"), False, True),))]
    return case


@pytest.mark.parametrize("plan", ["chunked", "recurrent"])
@pytest.mark.parametrize("axes", ["head", "head key"])
def test_slow_static_gates_do_not_drift(plan: str, axes: str) -> None:
    case = attention(3000, -3e-4, axes)
    wanted = expanded(run(case, "chunked")[0], 3000)
    found = run(case, plan, torch.float32)[0]
    assert relative(found, wanted) <= 2e-6 + 2**-24 * (0.1 + math.sqrt(3000))


@pytest.mark.parametrize("plan", ["chunked", "recurrent", "by one"])
def test_phases_are_reduced_before_they_are_rounded(plan: str) -> None:
    case = attention(400, -1e-3)
    rate = case.tensor("head", 100, 101)
    case.streams = [Stream("lower", 0, (), (), case.streams[0].gates, turns=(Turn("cos", rate),))]
    wanted = expanded(run(case, "chunked")[0], 400)
    if plan == "by one":
        state, parts = None, []
        for t in range(400):
            data = cut(case.data, t, t + 1)
            y, state = run(case, "recurrent", torch.float32, data, start=t, state=state, length=1)
            parts.append(expanded(y, 1).data)
        found = Named(torch.cat(parts, wanted.axes.index("time")), wanted.axes)
    else:
        found = run(case, plan, torch.float32)[0]
    assert relative(found, wanted) <= 2e-6 + 2**-24 * (1 + math.sqrt(400))


def test_a_state_late_in_a_sequence_turns_as_well() -> None:
    case = attention(60, -0.01)
    rate = case.tensor("head", 1, 2)
    case.streams = [Stream("lower", 0, (), (), case.streams[0].gates, turns=(Turn("sin", rate),))]
    wanted = cut({"y": expanded(run(case, "chunked")[0], 60)}, 30, 60)["y"]
    far = 10**7
    for first, second in (("chunked", "recurrent"), ("recurrent", "chunked"), ("recurrent", "advance")):
        _, state = run(case, first, torch.float32, cut(case.data, 0, 30), start=far, length=30)
        rest = cut(case.data, 30, 60)
        found = run(case, second, torch.float32, rest, start=far + 30, state=state, length=30)[0]
        if second == "advance":
            found = Named(found.data + run(case, "chunked", torch.float32, rest, length=30)[0].data, found.axes)
        assert relative(found, wanted) <= 3e-6


@pytest.mark.parametrize("operand", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("axes", ["head", "head key", "time head", "time head key"])
def test_rounded_operands(operand: torch.dtype, axes: str) -> None:
    case = attention(200, -0.05, axes, width=16)
    for name in "qkv":
        case.data[name] = Named(case.data[name].data.to(operand).double(), case.data[name].axes)
    wanted = expanded(run(case, "chunked")[0], 200)
    found = run(case, "chunked", torch.float32, operand=operand)[0]
    plain = run(case, "chunked", torch.float32)[0]
    rounding = relative(Named(wanted.data.to(operand), wanted.axes), wanted)
    unit = torch.finfo(operand).eps / 2
    assert relative(plain, wanted) < rounding / 20 < relative(found, wanted)
    assert relative(found, wanted) <= 2 * rounding + unit
