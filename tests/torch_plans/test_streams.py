"""Streams by every plan, against the sum over all pairs of positions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_plans.stream_cases import alone, blank, cut, expanded, meaning, random_case, run, same, spoil

from sma_compiler.torch_plans import chunked, scan, strided
from sma_compiler.torch_plans.named import Named


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks and several groups of them even for short sequences."""
    monkeypatch.setattr(chunked, "CHUNK", 8)
    monkeypatch.setattr(strided, "SIZE", 4)
    monkeypatch.setattr(scan, "WIDTH", 2)
    monkeypatch.setattr(chunked, "_NARROW", 4)


SEEDS = st.integers(0, 10**6)
PLANS = st.sampled_from(["chunked", "recurrent"])


@pytest.mark.parametrize("plan", ["chunked", "recurrent"])
@given(seed=SEEDS)
@settings(max_examples=150)
def test_lower_streams(plan: str, seed: int) -> None:
    case = random_case(seed)
    same(run(case, plan)[0], meaning(case), 1e-11)


@given(seed=SEEDS)
@settings(max_examples=100)
def test_upper_streams(seed: int) -> None:
    case = random_case(seed, "upper")
    same(run(case, "chunked")[0], meaning(case), 1e-11)


@pytest.mark.parametrize("plan", ["chunked", "recurrent", "global"])
@given(seed=SEEDS)
@settings(max_examples=30)
def test_full_streams(plan: str, seed: int) -> None:
    case = random_case(seed, "full")
    same(run(case, plan)[0], meaning(case), 1e-11)


@given(
    seed=SEEDS, cuts=st.lists(st.integers(0, 40), min_size=1, max_size=3), plans=st.lists(PLANS, min_size=4, max_size=4)
)
@settings(max_examples=100)
def test_cut_sequences_join_by_their_states(seed: int, cuts: list[int], plans: list[str]) -> None:
    case = random_case(seed)
    length = case.sizes["time"]
    ends = sorted({*(cut for cut in cuts if 0 < cut < length), length})
    state, start, parts = None, 0, []
    for end, plan in zip(ends, plans, strict=False):
        found, state = run(case, plan, data=cut(case.data, start, end), start=start, state=state, length=end - start)
        parts.append(expanded(found, end - start))
        start = end
    time = parts[0].axes.index("time")
    same(Named(torch.cat([part.data for part in parts], time), parts[0].axes), meaning(case), 1e-10)
    assert state is not None
    for plan in ("chunked", "recurrent"):
        whole = run(case, plan)[1]
        assert whole.keys() == state.keys()
        for name, x in whole.items():
            assert x.shape == state[name].shape
            assert x.shape[0] == case.sizes["batch"]
            torch.testing.assert_close(x, state[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("plan", ["chunked", "recurrent"])
@given(seed=SEEDS, pick=st.integers(0, 10**6))
@settings(max_examples=100)
def test_padded_rows_end_where_they_end(plan: str, seed: int, pick: int) -> None:
    case = random_case(seed)
    batch, length = case.sizes["batch"], case.sizes["time"]
    ends = [pick % (length + 1), pick // 50 % (length + 1)]
    valid = torch.arange(length) < torch.tensor(ends)[:, None]
    spoiled = {name: spoil(x, valid) for name, x in case.data.items()}
    found, state = run(case, plan, data=spoiled, lengths=torch.tensor(ends))
    found = expanded(found, length, batch)
    assert not found.data.isnan().any()
    for row, end in enumerate(ends):
        part = {name: alone(x, row) for name, x in case.data.items()}
        case.sizes["batch"] = 1
        wanted, after = run(case, plan, data=cut(part, 0, end), length=end) if end else (None, {})
        case.sizes["batch"] = batch
        if wanted is not None:
            ours = Named(found.data[row : row + 1], found.axes)
            same(cut({"y": ours}, 0, end)["y"], wanted, 1e-10)
        for name, x in after.items():
            torch.testing.assert_close(state[name][row], x[0], rtol=1e-9, atol=1e-9)
        if not end:
            assert all(not x[row].any() for name, x in state.items() if not name.startswith("segment"))


@given(seed=SEEDS, where=st.integers(0, 40), pick=st.integers(0, 10**6))
@settings(max_examples=100)
def test_advance_reads_the_state_alone_and_moves_it_on(seed: int, where: int, pick: int) -> None:
    case = random_case(seed)
    length, batch = case.sizes["time"], case.sizes["batch"]
    middle = where % length
    count = length - middle
    lengths = None if pick % 2 else torch.tensor([pick % (length - middle + 1), length - middle])
    state = run(case, "chunked", data=cut(case.data, 0, middle), length=middle)[1] if middle else None
    rest = cut(case.data, middle, length)
    seen, after = run(case, "advance", data=rest, start=middle, state=state, length=count, lengths=lengths)
    whole, wanted = run(case, "recurrent", data=rest, start=middle, state=state, length=count, lengths=lengths)
    for name, x in wanted.items():
        torch.testing.assert_close(after[name], x, rtol=1e-9, atol=1e-9)
    if middle:
        fresh = run(case, "chunked", data=rest, start=middle, length=count, lengths=lengths)[0]
        valid = torch.arange(count) < (torch.full((batch,), count) if lengths is None else lengths)[:, None]
        results = [blank(expanded(x, count, batch), valid) for x in (seen, whole, fresh)]
        same(results[0], Named(results[1].data - results[2].data, results[1].axes), 1e-10)
