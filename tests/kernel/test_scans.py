"""Gates of both axes of channels, in Triton's interpreter: calls, states, packs, parts, steps and all gradients."""

from __future__ import annotations

import json

import pytest
from kernel.test_recurrent import run

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


def test_planted_mistakes_are_seen() -> None:
    pytest.importorskip("triton")
    found: dict[str, float] = json.loads(run("interpret_channels", "scan_mutants"))
    assert all(not error <= 1e-3 for error in found.values()), found
