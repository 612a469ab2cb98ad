"""The kernels of gradients, one by one, in Triton's interpreter: against autograd of the fp64 reference."""

from __future__ import annotations

import json
from functools import cache

import pytest
from kernel.interpret_walks import CASES
from kernel.test_recurrent import run

LIMIT = 6e-7
"""Relative errors of fp32 sums of a few hundred products."""


@cache
def errors() -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads(run("interpret_walks"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_gradients_match_autograd(case: tuple[str, ...]) -> None:
    pytest.importorskip("triton")
    found = errors()[" ".join(case)]
    assert {f"{name} {calls}" for name in "qkv" for calls in ("whole", "joined")} <= set(found)
    assert max(found.values()) < LIMIT, found
