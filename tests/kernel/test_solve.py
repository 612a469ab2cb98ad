"""The walks of `solve`, in Triton's interpreter against the fp64 reference."""

from __future__ import annotations

import json
from functools import cache

import pytest
from kernel.interpret_solve import MUTANTS
from kernel.solves import SPECS
from kernel.test_recurrent import run

LIMIT = 6e-6
"""Relative errors of fp32 sums of a few hundred products."""


@cache
def errors() -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads(run("interpret_solve"))
    return found


@pytest.mark.parametrize("name", SPECS)
def test_walks_match(name: str) -> None:
    pytest.importorskip("triton")
    found = errors()[name]
    assert {"y", "y joined", "v joined", "y packed", "v packed"} <= set(found)
    assert max(found.values()) < LIMIT, found


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_do_not(name: str) -> None:
    pytest.importorskip("triton")
    assert max(errors()[name].values()) > 0.01
