"""Gates that differ by channel, in Triton's interpreter: calls, states, packs, steps and all gradients."""

from __future__ import annotations

import json
from functools import cache

import pytest
from kernel.test_recurrent import run

LIMITS = {"float32": 6e-7, "float16": 1e-3, "start": 1e-6}
"""Relative errors by dtype; counted from the start of a chunk, fp32 exponents are differences."""


@cache
def errors() -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads(run("interpret_channels"))
    return found


def test_all_match_the_reference() -> None:
    pytest.importorskip("triton")
    for name, found in errors().items():
        assert max(found.values()) < LIMITS[name.split()[-1]], (name, found)


def test_planted_mistakes_are_seen() -> None:
    pytest.importorskip("triton")
    found: dict[str, float] = json.loads(run("interpret_channels", "mutants"))
    assert all(error > 1e-3 for error in found.values()), found
