"""Tensors of given sizes for a call of an op."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sma_compiler.ir.nodes import Kind, Op
from sma_compiler.ir.roles import roles

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def example(op: Op, sizes: Mapping[str, int], dtype: str, device: str) -> dict[str, Tensor | int | float]:
    """Uninitialised arguments of an op. What a contraction multiplies has `dtype`, gates and factors are fp32.

    sizes: by axis, and integer parameters by name; `group` is how many heads those tensors have that share one among
    several, where it is given, and `v.head` how many v has.
    """
    cast = roles(op).cast
    found: dict[str, Tensor | int | float] = {}
    for decl in op.params:
        if decl.number:
            found[decl.name] = sizes.get(decl.name, 1) if decl.kind is Kind.INT else 1.0
            continue
        shared = "group" in sizes and "key" in decl.dims and "time" in decl.dims
        heads = sizes.get(f"{decl.name}.head", sizes["group"] if shared else sizes.get("head", 1))
        shape = [heads if axis == "head" else sizes[axis] for axis in decl.dims]
        kinds = {Kind.INT: torch.int64, Kind.BOOL: torch.bool}
        element = kinds.get(decl.kind, DTYPES[dtype] if decl.name in cast else torch.float32)
        found[decl.name] = torch.empty(shape, dtype=element, device=device)
    return found
