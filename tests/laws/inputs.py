"""Small random arguments for the library's ops."""

from __future__ import annotations

import torch

import sma_compiler as sma
from sma_compiler.runtime.op import Argument, CompiledOp
from sma_compiler.verify.samples import default_sizes, samples
from tests.laws import laws

NAMES = sma.library()
WITH_PLAN = [(name, plan) for name in NAMES for plan in laws.plans_of(sma.library(name))]
"""Each spec with each of its legal plans."""


def inputs(op: CompiledOp, dtype: torch.dtype = torch.float64, seed: int = 0, **sizes: int) -> dict[str, Argument]:
    full = {"batch": 2, "time": 23, "head": 2, "key": 4, "value": 3, "lag": 6, "level": 5} | sizes
    return samples(op.ir, default_sizes(op.ir, **full), dtype, seed)
