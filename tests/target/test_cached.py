"""Kernels of decoding with a cache compile for GPUs, stay within registers and shared memory, and load ahead."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

import sma_compiler as sma
from sma_compiler.target.resources import resources

pytest.importorskip("triton")
from sma_compiler.target.compile import compile_call

BATCH, SLOTS, WIDTH = 64, 8192, 128
SHARED = 227 * 1024


def new(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize(
    ("name", "target", "heads", "groups", "dtype"),
    [
        ("attention", "sm_90", 32, 4, torch.float32),
        ("attention", "sm_90", 32, 4, torch.bfloat16),
        ("attention", "gfx942", 32, 4, torch.float32),
        ("forgetting", "sm_90", 16, 16, torch.float32),
    ],
)
def test_a_step_stays_on_chip(name: str, target: str, heads: int, groups: int, dtype: torch.dtype) -> None:
    op = sma.library(name)
    text = op.source("quadratic", {"B": BATCH, "T": 1, "H": heads, "K": WIDTH, "V": WIDTH}, target=target)
    cache = [new(BATCH, SLOTS, dtype=torch.int64), *(new(BATCH, SLOTS, groups, WIDTH, dtype=dtype) for _ in "kv")]
    given = [new(BATCH, 1, held, WIDTH) for held in (heads, groups, groups)]
    if name == "forgetting":
        given.append(new(BATCH, 1, heads, dtype=torch.float32))
        cache.append(new(BATCH, SLOTS, heads, dtype=torch.float32))

    def call(module: ModuleType) -> None:
        launch = getattr(module, f"{name}_cached")
        launch(*given, tuple(cache), new(BATCH, dtype=torch.int64), inplace=True)

    made = compile_call(text, call, target)
    assert [one.launch.kernel for one in made] == [f"{name}_{role}_kernel" for role in ("cached", "combine", "append")]
    assert made[0].launch.grid[0] * made[0].launch.grid[1] * made[0].launch.grid[2] > 2 * 132
    for one in made:
        assert resources(one).spilled == 0, resources(one)
        assert one.shared <= (SHARED if target == "sm_90" else 64 * 1024)
    if target == "sm_90":
        assert made[0].stages["ptx"].count("cp.async.cg") >= 2 * 64 * WIDTH * dtype.itemsize // (128 * 16)
