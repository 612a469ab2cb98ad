"""What is measured beside other implementations: shapes, goals, and inputs for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sma_compiler.driver import compile_source
from sma_compiler.interface import library
from sma_compiler.runtime.op import CompiledOp
from sma_compiler.source import Source

NORMALISED = """\
op linear_attention_sum(q, k, v):
    return attend(causal, q, k, v, normalize=sum)
"""


@dataclass(frozen=True)
class Goal:
    """How many times as fast as the peer the op has to be, and is meant to be."""

    must: float
    aim: float


@dataclass(frozen=True)
class Row:
    """One shape.

    spec: a library name, or the text of an op. sizes: by axis, with `group`, the heads that q and k have. peers: names
    in `peers.PEERS`, the fastest counts. both: the goal of forward and backward together. positive: whether q and k
    are positive, as where rows are divided by the sum of their weights.
    """

    name: str
    spec: str
    sizes: Mapping[str, int]
    peers: tuple[str, ...]
    forward: Goal
    both: Goal
    positive: bool = False

    @property
    def op(self) -> CompiledOp:
        """The op."""
        return compile_source(Source(self.spec, f"{self.name}.sma")) if "op " in self.spec else library(self.spec)

    @property
    def shape(self) -> str:
        """`B8 T4096 H80 K128 V64 G1`."""
        return shape_text(self.sizes)


def shape_text(sizes: Mapping[str, int]) -> str:
    """Sizes by letter; G where several heads share q and k."""
    letters = {"batch": "B", "time": "T", "head": "H", "key": "K", "value": "V", "group": "G"}
    shown = {axis: size for axis, size in sizes.items() if axis != "group" or size != sizes["head"]}
    return " ".join(f"{letters[axis]}{size}" for axis, size in shown.items())


def _sizes(batch: int, time: int, head: int, key: int, value: int, group: int | None = None) -> dict[str, int]:
    return {"batch": batch, "time": time, "head": head, "key": key, "value": value, "group": group or head}


MAMBA = ("mamba_ssm",)
RETENTION = ("fla chunk_retention",)
ROWS = (
    Row("mamba2", "mamba2", _sizes(8, 4096, 80, 128, 64, 1), MAMBA, Goal(2.4, 3.5), Goal(2.1, 3.2)),
    Row("mamba2-k256", "mamba2", _sizes(4, 8192, 64, 256, 64, 1), MAMBA, Goal(1.6, 2.6), Goal(1.7, 2.8)),
    Row("mamba2-long", "mamba2", _sizes(1, 131072, 24, 128, 64, 1), MAMBA, Goal(2.4, 3.5), Goal(2.0, 3.2)),
    Row("mamba2-small", "mamba2", _sizes(2, 2048, 24, 64, 64, 1), MAMBA, Goal(4.5, 7), Goal(7, 12)),
    Row("retention", "retention", _sizes(8, 4096, 16, 128, 128), RETENTION, Goal(1.9, 2.4), Goal(1.5, 2.4)),
    Row(
        "retention-short",
        "retention",
        _sizes(8, 1024, 16, 128, 128),
        (*RETENTION, "fla parallel_retention"),
        Goal(1.6, 2.4),
        Goal(1.5, 2.4),
    ),
    Row("retention-wide", "retention", _sizes(8, 4096, 8, 256, 512), RETENTION, Goal(1.2, 2.2), Goal(1.7, 3)),
    Row(
        "linear",
        "linear_attention",
        _sizes(8, 4096, 16, 128, 128),
        ("fla chunk_linear_attn",),
        Goal(1.9, 2.4),
        Goal(1.5, 2.4),
    ),
    Row(
        "linear-sum",
        NORMALISED,
        _sizes(8, 4096, 16, 128, 128),
        ("fla chunk_linear_attn, normalized",),
        Goal(3, 5),
        Goal(2.7, 4.5),
        positive=True,
    ),
    Row(
        "linear-elu",
        "linear_attention_normalized",
        _sizes(8, 4096, 16, 128, 128),
        ("fla chunk_linear_attn, elu + 1, normalized",),
        Goal(3, 5),
        Goal(2.7, 4.5),
    ),
)
"""The shapes of chunked kernels."""

DECODE = {"batch": 128, "head": 80, "key": 128, "value": 64, "group": 1}
"""The decoding step: mamba2 with an fp32 state, in place."""
DECODE_GOAL = Goal(0.80, 0.92)
"""Of the bandwidth of a copy."""
HOST = {"batch": 1, "time": 64, "head": 2, "key": 64, "value": 64, "group": 1}
"""A shape so small that a call costs what the host costs."""
HOST_GOAL = Goal(60, 30)
"""Microseconds of the host for a call without gradients."""


def inputs(row: Row, sizes: Mapping[str, int], device: torch.device | str, seed: int = 0) -> dict[str, Tensor]:
    """Random arguments of a row's op by name: q, k and v in bf16, gates and factors in fp32."""
    generator = torch.Generator(device=device).manual_seed(seed)
    batch, time, head, key = sizes["batch"], sizes["time"], sizes["head"], sizes["key"]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, generator=generator)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, device=device, generator=generator)

    draw = uniform if row.positive else normal
    found = {
        "q": (draw(batch, time, sizes["group"], key) / key**0.5).bfloat16(),
        "k": draw(batch, time, sizes["group"], key).bfloat16(),
        "v": normal(batch, time, head, sizes["value"]).bfloat16(),
    }
    if row.spec == "mamba2":
        found |= {"dt": normal(batch, time, head) - 2, "a": -uniform(head) - 0.5}
        found |= {"bias": uniform(head), "d": normal(head)}
    if row.spec == "retention":
        found["gamma"] = 1 - 2.0 ** (-5 - torch.arange(head, device=device, dtype=torch.float32))
    return found


def trained(row: Row, arguments: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What gradients are taken of: all but a fixed decay."""
    return {name: x for name, x in arguments.items() if name != "gamma"}
