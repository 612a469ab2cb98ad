"""Emitted kernels compile for every target with no GPU, and use its tensor cores without leaving registers."""

from __future__ import annotations

import pytest
from kernel.specs import compiled

from sma_compiler.interface import library
from sma_compiler.runtime.sizes import named_sizes
from sma_compiler.target.resources import resources, sass
from sma_compiler.target.stages import kernel_stage

pytest.importorskip("triton")
from sma_compiler.target.compile import compile_text

SHAPE = {"B": 8, "T": 4096, "H": 16, "K": 64, "V": 64}


@pytest.mark.parametrize(("target", "cores"), [("sm_80", "mma.sync"), ("sm_90", "wgmma"), ("gfx942", "mfma")])
def test_compiles_for_every_target(target: str, cores: str) -> None:
    op = compiled("mamba2")
    sizes = named_sizes(op.name, SHAPE)
    gates, forward, *_ = compile_text(op.source("chunked", SHAPE, target=target), op.ir, sizes, "bfloat16", target)
    found = resources(forward)
    assert found.tensor_cores[cores] > 0
    assert found.spilled <= 64
    assert resources(gates).registers < 64


def test_split_launches_its_three_kernels_first() -> None:
    op = compiled("retention")
    shape = {**SHAPE, "B": 1, "T": 65536}
    made = compile_text(op.source("chunked", shape), op.ir, named_sizes(op.name, shape), "bfloat16", "sm_90")
    names = [one.launch.kernel for one in made]
    assert names[:3] == ["retention_local_states_kernel", "scan_parts_kernel", "retention_forward_kernel"]
    assert "HGMMA" in sass(made[0])


@pytest.mark.parametrize(
    ("name", "plan", "dtype"),
    [
        ("retention", "chunked", "bfloat16"),
        ("simple_gla", "chunked", "bfloat16"),
        ("mamba2", "chunked", "float32"),
        ("mamba2", "quadratic", "float32"),
        ("mamba2", "quadratic", "bfloat16"),
        ("mamba2", "recurrent", "bfloat16"),
        ("linear_attention_normalized", "chunked", "float32"),
        ("linear_attention_full", "quadratic", "float32"),
        ("linear_attention_full", "quadratic", "bfloat16"),
        ("attention", "quadratic", "float32"),
    ],
)
def test_default_configurations_spill_little(name: str, plan: str, dtype: str) -> None:
    op, shape = library(name), {**SHAPE, "K": 128, "V": 128}
    made = compile_text(op.source(plan, shape, dtype), op.ir, named_sizes(op.name, shape), dtype, "sm_90")
    spilled = [(one.launch.kernel, resources(one).spilled) for one in made]
    assert all(bytes_of < 256 for _, bytes_of in spilled), spilled


def test_stages() -> None:
    op = compiled("retention")
    sizes = named_sizes(op.name, SHAPE)
    emitted = op.emitted("chunked", SHAPE, "bfloat16", "sm_90")
    marks = {
        "tile": "b_scores: fp32[C, C]",
        "triton": "@triton.jit",
        "ttir": "tt.dot",
        "ttgir": "ttng.warp_group_dot",
        "llir": "define",
        "ptx": "wgmma.mma_async",
        "sass": "HGMMA",
        "resources": "registers a thread",
    }
    for stage, mark in marks.items():
        text = "".join(kernel_stage(op.ir, emitted, stage, sizes, "bfloat16", "sm_90").values())
        assert mark in text, stage
