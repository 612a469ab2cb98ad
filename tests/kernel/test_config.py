"""Configurations: what kernels for an H100 keep to at any sizes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from sma_compiler.kernel.config import Config, backward, forward, gradient

SIZES = {"batch": 4, "time": 4096, "head": 16, "key": 128, "value": 64}


def every_forward(dtype: str) -> Iterator[tuple[dict[str, int], Config]]:
    for key, value, group, normalised, varying in itertools.product(
        (1, 64, 100, 256), (1, 64, 128, 512), (1, 16), (False, True), (False, True)
    ):
        sizes = {**SIZES, "key": key, "value": value, "group": group}
        yield sizes, forward(sizes, dtype, "sm_90", normalised=normalised, varying=varying)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_products_on_hopper_are_wide_enough_and_programs_hold_their_state(dtype: str) -> None:
    for sizes, found in every_forward(dtype):
        checked = sizes["key"] == sizes["value"] == 64  # narrower, and right under compute-sanitizer
        assert found.outer >= (32 if checked else 64)
        assert found.chunk == 64
        # fp32 numbers of the state that a thread holds
        held = max(sizes["key"], 16) * found.outer / (32 * found.warps)
        assert held <= 128, sizes


def test_wide_keys_make_scores_ahead_where_heads_share_them() -> None:
    shared = forward({**SIZES, "key": 256, "group": 1}, "bfloat16", "sm_90", normalised=False, varying=True)
    alone = forward({**SIZES, "key": 256}, "bfloat16", "sm_90", normalised=False, varying=True)
    assert (shared.scores, shared.warps, shared.stages) == (True, 4, 1)
    assert (alone.scores, alone.warps, alone.stages) == (False, 8, 2)


def test_few_heads_and_long_sequences_are_cut_in_parts() -> None:
    few = {**SIZES, "batch": 1, "head": 24}
    assert forward({**few, "time": 131072}, "bfloat16", "sm_90", normalised=False, varying=True).programs > 0
    short = {**few, "time": 1000}
    assert forward(short, "bfloat16", "sm_90", normalised=False, varying=True).programs == 0
    assert backward({**few, "time": 131072}, "bfloat16", "sm_90").programs > 0


@pytest.mark.parametrize("inner", [16, 64, 128, 256, 512])
def test_every_walk_has_the_chunks_of_all(inner: int) -> None:
    for dtype, target in (("bfloat16", "sm_90"), ("float32", "sm_90"), ("bfloat16", "sm_80"), ("float16", "gfx942")):
        common = backward(SIZES, dtype, target)
        for flags in itertools.product((False, True), repeat=5):
            names = ("counts", "pairs", "varying", "normalised", "computed")
            found = gradient(common, inner, **dict(zip(names, flags, strict=True)))
            assert (found.chunk, found.outer, found.assembly) == (common.chunk, common.outer, common.assembly)
            assert found.assembly == target.startswith("sm_")
            narrow = inner > 64 and (flags[0] or flags[3])
            assert (found.warps == 8) == (narrow if dtype == "float32" else inner > 256 and target == "sm_90")


def test_three_stages_are_prefetched_unless_they_leave_no_room_for_a_second_program() -> None:
    def of(**sizes: int) -> tuple[int, bool]:
        found = forward({**SIZES, **sizes}, "bfloat16", "sm_90", normalised=False, varying=True)
        return found.stages, found.scores

    assert of(key=64, group=1) == (3, False)  # scores of so few keys are made again as fast as they are read
    assert of(key=128, group=1) == (3, True)
    assert of(key=128, batch=8, value=128) == (2, False)
    assert of(key=128, batch=1, value=128) == (3, False)
    assert of(key=128, batch=1, value=128, time=32768) == (2, False)  # cut in parts, which are many
    assert of(key=128, batch=1, group=1, time=131072) == (2, True)


def test_few_programs_are_cut_in_parts_from_two_thousand_positions_on() -> None:
    def of(**sizes: int) -> int:
        return forward({**SIZES, **sizes}, "bfloat16", "sm_90", normalised=False, varying=True).programs

    assert of(batch=1, key=64, time=2048) == 2 * of(batch=1, key=128, time=2048) == 264
    assert of(batch=1, key=64, time=1024) == of(batch=8, key=64, time=2048) == 0
