"""Random arguments for checking and timing kernels: with as many heads as calls have where some are shared."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sma_compiler.ir.nodes import ParamDecl
from sma_compiler.reference import Argument
from sma_compiler.runtime.program import Program
from sma_compiler.verify.samples import head_counts, samples


def draw(
    program: Program,
    sizes: Mapping[str, int],
    dtype: torch.dtype,
    seed: int,
    device: torch.device,
    *,
    drawn: torch.device | str = "cpu",
) -> dict[str, Argument]:
    """Arguments by name. sizes: as from `default_sizes`, with `group`. drawn: where, see `samples`."""
    op, heads = program.op, heads_at(program, sizes)
    found = samples(op, _apart(program, sizes), dtype, seed, device, drawn=drawn)
    for decl in op.params:
        x = found[decl.name]
        if isinstance(x, Tensor) and decl.name in heads:
            found[decl.name] = x.narrow(decl.dims.index("head"), 0, heads[decl.name]).contiguous()
    return found


def heads_at(program: Program, sizes: Mapping[str, int]) -> dict[str, int]:
    """How many heads each tensor has. Those of the linear family share queries and keys, of others keys and values."""
    found = head_counts(program.op, _apart(program, sizes))
    if "group" in sizes and _linear(program):
        found |= {decl.name: sizes["group"] for decl in program.op.params if _queried(program, decl)}
    return found


def _linear(program: Program) -> bool:
    return program.kernels.member is not None


def _apart(program: Program, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes with all heads apart, where it is not values that share them."""
    return {axis: n for axis, n in sizes.items() if axis != "group" or not _linear(program)}


def _queried(program: Program, decl: ParamDecl) -> bool:
    return {"time", "head", "key"} <= set(decl.dims) and decl.name not in program.roles.gates
