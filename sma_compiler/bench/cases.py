"""The Mamba-2 layer of the standing measurements: inputs, and the programs that are compared on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from sma_compiler.bench.ssd_einsum import ssd
from sma_compiler.driver import compile_source
from sma_compiler.runtime.op import CompiledOp
from sma_compiler.source import Source

SSD_SIZES = {"batch": 1, "time": 4096, "head": 8, "key": 64, "value": 64}
"""The sizes that the chunked plan is compared with the einsum program at, in fp32."""

SSD_TEXT = """\
op ssd(q, k, v, g: [time, head]):
    return attend(decay(g), q, k, v)
"""

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def leaves(sizes: Mapping[str, int], seed: int = 0) -> Inputs:
    """q, k [B, T, H, K], v [B, T, H, V] and log gates g [B, T, H], fp32 leaves that require gradients."""
    torch.manual_seed(seed)
    batch, time, head = sizes["batch"], sizes["time"], sizes["head"]
    q, k = (torch.randn(batch, time, head, sizes["key"]) / sizes["key"] ** 0.5 for _ in range(2))
    v = torch.randn(batch, time, head, sizes["value"])
    g = F.logsigmoid(torch.randn(batch, time, head) + 2)
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), g.requires_grad_()


@cache
def ssd_op() -> CompiledOp:
    """The layer, compiled once."""
    return compile_source(Source(SSD_TEXT, "ssd.sma"))


def chunked(inputs: Inputs) -> Tensor:
    """The compiler's chunked plan, from the spec's text."""
    q, k, v, g = inputs
    y: Tensor = ssd_op()(q, k, v, g=g, plan="chunked")
    return y


def einsum(inputs: Inputs) -> Tensor:
    """The einsum program of the paper."""
    q, k, v, g = inputs
    return ssd(q, k, v, g)


CASES: dict[str, Callable[[Inputs], Tensor]] = {"chunked": chunked, "einsum": einsum}
