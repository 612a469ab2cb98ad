"""Emitted gradients in Triton's interpreter against the fp64 reference, and mutants that must not agree with it."""

from __future__ import annotations

import json
from functools import cache

import pytest
from kernel.gradient_specs import GRADIENT_SPECS
from kernel.specs import LIBRARY, SPECS
from kernel.test_recurrent import run

LIMITS = {"float32": 6e-6, "float16": 4e-3}
"""Relative errors: of fp32 sums over a few hundred products, and of fp16 operands; sums over time are the worst."""
MUTANTS = (
    *("no anchor", "no keys", "forward sums", "flipped mask"),
    *("strict mask", "no decay", "no columns", "no pairs"),
    *("one part", "no value"),
)


@cache
def errors() -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads(run("interpret_backward"))
    return found


@pytest.mark.parametrize("name", [*LIBRARY, *SPECS, *GRADIENT_SPECS])
def test_gradients_match_the_reference(name: str) -> None:
    pytest.importorskip("triton")
    found = {tuple(key.split()[1:]): one for key, one in errors().items() if key.split()[0] == name}
    assert {("float32", "1"), ("float32", "50")} <= set(found)
    for (dtype, _), gradients in found.items():
        assert gradients
        assert max(gradients.values()) < LIMITS[dtype], gradients


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_do_not(name: str) -> None:
    pytest.importorskip("triton")
    assert max(errors()[name].values()) > 1e-2
