"""Every causal op of the library decodes, step by step and in place, from `empty_state` or from none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sma_compiler as sma
from sma_compiler.call_errors import NoStates
from sma_compiler.verify.samples import samples

SIZES = {"batch": 2, "time": 7, "head": 2, "key": 6, "value": 4, "mode": 3, "lag": 5, "level": 4, "group": 1}
CAUSAL = [name for name in sma.library() if sma.library(name).causal]


def inputs(op: sma.CompiledOp) -> dict[str, Any]:
    return dict(samples(op.ir, SIZES, torch.float64))


def position(op: sma.CompiledOp, given: dict[str, Any], t: int) -> dict[str, Any]:
    over_time = {decl.name for decl in op.params if "time" in decl.dims}
    return {name: x[:, t] if name in over_time else x for name, x in given.items()}


def empty(op: sma.CompiledOp, given: dict[str, Any]) -> sma.State:
    axes = {axis for decl in op.params for axis in decl.dims} - {"batch", "time"}
    numbers = {name: x for name, x in given.items() if not isinstance(x, Tensor)}
    sizes = {axis: SIZES[axis] for axis in axes}
    return op.empty_state(2, capacity=SIZES["time"], dtype=torch.float64, **sizes, **numbers)


def test_most_of_the_library_is_causal() -> None:
    assert set(sma.library()) - set(CAUSAL) == {"prefix_lm", "linear_attention_full", "hydra"}


@pytest.mark.parametrize("name", CAUSAL)
def test_steps(name: str) -> None:
    op = sma.library(name)
    given = inputs(op)
    y, end = op(**given, return_state=True)
    state = None
    for t in range(SIZES["time"]):
        y_t, state = op.step(**position(op, given, t), state=state)
        torch.testing.assert_close(y_t, y[:, t], rtol=1e-9, atol=1e-11)
    assert state is not None
    assert list(state) == list(end)
    for tensor_name in end:
        torch.testing.assert_close(state[tensor_name], end[tensor_name], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", CAUSAL)
def test_steps_in_place_from_the_empty_state(name: str) -> None:
    op = sma.library(name)
    given = inputs(op)
    y = op(**given)
    state = empty(op, given)
    addresses = [tensor.data_ptr() for tensor in state.values()]
    for t in range(SIZES["time"]):
        y_t, _ = op.step(**position(op, given, t), state=state, inplace=True)
        torch.testing.assert_close(y_t, y[:, t], rtol=1e-9, atol=1e-11)
    assert [tensor.data_ptr() for tensor in state.values()] == addresses


@pytest.mark.parametrize("name", CAUSAL)
def test_the_empty_state_changes_nothing(name: str) -> None:
    op = sma.library(name)
    given = inputs(op)
    y, end = op(**given, return_state=True)
    y_from_empty, after = op(**given, initial_state=empty(op, given), return_state=True)
    torch.testing.assert_close(y_from_empty, y, rtol=1e-9, atol=1e-11)
    assert torch.equal(after["position"], end["position"])


@pytest.mark.parametrize("name", CAUSAL)
def test_explains_its_state(name: str) -> None:
    op = sma.library(name)
    text = str(op.explain())
    _, end = op(**inputs(op), return_state=True)
    for tensor_name in end:
        assert f"  {tensor_name}: " in text


@pytest.mark.parametrize("name", sorted(set(sma.library()) - set(CAUSAL)))
def test_the_others_have_no_state(name: str) -> None:
    op = sma.library(name)
    with pytest.raises(NoStates):
        op.empty_state(2, head=2, key=6, value=4)
    assert "none: later positions matter" in str(op.explain())
