"""Kernels that invert chunks compile for every target, and leave nothing in memory that belongs in registers."""

from __future__ import annotations

import pytest
from kernel.inverses import compiled, text

from sma_compiler.target.arguments import example
from sma_compiler.target.resources import resources

pytest.importorskip("triton")
from sma_compiler.target.compile import compile_call


@pytest.mark.parametrize(
    ("name", "dtype", "target", "key"),
    [
        ("gated", "bfloat16", "sm_90", 128),
        ("gated", "float16", "sm_90", 256),
        ("gated", "float32", "sm_90", 128),
        ("gated", "bfloat16", "sm_80", 128),
        ("gated", "bfloat16", "gfx942", 64),
        ("per_key", "bfloat16", "sm_90", 128),
        ("per_key_open", "bfloat16", "sm_90", 64),
    ],
)
def test_fits_in_registers(name: str, dtype: str, target: str, key: int) -> None:
    op = compiled(name)
    sizes = {"batch": 8, "time": 4096, "head": 16, "key": key, "value": 128}
    given = example(op.ir, sizes, dtype, "meta")
    for one in compile_call(text(op, dtype, target), lambda module: getattr(module, name)(**given), target):
        found = resources(one)
        assert found.spilled < 256, one.launch.kernel
        assert found.shared <= 100 * 1024
