"""Kernels of the quadratic plan compile for GPUs, and stay within registers and shared memory."""

from __future__ import annotations

import pytest
import torch
from kernel.pair_specs import compiled

from sma_compiler.runtime.sizes import named_sizes
from sma_compiler.target.resources import resources

pytest.importorskip("triton")
from sma_compiler.target.compile import compile_text

SHAPE = {"B": 4, "T": 8192, "H": 16, "K": 128, "V": 128, "lag": 512}
ROLES = {
    "attention": ["forward", "dq", "dq", "dkv", "dkv"],
    "alibi": ["forward", "dq", "dq", "dkv", "dkv"],
    "sliding_window": ["forward", "dq", "dq", "dkv", "dkv"],
    "forgetting": ["gates", "forward", "gates", "dq", "dq", "dkv", "dkv", "chain"],
    "relative": ["gates", "forward", "gates", "dq", "dq", "dkv", "dkv", "lags", "lags", "chain"],
}
"""The launches of a call with gradients; those of queries, keys and taps once more for heads that need care."""

HELPERS = ("whole_kernel", "lengths_kernel", "fading_kernel", "total_kernel")
"""Kernels of helpers: what paths sum to, from what their chunks do, what they leave anything of, and gradients that
positions share."""


@pytest.mark.parametrize(("name", "width"), [(name, width) for name in ROLES for width in (64, 128, 256)])
def test_kernels_hold_their_tiles(name: str, width: int) -> None:
    op = compiled(name)
    shape = {**SHAPE, "K": width, "V": width}
    made = compile_text(op.source("quadratic", shape), op.ir, named_sizes(op.name, shape), "bfloat16", "sm_90")
    started = [one.launch.kernel for one in made if one.launch.kernel not in HELPERS]
    assert started == [f"{name}_{role}_kernel" for role in ROLES[name]]
    for one in made:
        found = resources(one)
        assert found.spilled < 256, found
        assert found.shared <= 227 * 1024, found
        if not one.launch.kernel.endswith(("gates_kernel", "chain_kernel", *HELPERS)):
            assert found.tensor_cores["wgmma"] or width > 128, found


@pytest.mark.parametrize("target", ["sm_80", "gfx942"])
@pytest.mark.parametrize("name", ["document_window", "fading_window"])
def test_other_targets(name: str, target: str) -> None:
    op = compiled(name)
    text = op.source("quadratic", SHAPE, target=target)
    starts = torch.empty(9, dtype=torch.int32, device="meta")
    shape = {**SHAPE, "B": 1}
    made = compile_text(text, op.ir, named_sizes(op.name, shape), "bfloat16", target, starts)
    assert all(one.binary for one in made)
