"""Ops that solve compile for an H100 without a GPU."""

from __future__ import annotations

import pytest

from sma_compiler.interface import library
from sma_compiler.runtime.sizes import named_sizes
from sma_compiler.target.resources import resources

pytest.importorskip("triton")
from sma_compiler.target.compile import compile_text

SHAPE = {"B": 8, "T": 4096, "H": 16, "K": 128, "V": 128}


@pytest.mark.parametrize(
    ("name", "dtype"), [("gated_delta_net", "bfloat16"), ("kda", "bfloat16"), ("delta_net", "float32")]
)
def test_default_configurations_spill_little(name: str, dtype: str) -> None:
    op = library(name)
    made = compile_text(op.source("chunked", SHAPE, dtype), op.ir, named_sizes(op.name, SHAPE), dtype, "sm_90")
    spilled = {one.launch.kernel: resources(one).spilled for one in made if "_solve0_" in one.launch.kernel}
    assert max(spilled.values()) < 256, spilled
