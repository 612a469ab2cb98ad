"""The checkers of the laws fail on what breaks them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sma_compiler as sma
from sma_compiler.runtime.op import CompiledOp
from tests.laws import laws
from tests.laws.inputs import inputs


class Mutant(CompiledOp):
    """An op with one mistake."""

    def __init__(self, op: CompiledOp, mistake: str) -> None:
        super().__init__(op.program)
        self.mistake = mistake

    def __call__(self, *tensors: Tensor, **named: object) -> object:
        state = named.get("initial_state")
        if self.mistake == "forgets" and state is not None:
            named["initial_state"] = state.map(torch.zeros_like)
        if self.mistake == "cuts the graph" and state is not None:
            named["initial_state"] = state.detach()
        if self.mistake == "runs through" and named.get("cu_seqlens") is not None:
            bounds = named["cu_seqlens"]
            named["cu_seqlens"] = torch.stack([bounds[0], bounds[-1]])
        if self.mistake == "looks ahead":
            named["k"] = named["k"].roll(-1, 1)
        found = super().__call__(*tensors, **named)
        if self.mistake == "last state" and isinstance(found, tuple):
            return found[0], found[1].map(lambda x: x if x.dtype == torch.int64 else x * 1.001)
        return found

    def step(
        self, *tensors: Tensor, state: sma.State | None = None, inplace: bool = False, **named: object
    ) -> tuple[Tensor, sma.State]:
        result, after = super().step(*tensors, state=state, inplace=inplace, **named)
        if self.mistake == "moves" and inplace:
            after = after.clone()
        return result, after


@pytest.mark.parametrize("name", ["gla", "attention"])
@pytest.mark.parametrize("mistake", ["forgets", "cuts the graph", "looks ahead", "last state"])
def test_cuts(name: str, mistake: str) -> None:
    op = sma.library(name)
    laws.check_cuts(op, inputs(op), [9], ["quadratic"])
    with pytest.raises(AssertionError):
        laws.check_cuts(Mutant(op, mistake), inputs(op), [9], ["quadratic"])


def test_packs() -> None:
    op = sma.library("gla")
    given = inputs(op, batch=1)
    laws.check_pack(op, given, [9], "chunked")
    for mistake in ("runs through", "looks ahead"):
        with pytest.raises(AssertionError):
            laws.check_pack(Mutant(op, mistake), given, [9], "chunked")


def test_steps() -> None:
    op = sma.library("gla")
    given = inputs(op, time=5)
    for mistake in ("looks ahead", "last state"):
        with pytest.raises(AssertionError):
            laws.check_steps(Mutant(op, mistake), given, 2, "recurrent")
    with pytest.raises(AssertionError):
        laws.check_steps_in_place(Mutant(op, "moves"), given)


@pytest.mark.parametrize(
    "wrong", ["strict * decay(g)", "causal", "decay(0.999 * g)", "causal * exp(sum(g[t], j <= t <= i))"]
)
def test_plans_of_another_mask(wrong: str) -> None:
    spec = "op f(q, k, v, g: [time, head]):\n    return attend({}, q, k, v)\n"
    op, other = sma.compile(spec.format("decay(g)")), sma.compile(spec.format(wrong))

    class Other(CompiledOp):
        def reference(self, *tensors: Tensor, **named: object) -> Tensor:
            return other.reference(*tensors, **named)

    given = inputs(op)
    laws.check_plan(op, given, "chunked")
    with pytest.raises(AssertionError):
        laws.check_plan(Other(op.program), given, "chunked")
