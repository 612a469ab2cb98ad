"""What the pairs of a chunk are solved by, in Triton's interpreter against fp64."""

from __future__ import annotations

import json
from functools import cache

import pytest
from kernel.inverses import SPECS
from kernel.test_recurrent import run

LIMITS = {"float32": 2e-7, "float16": 1e-3, "pack": 1e-3, "narrow": 1e-2}
"""Of the largest entry: some roundings of N in fp32 and fp16, or of operands that powers of 2 decay."""
MUTANTS = ("no products", "wrong half", "own position", "not solved")


@cache
def errors() -> dict[str, float]:
    found: dict[str, float] = json.loads(run("interpret_inverse"))
    return found


@pytest.mark.parametrize("name", SPECS)
def test_inverses_match(name: str) -> None:
    pytest.importorskip("triton")
    found = {key.split()[1]: one for key, one in errors().items() if key.split()[0] == name}
    assert {"float32", "pack"} <= set(found)
    for case, one in found.items():
        assert one < LIMITS[case], case


@pytest.mark.parametrize("name", ["delta float16 alike", "per_key narrow alike"])
def test_so_they_do_where_all_keys_are_alike(name: str) -> None:
    pytest.importorskip("triton")
    assert errors()[name] < LIMITS[name.split()[1]]


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_do_not(name: str) -> None:
    pytest.importorskip("triton")
    assert errors()[name] > 0.1
