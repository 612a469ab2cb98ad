"""The arithmetic of emitted kernels, in Triton's interpreter, against the fp64 reference."""

from __future__ import annotations

import json
from functools import cache

import pytest
from kernel.specs import LIBRARY, SPECS
from kernel.test_recurrent import run

LIMITS = {0: 5e-7, 1: 5e-7, 2: 6e-4, 3: 5e-7}
"""Relative errors by shape: fp32 sums of a few hundred products, and fp16 operands and results."""


@cache
def errors() -> dict[str, list[float]]:
    found: dict[str, list[float]] = json.loads(run("interpret"))
    return found


@pytest.mark.parametrize("name", [*LIBRARY, *SPECS])
def test_matches_the_reference(name: str) -> None:
    pytest.importorskip("triton")
    found = {int(key.split()[1]): pair for key, pair in errors().items() if key.split()[0] == name}
    assert {0, 2, 3} <= set(found)
    for shape, (whole, joined) in found.items():
        assert whole < LIMITS[shape]
        assert joined < LIMITS[shape]
