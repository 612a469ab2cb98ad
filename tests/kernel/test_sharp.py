"""Gradients of quadratic kernels where nearly all rows have one pair alone, in Triton's interpreter, and mutants."""

from __future__ import annotations

import json
from functools import cache

import pytest
from kernel.test_recurrent import run


@cache
def ratios() -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads(run("interpret_sharp"))
    return found


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["attention", "alibi", "forgetting"])
def test_large_scores_keep_to_the_contract(name: str, dtype: str) -> None:
    found = ratios()[f"{name} {dtype}"]
    assert max(found.values()) <= 1, found


def test_rows_of_one_pair_have_no_gradients_though_products_round_apart() -> None:
    assert max(ratios()["alone"].values()) < 1e-30, ratios()["alone"]


def test_what_rounds_apart_would_be_seen() -> None:
    assert ratios()["rounding errors"]["d k"] > 1e-6


@pytest.mark.parametrize("name", ["hardly any", "twins"])
def test_rows_of_one_or_two_pairs_have_exact_gradients(name: str) -> None:
    assert max(ratios()[name].values()) < 0.01, ratios()[name]


@pytest.mark.parametrize("name", ["nothing low", "no twins"])
def test_what_is_lost_of_them_would_be_seen(name: str) -> None:
    assert ratios()[name]["d k"] > 0.1


@pytest.mark.parametrize("name", ["rounded delta", "rounded scores", "rounded logarithms", "no care"])
def test_mutants_break_the_contract(name: str) -> None:
    assert max(ratios()[name].values()) > 1, ratios()[name]
