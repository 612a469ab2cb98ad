"""Gates of both axes of channels, in Triton's interpreter: calls, states, packs, parts, steps and all gradients."""

from __future__ import annotations

import json

import pytest
from kernel.test_recurrent import run

from sma_compiler.interface import library

LIMITS = {"float32": 6e-7, "float16": 1e-3}
"""Relative errors by dtype."""
STEADY = 2e-7
"""Of fp32, over many positions."""


def test_all_match_the_reference() -> None:
    pytest.importorskip("triton")
    for name, found in json.loads(run("interpret_channels", "scans")).items():
        assert max(found.values()) < LIMITS[name.split()[-1]], (name, found)
        assert any(key.startswith("d") for key in found)


def test_large_scores_lose_nothing() -> None:
    pytest.importorskip("triton")
    found: dict[str, float] = json.loads(run("interpret_channels", "large"))
    assert found.pop("no rest") > 10 * LIMITS["float32"]
    assert max(found.values()) < LIMITS["float32"], found


def test_weak_gates_round_no_more_than_sums() -> None:
    pytest.importorskip("triton")
    found: dict[str, float] = json.loads(run("interpret_channels", "steady"))
    alone = {key: error for key, error in found.items() if " " not in key}
    assert max(alone.values()) < STEADY, found
    assert all(found[f"no rest {key}"] > 2 * STEADY for key in alone.keys() - {"dd"}), found


@pytest.mark.parametrize(
    "total",
    [
        "b_y = tl.sum(b_after.to(tl.float64) * b_q[:, :, None], 1)",
        "b_dq = tl.sum(b_after.to(tl.float64) * b_dy[:, None, :], 2)",
        "tl.sum(b_grown.to(tl.float64) * b_k[:, :, None], 1)",
        "b_dd = tl.zeros([BV], dtype=tl.float64)",
        "b_da = tl.zeros([BK, BV], dtype=tl.float64)",
    ],
)
def test_totals_of_fp32_files_are_fp64(total: str) -> None:
    op = library("mamba1")
    assert total in op.source("recurrent", dtype="float32")
    assert total not in op.source("recurrent", dtype="bfloat16")


def test_planted_mistakes_are_seen() -> None:
    pytest.importorskip("triton")
    found: dict[str, float] = json.loads(run("interpret_channels", "scan_mutants"))
    assert all(not error <= 1e-3 for error in found.values()), found
