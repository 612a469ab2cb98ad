"""The two laws for every causal spec of the library and every legal plan, in fp64.

`SMA_LAWS` multiplies the number of examples.
"""

from __future__ import annotations

import os
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sma_compiler as sma
from sma_compiler import call_errors as errors
from sma_compiler.runtime.op import Argument, CompiledOp
from sma_compiler.verify.samples import default_sizes, samples
from tests.laws import laws

MANY = int(os.environ.get("SMA_LAWS", "1"))

CAUSAL = [name for name in sma.library() if sma.library(name).causal]
WITH_PLAN = [(name, plan) for name in CAUSAL for plan in laws.plans_of(sma.library(name))]
"""Each causal spec with each of its plans."""


def arguments(op: CompiledOp, time: int, batch: int = 2, seed: int = 0, **sizes: int) -> dict[str, Argument]:
    """Small random arguments in fp64; keys and values of one head serve both heads."""
    full = {"batch": batch, "time": time, "head": 2, "group": 1, "key": 4, "value": 3, "lag": 5, "level": 4, **sizes}
    return samples(op.ir, default_sizes(op.ir, **full), torch.float64, seed)


@pytest.mark.parametrize(("name", "plan"), WITH_PLAN)
@settings(max_examples=2 * MANY)
@given(data=st.data())
def test_a_sequence_cut_and_joined_is_whole(name: str, plan: str, data: st.DataObject) -> None:
    op = sma.library(name)
    length = data.draw(st.sampled_from([1, 2, 17, 30, 66]), label="length")
    places = st.one_of(st.sampled_from([0, min(1, length), length - 1, length]), st.integers(0, length))
    cuts = sorted(data.draw(st.lists(places, min_size=1, max_size=4), label="cuts"))
    after = data.draw(st.sampled_from([plan, "auto", *laws.plans_of(op)]), label="plan after a cut")
    laws.check_cuts(op, arguments(op, length), cuts, [plan, after])


@pytest.mark.parametrize(("name", "plan"), WITH_PLAN)
@settings(max_examples=MANY)
@given(data=st.data())
def test_a_pack_is_its_sequences(name: str, plan: str, data: st.DataObject) -> None:
    lengths = data.draw(
        st.lists(st.sampled_from([0, 0, 1, 2, 15, 16, 17, 33]), min_size=1, max_size=5), label="lengths"
    )
    op = sma.library(name)
    total = max(1, sum(lengths))  # a pack of empty sequences ends with one position
    cuts = torch.tensor(lengths).cumsum(0)[:-1].tolist()
    laws.check_pack(op, arguments(op, total, 1), cuts, plan)


@pytest.mark.parametrize("name", CAUSAL)
@settings(max_examples=2 * MANY)
@given(data=st.data())
def test_steps_from_any_cut(name: str, data: st.DataObject) -> None:
    op = sma.library(name)
    length = data.draw(st.integers(1, 40), label="length")
    cut = data.draw(st.integers(max(0, length - 7), length), label="cut")
    plan = data.draw(st.sampled_from(laws.plans_of(op)), label="plan")
    laws.check_steps(op, arguments(op, length), cut, plan)


@pytest.mark.parametrize("name", CAUSAL)
def test_steps_in_place(name: str) -> None:
    op = sma.library(name)
    laws.check_steps_in_place(op, arguments(op, 11))


@pytest.mark.parametrize("name", CAUSAL)
def test_a_pack_goes_on_from_the_states_of_a_pack(name: str) -> None:
    op = sma.library(name)
    lengths = [(5, 3), (0, 4), (9, 0), (1, 1)]
    rows = [arguments(op, first + second, 1, seed) for seed, (first, second) in enumerate(lengths)]
    shared = {decl.name: rows[0][decl.name] for decl in op.params if "time" not in decl.dims}
    rows = [{**row, **shared} for row in rows]
    heads = [laws.between(op, row, 0, first) for row, (first, _) in zip(rows, lengths, strict=True)]
    tails = [
        laws.between(op, row, first, sum((first, second))) for row, (first, second) in zip(rows, lengths, strict=True)
    ]
    plan = laws.plans_of(op)[-1]
    before, bounds = laws.packed(op, heads)
    _, states = op(**before, cu_seqlens=bounds, return_state=True, plan=plan)
    after, bounds = laws.packed(op, tails)
    found, last = op(**after, cu_seqlens=bounds, initial_state=states, return_state=True, plan=plan)
    assert last["position"].tolist() == [8, 4, 9, 2]
    along = laws.time_of(op)
    for row, (first, _), (start, stop) in zip(rows, lengths, pairwise(bounds.tolist()), strict=True):
        alone = op(**row)
        mine = found.narrow(along, start, stop - start)
        laws.assert_near(mine, alone.narrow(along, first, stop - start), f"{name}, positions {start} to {stop}")


@pytest.mark.parametrize("name", CAUSAL)
def test_the_reference_of_a_pack_is_that_of_its_sequences(name: str) -> None:
    op = sma.library(name)
    given_ = arguments(op, 12, 1)
    bounds = [0, 5, 5, 12]
    found = op.reference(**given_, cu_seqlens=torch.tensor(bounds))
    alone = [op.reference(**laws.between(op, given_, start, stop)) for start, stop in pairwise(bounds)]
    torch.testing.assert_close(found, torch.cat(alone, laws.time_of(op)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["attention", "alibi", "document", "forgetting", "log_linear"])
def test_a_full_cache_refuses_the_next_step(name: str) -> None:
    op = sma.library(name)
    given_ = arguments(op, 5)
    sizes = laws.sizes_of(op, given_)
    state = op.empty_state(capacity=4, dtype=torch.float64, **sizes)
    for position in range(4):
        op.step(**laws.at(op, given_, position), state=state, inplace=True)
    before = state.clone()
    with pytest.raises(errors.CapacityExceeded, match="holds 4 positions and is full"):
        op.step(**laws.at(op, given_, 4), state=state, inplace=True)
    laws.assert_states_near(state, before, "refused step", 0.0)


def test_a_window_never_fills_up() -> None:
    op = sma.library("sliding_window")
    given_ = arguments(op, 12) | {"w": 3}
    whole = op(**given_)
    state = op.empty_state(dtype=torch.float64, **laws.sizes_of(op, given_))
    for position in range(12):
        found, _ = op.step(**laws.at(op, given_, position), state=state, inplace=True)
        laws.assert_near(found, whole[:, position], f"position {position}")


def test_every_causal_spec_is_here() -> None:
    twosided = {"prefix_lm", "linear_attention_full", "hydra"}
    assert set(CAUSAL) == set(sma.library()) - twosided
