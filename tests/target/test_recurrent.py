"""Kernels of the recurrent plan, of the decoding step and of packs compile for GPUs, and stay within registers."""

from __future__ import annotations

import pytest
import torch
from kernel.specs import compiled

from sma_compiler.runtime.sizes import named_sizes
from sma_compiler.target.resources import resources, sass

pytest.importorskip("triton")
from sma_compiler.target.compile import compile_text

SHAPE = {"B": 8, "T": 64, "H": 16, "K": 128, "V": 64}
KERNELS = ["forward", "dq", "dk", "dv", "chain", "total", "step"]


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_every_kernel_of_the_plan_stays_within_registers(target: str) -> None:
    op = compiled("mamba2")
    text = op.source("recurrent", SHAPE, target=target)
    made = compile_text(text, op.ir, named_sizes(op.name, SHAPE), "bfloat16", target)
    assert [one.launch.kernel.removeprefix("mamba2_") for one in made] == [f"{role}_kernel" for role in KERNELS]
    for one in made:
        assert resources(one).spilled == 0, resources(one)


def test_a_step_moves_its_state_in_wide_pieces() -> None:
    op = compiled("mamba2")
    made = compile_text(op.source("recurrent", SHAPE), op.ir, named_sizes(op.name, SHAPE), "bfloat16", "sm_90")
    code = sass(made[-1])
    tile = 128 * 64 // (128 * 4)
    assert code.count("LDG.E.128") >= tile
    assert code.count("STG.E.128") >= tile


@pytest.mark.parametrize("plan", ["chunked", "recurrent"])
@pytest.mark.parametrize(("dtype", "entries"), [(torch.int32, 9), (torch.int64, 2)])
def test_packs(plan: str, dtype: torch.dtype, entries: int) -> None:
    op = compiled("mamba2")
    shape = {**SHAPE, "B": 1, "T": 1000}
    starts = torch.empty(entries, dtype=dtype, device="meta")
    made = compile_text(op.source(plan, shape), op.ir, named_sizes(op.name, shape), "bfloat16", "sm_90", starts)
    assert all(one.binary for one in made)
