"""The accuracy contract of ops with a `solve` on Triton, in the interpreter, beside the torch backend."""

from __future__ import annotations

import json
from functools import cache

import pytest
from kernel.interpret_solved import CASES
from kernel.test_recurrent import run

import sma_compiler as sma


@cache
def failures() -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads(run("interpret_solved"))
    return found


@pytest.mark.parametrize("case", CASES)
def test_keeps_the_contract(case: str) -> None:
    pytest.importorskip("triton")
    assert failures()[case] == []


@pytest.mark.parametrize(
    ("name", "key", "dtype", "walks"),
    [
        ("delta_net", 128, "bfloat16", 4),
        ("delta_net", 64, "float16", 4),
        ("delta_net", 256, "bfloat16", 0),
        ("delta_net", 128, "float32", 0),
        ("gated_delta_net", 128, "bfloat16", 0),
    ],
)
def test_states_are_multiplied_in_two_parts_where_nothing_decays(name: str, key: int, dtype: str, walks: int) -> None:
    text = sma.library(name).source("chunked", {"B": 8, "T": 4096, "H": 16, "K": key, "V": 64}, dtype)
    assert text.count(" fine_dot(") - text.count("def fine_dot(") == walks
