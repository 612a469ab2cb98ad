"""Packs become padded rows and come back, whatever the lengths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sma_compiler.runtime import pack as packs
from sma_compiler.runtime.pack import Pack, make_pack

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda lengths: sum(lengths) > 0)


def bounds(lengths: list[int], dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=dtype)


def round_trip(pack: Pack, x: Tensor, time: int) -> Tensor:
    return pack.unpad([bucket.pad(x, time) for bucket in pack.buckets], time)


@given(LENGTHS, st.sampled_from([torch.int32, torch.int64]))
def test_rows_come_back(lengths: list[int], dtype: torch.dtype) -> None:
    total = sum(lengths)
    pack = make_pack(bounds(lengths, dtype), total)
    x = torch.arange(total * 6.0).reshape(1, 2, total, 3)
    assert torch.equal(round_trip(pack, x, 2), x)


@given(LENGTHS)
def test_rows_hold_their_sequence_and_zeros(lengths: list[int]) -> None:
    total = sum(lengths)
    pack = make_pack(bounds(lengths), total)
    x = torch.arange(1.0, total + 1).reshape(1, total)
    rows = [row for bucket in pack.buckets for row in bucket.pad(x, 1)]
    order = range(len(lengths)) if pack.order is None else pack.order.tolist()
    for place, sequence in zip(order, torch.split(x[0], lengths), strict=True):
        assert torch.equal(rows[place][: len(sequence)], sequence)
        assert not rows[place][len(sequence) :].any()


@given(LENGTHS)
def test_less_than_half_is_padding(lengths: list[int]) -> None:
    pack = make_pack(bounds(lengths), sum(lengths))
    for bucket in pack.buckets:
        columns = bucket.places.shape[1]
        assert bool((2 * bucket.lengths > columns).all()) or columns == 1


@given(LENGTHS)
def test_states_come_back(lengths: list[int]) -> None:
    pack = make_pack(bounds(lengths), sum(lengths))
    state = torch.arange(len(lengths) * 2.0).reshape(-1, 2)
    assert torch.equal(pack.gather([bucket.pick(state) for bucket in pack.buckets]), state)


@given(LENGTHS)
def test_traced_packs_do_not_look_at_values(lengths: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packs, "readable", lambda tensor: False)
        pack = make_pack(bounds(lengths), sum(lengths))
    (bucket,) = pack.buckets
    assert bucket.places.shape == (len(lengths), sum(lengths))
    x = torch.arange(sum(lengths) * 2.0).reshape(1, -1, 2)
    assert torch.equal(round_trip(pack, x, 1), x)


def test_padding_neither_shows_nan_nor_takes_gradient() -> None:
    x = torch.tensor([[1.0, 2.0, float("nan"), 4.0]], requires_grad=True)
    pack = make_pack(bounds([1, 1, 2]), 4)
    first, second = (bucket.pad(x, 1) for bucket in pack.buckets)
    assert first.tolist() == [[1.0], [2.0]]
    (first.sum() + second[:, 1:].sum()).backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1.0, 1.0, 0.0, 1.0]]
