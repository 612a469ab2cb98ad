"""The quadratic plan's files in Triton's interpreter against the fp64 reference, and mutants that must not agree."""

from __future__ import annotations

import json
from functools import cache

import pytest
from kernel.pair_specs import LIBRARY, PAIR_SPECS
from kernel.test_recurrent import run

LIMITS = {"odd": 3e-6, "even": 4e-3, "one": 1e-6, "packed": 1e-6, "large": 4e-3, "fading": 4e-3, "joined": 2e-4}
"""Relative errors: of fp32 sums over a few hundred products, and of fp16 operands; sums over time are the worst."""
MUTANTS = (
    *("flipped mask", "late mask", "fewer tiles", "no decay", "no totals"),
    *("no shrinking", "no delta", "no scale", "open path", "one head", "no slope"),
    *(
        "no rows' exponents",
        "cut rows",
        "cuts inside",
        "no gap",
        "late cuts",
        "own cuts",
        "other levels",
        "one level",
        "fewer taps",
        "no floor",
        "nothing lost",
        "skipped rows",
        "skipped columns",
    ),
)


@cache
def errors() -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads(run("interpret_pairs"))
    return found


@pytest.mark.parametrize("name", [*LIBRARY, *PAIR_SPECS])
def test_results_and_gradients_match_the_reference(name: str) -> None:
    pytest.importorskip("triton")
    found = {key: one for key, one in errors().items() if key.split()[0] == name}
    assert f"{name} odd" in found
    for key, each in found.items():
        assert max(each.values()) < LIMITS[key.split()[1]], each


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_do_not(name: str) -> None:
    pytest.importorskip("triton")
    assert max(errors()[name].values()) > 1e-2
