"""The walks of `solve` compile for an H100 without a GPU."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from kernel.solves import SIZES, compiled, text

from sma_compiler.target.arguments import example
from sma_compiler.target.resources import resources

pytest.importorskip("triton")
from sma_compiler.target.compile import compile_call


@pytest.mark.parametrize(("name", "dtype"), [("gated", "bfloat16"), ("per_key", "bfloat16"), ("gated", "float32")])
def test_default_configurations_spill_little(name: str, dtype: str) -> None:
    op = compiled(name)

    def call(module: ModuleType) -> None:
        given = example(op.ir, SIZES, dtype, "meta")
        u, inverse = getattr(module, name)(**given)
        getattr(module, f"{name}_adjoint")(torch.empty_like(u), *given.values(), inverse)

    made = compile_call(text(name, dtype), call, "sm_90")
    spilled = {one.launch.kernel: resources(one).spilled for one in made}
    assert max(spilled.values()) < 256, spilled
