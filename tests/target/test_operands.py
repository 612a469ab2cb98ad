"""Operands that are computed from tensors are computed once, though products and sums read them in several layouts."""

from __future__ import annotations

import re

import pytest
from kernel.specs import compiled

from sma_compiler.runtime.sizes import named_sizes

pytest.importorskip("triton")
from sma_compiler.target.compile import compile_text

SHAPE = {"B": 8, "T": 4096, "H": 16, "K": 128, "V": 128}
EACH = 2 * 64 * 128 // 128
"""Powers that a thread of 128 makes for q and k of a chunk, one an element."""


def powers(text: str) -> int:
    op = compiled("linear_attention_normalized")
    forward, *_ = compile_text(text, op.ir, named_sizes(op.name, SHAPE), "bfloat16", "sm_90")
    return len(re.findall(r"\bex2\.approx", forward.stages["ptx"]))


def test_feature_maps_are_computed_once() -> None:
    text = compiled("linear_attention_normalized").source("chunked", SHAPE)
    assert "num_stages=STAGES" in text
    once = powers(text)
    assert once == EACH
    unpinned = re.sub(r"PINNED=[^,]+,", "PINNED=False,", text)
    assert unpinned != text
    assert powers(unpinned) > once
