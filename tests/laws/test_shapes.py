"""Lengths around a chunk, sizes of 1, groups, one row for all, strides: each plan against the reference.

`SMA_LAWS` above 1 takes every length with every spec.
"""

from __future__ import annotations

import math
import os

import pytest
import torch
from torch import Tensor

import sma_compiler as sma
from tests.laws import laws
from tests.laws.inputs import NAMES, WITH_PLAN, inputs

MANY = int(os.environ.get("SMA_LAWS", "1"))
LENGTHS = (0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 131, 257)
CHOSEN = LENGTHS if MANY > 1 else (0, 1, 17)


@pytest.mark.parametrize("time", CHOSEN)
@pytest.mark.parametrize(("name", "plan"), WITH_PLAN)
def test_lengths(name: str, plan: str, time: int) -> None:
    op = sma.library(name)
    laws.check_plan(op, inputs(op, time=time, batch=1), plan)


@pytest.mark.parametrize(("name", "plan"), [("gla", "chunked"), ("mamba2", "chunked"), ("s4d", "toeplitz")])
@pytest.mark.parametrize("time", LENGTHS)
def test_every_length(name: str, plan: str, time: int) -> None:
    op = sma.library(name)
    laws.check_plan(op, inputs(op, time=time, batch=1), plan)


@pytest.mark.parametrize("sizes", [(1, 1, 4, 1), (1, 4, 4, 2), (5, 1, 2, 2), (2, 3, 1, 1)], ids=str)
@pytest.mark.parametrize(("name", "plan"), WITH_PLAN)
def test_sizes_of_one_and_groups(name: str, plan: str, sizes: tuple[int, int, int, int]) -> None:
    op = sma.library(name)
    key, value, head, group = sizes
    if name == "mamba3":  # its turns need a pair
        key = max(key, 2)
    given = inputs(op, time=19, key=key, value=value, head=head, group=group, mode=max(1, key // 2))
    laws.check_plan(op, given, plan)


@pytest.mark.parametrize("name", NAMES)
def test_each_tensor_alone_has_one_row_or_fewer_heads(name: str) -> None:
    op = sma.library(name)
    given = inputs(op, time=9, batch=3, head=4)
    plan = laws.plans_of(op)[-1]
    for decl in op.params:
        tensor = given[decl.name]
        if not isinstance(tensor, Tensor):
            continue
        if "batch" in decl.dims:
            laws.check_plan(op, {**given, decl.name: tensor[:1]}, plan)
        for group in (1, 2) if "head" in decl.dims else ():
            fewer = tensor.narrow(decl.dims.index("head"), 0, group)
            laws.check_plan(op, {**given, decl.name: fewer}, plan)


def strided(x: Tensor) -> Tensor:
    """The same values in reversed memory order with gaps."""
    room = torch.full([3 * size for size in reversed(x.shape)], math.nan if x.is_floating_point() else 0).to(x.dtype)
    view = room.permute(*reversed(range(x.dim())))[tuple(slice(0, 3 * size, 3) for size in x.shape)]
    return view.copy_(x)


@pytest.mark.parametrize(("name", "plan"), WITH_PLAN)
def test_strides_and_expanded_tensors(name: str, plan: str) -> None:
    op = sma.library(name)
    given = inputs(op)
    spread = {key: strided(x) if isinstance(x, Tensor) else x for key, x in given.items()}
    laws.assert_near(op(**spread, plan=plan), op.reference(**given), f"{name} {plan}, strided")
    expanded = {}
    for decl in op.params:
        x = given[decl.name]
        wide = isinstance(x, Tensor) and "head" in decl.dims
        expanded[decl.name] = x.narrow(decl.dims.index("head"), 0, 1).expand(x.shape) if wide else x
    laws.assert_near(op(**expanded, plan=plan), op.reference(**expanded), f"{name} {plan}, expanded")
