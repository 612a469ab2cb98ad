"""What is measured beside other implementations: shapes, goals, and what gradients are taken of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sma_compiler.bench.peer_inputs import Input, inputs
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
    in `peers.PEERS`, the fastest counts; beside: more of them, which do not. both: the goal of forward and backward
    together. plan, backend: of the op's calls on a GPU; "triton" has kernels that "auto" leaves out until they were
    tried. fixed: arguments that no gradients are taken of. positive: whether q and k are positive, as where rows are
    divided by the sum of their weights.
    """

    name: str
    spec: str
    sizes: Mapping[str, int]
    peers: tuple[str, ...]
    forward: Goal
    both: Goal
    beside: tuple[str, ...] = ()
    plan: str = "auto"
    backend: str = "triton"
    fixed: tuple[str, ...] = ()
    positive: bool = False

    @property
    def op(self) -> CompiledOp:
        """The op."""
        return compile_source(Source(self.spec, f"{self.name}.sma")) if "op " in self.spec else library(self.spec)

    @property
    def shape(self) -> str:
        """`B8 T4096 H80 K128 V64 G1`."""
        return shape_text(self.sizes)

    def inputs(self, sizes: Mapping[str, int], device: torch.device | str, seed: int = 0) -> dict[str, Input]:
        """Random arguments of the op by name."""
        return inputs(self.op.ir, sizes, device, seed, positive=self.positive)

    def trained(self, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
        """What gradients are taken of: the op's arguments, or a peer's of the same names."""
        tensors = {name: x for name, x in arguments.items() if isinstance(x, Tensor) and name not in self.fixed}
        return {name: x for name, x in tensors.items() if x.is_floating_point()}


def shape_text(sizes: Mapping[str, int]) -> str:
    """Sizes by letter; G where several heads share q and k."""
    letters = {"batch": "B", "time": "T", "head": "H", "key": "K", "value": "V", "group": "G"}
    shown = {axis: size for axis, size in sizes.items() if axis != "group" or size != sizes["head"]}
    return " ".join(f"{letters[axis]}{size}" for axis, size in shown.items())


def _sizes(batch: int, time: int, head: int, key: int, value: int = 0, group: int | None = None) -> dict[str, int]:
    """Without a value axis where its size is 0."""
    values = {"value": value} if value else {}
    return {"batch": batch, "time": time, "head": head, "key": key, **values, "group": group or head}


FIXED = ("gamma",)
MAMBA = ("mamba_ssm",)
SCAN = ("mamba_ssm selective_scan",)
RETENTION = ("fla chunk_retention",)
PARALLEL = ("fla parallel_retention",)
ATTENTION = _sizes(4, 8192, 16, 128, 128)
ROWS = (
    Row("mamba2", "mamba2", _sizes(8, 4096, 80, 128, 64, 1), MAMBA, Goal(2.4, 3.5), Goal(2.1, 3.2)),
    Row("mamba2-k256", "mamba2", _sizes(4, 8192, 64, 256, 64, 1), MAMBA, Goal(1.6, 2.6), Goal(1.7, 2.8)),
    Row("mamba2-long", "mamba2", _sizes(1, 131072, 24, 128, 64, 1), MAMBA, Goal(2.4, 3.5), Goal(2.0, 3.2)),
    Row("mamba2-small", "mamba2", _sizes(2, 2048, 24, 64, 64, 1), MAMBA, Goal(4.5, 7), Goal(7, 12)),
    Row(
        "retention",
        "retention",
        _sizes(8, 4096, 16, 128, 128),
        RETENTION,
        Goal(1.9, 2.4),
        Goal(1.5, 2.4),
        fixed=FIXED,
    ),
    Row(
        "retention-short",
        "retention",
        _sizes(8, 1024, 16, 128, 128),
        RETENTION + PARALLEL,
        Goal(1.6, 2.4),
        Goal(1.5, 2.4),
        fixed=FIXED,
    ),
    Row(
        "retention-wide",
        "retention",
        _sizes(8, 4096, 8, 256, 512),
        RETENTION,
        Goal(1.2, 2.2),
        Goal(1.7, 3),
        fixed=FIXED,
    ),
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
    Row("gla-wide", "gla", _sizes(8, 4096, 4, 256, 512), ("fla chunk_gla",), Goal(2.0, 3.5), Goal(1.7, 3.5)),
    Row("gla", "gla", _sizes(8, 4096, 16, 128, 128), ("fla chunk_gla",), Goal(2.7, 3.8), Goal(2.2, 4)),
    Row("rwkv6", "rwkv6", _sizes(8, 4096, 32, 64, 64), ("fla chunk_rwkv6",), Goal(1.6, 3), Goal(1.6, 3.5)),
    Row("mamba1", "mamba1", _sizes(8, 4096, 5120, 16), SCAN, Goal(1.2, 3), Goal(2.0, 4)),
    Row("mamba1-long", "mamba1", _sizes(1, 131072, 1536, 16), SCAN, Goal(1.2, 3), Goal(2.0, 4)),
    Row(
        "attention",
        "attention",
        ATTENTION,
        ("flex, causal",),
        Goal(1.05, 1.42),
        Goal(1.0, 1.3),
        beside=("cudnn, causal",),
    ),
    Row("window", "sliding_window", ATTENTION, ("flex, window",), Goal(1.15, 1.6), Goal(1.1, 1.5)),
    Row("documents", "document", ATTENTION, ("flex, documents",), Goal(1.1, 1.5), Goal(1.1, 1.5)),
    Row("alibi", "alibi", ATTENTION, ("flex, alibi",), Goal(1.1, 1.5), Goal(1.05, 1.4), fixed=("slope",)),
    Row("forgetting", "forgetting", ATTENTION, ("fla parallel_forgetting_attn",), Goal(1.2, 1.6), Goal(1.8, 2.5)),
    Row(
        "retention-quadratic",
        "retention",
        _sizes(8, 1024, 16, 128, 128),
        PARALLEL,
        Goal(1.8, 2.4),
        Goal(1.6, 2.4),
        plan="quadratic",
        fixed=FIXED,
    ),
)
"""The shapes; cuDNN's attention is what the aim of causal softmax lies past."""

STEP = {"batch": 128, "head": 80, "key": 128, "value": 64, "group": 1}
"""The decoding step of a recurrence: mamba2 with an fp32 state, in place."""
STEP_GOAL = Goal(0.80, 0.92)
"""Of the bandwidth of a copy."""
DECODE = {"batch": 64, "time": 8192, "head": 32, "key": 128, "value": 128, "group": 4}
"""The decoding step of causal softmax, in place, with a cache in bf16 of as many positions as `time`."""
DECODE_GOAL = Goal(0.75, 0.90)
"""Of the bandwidth of a copy."""
HOST = {"batch": 1, "time": 64, "head": 2, "key": 64, "value": 64, "group": 1}
"""A shape so small that a call costs what the host costs."""
HOST_GOAL = Goal(60, 30)
"""Microseconds of the host for a call without gradients."""
