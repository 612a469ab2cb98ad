"""Kernels of gates that differ by channel compile for every target, on tensor cores and without leaving registers."""

from __future__ import annotations

import pytest

from sma_compiler.driver import compile_source
from sma_compiler.interface import library
from sma_compiler.runtime.sizes import named_sizes
from sma_compiler.source import Source
from sma_compiler.target.resources import resources

pytest.importorskip("triton")
from sma_compiler.target.compile import compile_text

SHARED = 227 * 1024
"""Bytes that a program may have on an H100."""
SELDOM = 450
"""Bytes that are spilled where strong gates of open paths have their pairs by halves."""
LONG = 131072
"""Positions for which sequences are cut in parts."""


@pytest.mark.parametrize(
    ("name", "shape", "target", "cores", "most"),
    [
        ("gla", {"B": 8, "T": 4096, "H": 16, "K": 128, "V": 128}, "sm_90", "wgmma", 256),
        ("gla", {"B": 8, "T": 4096, "H": 4, "K": 256, "V": 512}, "sm_90", "wgmma", 256),
        ("rwkv6", {"B": 8, "T": 4096, "H": 32, "K": 64, "V": 64}, "sm_90", "wgmma", 256),
        ("rwkv6", {"B": 8, "T": 4096, "H": 16, "K": 128, "V": 128}, "sm_90", "wgmma", 256),
        ("hgrn2", {"B": 8, "T": 4096, "H": 16, "K": 128, "V": 128}, "sm_90", "wgmma", 256),
        ("gla", {"B": 8, "T": 4096, "H": 16, "K": 64, "V": 64}, "sm_80", "mma.sync", 256),
    ],
)
def test_fits_in_registers(name: str, shape: dict[str, int], target: str, cores: str, most: int) -> None:
    op = library(name)
    text = op.source("chunked", shape, target=target)
    for one in compile_text(text, op.ir, named_sizes(name, shape), "bfloat16", target):
        found = resources(one)
        assert found.tensor_cores[cores] > 0 or one.launch.kernel == "total_kernel"
        assert found.spilled < (SELDOM if one.launch.kernel.endswith("_dqk_wide_kernel") else most), one.launch.kernel
        assert found.shared <= SHARED


@pytest.mark.parametrize(
    ("name", "shape", "target", "dtype"),
    [
        ("mamba1", {"B": 8, "T": 4096, "H": 5120, "K": 16}, "sm_90", "bfloat16"),
        ("mamba1", {"B": 1, "T": LONG, "H": 1536, "K": 16}, "sm_90", "bfloat16"),
        ("rwkv4", {"B": 8, "T": 4096, "H": 2048}, "sm_90", "bfloat16"),
        ("rwkv4", {"B": 1, "T": LONG, "H": 1024}, "sm_90", "float32"),
        ("mamba1", {"B": 8, "T": 4096, "H": 5120, "K": 16}, "sm_80", "float32"),
    ],
)
def test_states_stay_in_registers(name: str, shape: dict[str, int], target: str, dtype: str) -> None:
    op = library(name)
    text = op.source("chunked" if shape["T"] == LONG else "recurrent", shape, dtype, target)
    for one in compile_text(text, op.ir, named_sizes(name, shape), dtype, target):
        found = resources(one)
        assert found.spilled < 256, one.launch.kernel
        assert found.shared <= SHARED


@pytest.mark.parametrize(("time", "dtype"), [(1, "float32"), (300, "bfloat16")])
def test_gates_by_value_channel_compile(time: int, dtype: str) -> None:
    text = (
        "op value_gates(q, k, v, g: [time, head, value]):\n    return attend(decay(g), q, k, v, scale=1 / sqrt(key))\n"
    )
    op = compile_source(Source(text, "value_gates"))
    shape = {"B": 2, "T": time, "H": 2, "K": 64, "V": 64}
    made = compile_text(op.source("chunked", shape, dtype), op.ir, named_sizes("value_gates", shape), dtype, "sm_90")
    assert {one.launch.kernel.removeprefix("value_gates_") for one in made} >= {"forward_kernel", "dv_kernel"}
