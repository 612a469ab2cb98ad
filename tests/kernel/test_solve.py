"""The walks of `solve`, in Triton's interpreter against the fp64 reference."""

from __future__ import annotations

import json
from functools import cache

import pytest
from kernel.interpret_solve import MUTANTS
from kernel.solves import SPECS
from kernel.test_recurrent import run

LIMITS = {"float32": 6e-7, "one": 6e-7, "float16": 1e-3}


@cache
def errors() -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads(run("interpret_solve"))
    return found


@pytest.mark.parametrize("name", SPECS)
def test_walks_match(name: str) -> None:
    pytest.importorskip("triton")
    found = {key.split()[1]: one for key, one in errors().items() if key.split()[0] == name}
    assert {"u joined", "x joined", "state", "u pack", "x pack"} <= set(found["float32"])
    for case, one in found.items():
        assert max(one.values()) < LIMITS[case], one


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_do_not(name: str) -> None:
    pytest.importorskip("triton")
    assert max(errors()[name].values()) > 0.01
