"""Binds the arguments of a call to an op's parameters and checks all of them before any work is done."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor

from sma_compiler.call_errors import (
    BadSequenceBounds,
    EmptyAxis,
    HeadSize,
    MissingArgument,
    MixedDevices,
    NaNInGate,
    NoLength,
    NotATensor,
    NotFinite,
    PackedBatch,
    RepeatedArgument,
    SizeConflict,
    TooManyArguments,
    TooManyTurns,
    UnknownArgument,
    WrongDimensions,
    WrongElements,
    WrongNumber,
)
from sma_compiler.ir.nodes import Kind, Op, ParamDecl
from sma_compiler.ir.roles import Roles
from sma_compiler.torch_plans.readable import readable as readable

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
LARGEST = 2**62
"""Integer parameters lie within -LARGEST..LARGEST, so that sums with positions stay in 64 bits."""

Number = int | float


@dataclass(frozen=True)
class Arguments:
    """The checked arguments of a call.

    tensors: by parameter name, with the dimensions of the declaration (a step's tensors have a time axis of 1);
        integers are widened to int64.
    numbers: the number parameters.
    sizes: of every axis that some tensor has; `head` is the largest head size, `batch` the common batch.
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, Number]
    sizes: dict[str, int]

    @property
    def values(self) -> dict[str, Tensor | Number]:
        """All arguments by name."""
        return {**self.tensors, **self.numbers}

    @property
    def device(self) -> torch.device:
        """The device of all tensors."""
        return next(iter(self.tensors.values())).device

    @property
    def compute(self) -> torch.dtype:
        """The dtype that expressions are computed in: float64 where an input has it, else float32."""
        wide = any(tensor.dtype == torch.float64 for tensor in self.tensors.values())
        return torch.float64 if wide else torch.float32


def bind(op: Op, positional: Sequence[object], named: Mapping[str, object], *, step: bool = False) -> Arguments:
    """Match arguments to parameters in the order of the spec and check types, shapes, dtypes and devices.

    Args:
        op: the checked op.
        positional: arguments by position.
        named: arguments by name.
        step: whether the tensors are one position each, their time axis dropped.

    Raises:
        CallError: a subclass that names the tensor and its declaration.
    """
    given = _match(op, positional, named)
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Number] = {}
    for decl in op.params:
        value = given[decl.name]
        if decl.number:
            numbers[decl.name] = _number(op, decl, value)
        else:
            tensors[decl.name] = _tensor(op, decl, value, step)
    _check_devices(op, tensors)
    return Arguments(tensors, numbers, infer_sizes(op, tensors))


def _match(op: Op, positional: Sequence[object], named: Mapping[str, object]) -> dict[str, object]:
    names = [decl.name for decl in op.params]
    if len(positional) > len(names):
        raise TooManyArguments(op.label, len(positional), names)
    given = dict(zip(names, positional, strict=False))
    for name, value in named.items():
        if name not in names:
            raise UnknownArgument(op.label, name, names)
        if name in given:
            raise RepeatedArgument(op.name, op.params[names.index(name)])
        given[name] = value
    for decl in op.params:
        if decl.name not in given:
            raise MissingArgument(op.name, decl)
    return given


def _number(op: Op, decl: ParamDecl, value: object) -> Number:
    if decl.kind is Kind.INT:
        if isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
            raise WrongNumber(op.name, decl, "a Python int", value)
        if not -LARGEST <= value <= LARGEST:
            raise WrongNumber(op.name, decl, "an int of at most 62 bits", value)
        return cast(int, value)
    if isinstance(value, bool) or not isinstance(value, int | float | torch.SymInt | torch.SymFloat):
        raise WrongNumber(op.name, decl, "a Python float", value)
    if not -math.inf < value < math.inf:
        raise WrongNumber(op.name, decl, "a finite number", value)
    return float(value) if isinstance(value, int) else cast(float, value)


def _tensor(op: Op, decl: ParamDecl, value: object, step: bool) -> Tensor:
    if not isinstance(value, Tensor):
        raise NotATensor(op.name, decl, value)
    dims = [axis for axis in decl.dims if axis != "time"] if step else list(decl.dims)
    if value.dim() != len(dims):
        raise WrongDimensions(op.name, decl, dims, tuple(value.shape))
    if value.layout != torch.strided:
        raise WrongElements(op.name, decl, "in a dense (strided) tensor", value.layout)
    if decl.kind is Kind.REAL and value.dtype not in FLOATS:
        raise WrongElements(op.name, decl, "bfloat16, float16, float32 or float64", value.dtype)
    if decl.kind is Kind.INT and value.dtype not in INTEGERS:
        raise WrongElements(op.name, decl, "integers (int8 to int64)", value.dtype)
    if decl.kind is Kind.BOOL and value.dtype != torch.bool:
        raise WrongElements(op.name, decl, "torch.bool", value.dtype)
    if step and "time" in decl.dims:
        value = value.unsqueeze(decl.dims.index("time"))
    return value.to(torch.int64) if decl.kind is Kind.INT else value


def _check_devices(op: Op, tensors: Mapping[str, Tensor]) -> None:
    first = None
    for decl in op.params:
        if decl.number:
            continue
        device = tensors[decl.name].device
        if first is None:
            first = decl.name, device
        elif device != first[1]:
            raise MixedDevices(op.name, decl, device, *first)


def infer_sizes(op: Op, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The size of every axis, from tensors with the dimensions of their declarations.

    Batch sizes are 1 or B; head sizes divide the largest, H; all other sizes are equal wherever the axis occurs.
    """
    found: dict[str, list[tuple[ParamDecl, int]]] = {}
    for decl in op.params:
        if not decl.number:
            for axis, size in zip(decl.dims, tensors[decl.name].shape, strict=True):
                if size == 0 and axis in ("head", "key", "value", "lag", "level"):
                    raise EmptyAxis(op.name, decl, axis)
                found.setdefault(axis, []).append((decl, size))
    if "time" not in found:
        raise NoLength(op.label)
    sizes: dict[str, int] = {}
    for axis, owners in found.items():
        if axis == "head":
            sizes[axis] = _head_size(op, owners)
            continue
        widest, size = next(((d, n) for d, n in owners if axis != "batch" or n != 1), owners[0])
        for decl, other in owners:
            if other != size and not (axis == "batch" and other == 1):
                raise SizeConflict(op.name, decl, axis, other, widest.name, size)
        sizes[axis] = size
    return sizes


def _head_size(op: Op, owners: list[tuple[ParamDecl, int]]) -> int:
    largest, heads = owners[0]
    for decl, size in owners:
        if size > heads:
            largest, heads = decl, size
    for decl, size in owners:
        if heads % size != 0:
            raise HeadSize(op.name, decl, size, largest.name, heads)
    return heads


def self_check() -> bool:
    """Whether `SMA_SELF_CHECK=1` asks for every check of values, on any device."""
    return os.environ.get("SMA_SELF_CHECK", "0") not in ("", "0")


def check_turns(op: Op, roles: Roles, arguments: Arguments) -> None:
    """No more angles of a `rope` than the key has pairs."""
    key = arguments.sizes.get("key", 1)
    for decl in op.params:
        if decl.name in roles.turns and arguments.sizes["mode"] > key // 2:
            raise TooManyTurns(op.name, decl, arguments.sizes["mode"], key)


def check_values(op: Op, roles: Roles, arguments: Arguments) -> None:
    """No NaN in a gate (on the CPU, and anywhere under SMA_SELF_CHECK=1); finite q, k, v (under SMA_SELF_CHECK=1)."""
    for decl in op.params:
        if decl.number or decl.kind is not Kind.REAL:
            continue
        tensor = arguments.tensors[decl.name]
        if not readable(tensor) or not (self_check() or tensor.device.type == "cpu"):
            continue
        if decl.name in roles.gates and bool(tensor.isnan().any()):
            raise NaNInGate(op.name, decl, tensor.isnan().nonzero()[0].tolist())
        if decl.name in roles.operands - roles.gates and self_check() and not bool(tensor.isfinite().all()):
            raise NotFinite(op.name, decl)


def check_pack(op: Op, arguments: Arguments, cu_seqlens: Tensor, *, cut_by_values: bool = True) -> None:
    """`cu_seqlens`: int32 or int64 [S + 1] beside batches of 1; where readable, its values rise from 0 to T.

    cut_by_values: whether the rows will be cut by its values on the host, which are then checked on any device;
    else on the CPU, and anywhere under SMA_SELF_CHECK=1.
    """
    if not isinstance(cu_seqlens, Tensor):
        raise BadSequenceBounds(op.label, f"must be a tensor, not {type(cu_seqlens).__name__}")
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise BadSequenceBounds(op.label, f"must be int32 or int64, but is {cu_seqlens.dtype}")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
        raise BadSequenceBounds(op.label, f"must have shape [S + 1] with S >= 1, but has {list(cu_seqlens.shape)}")
    if cu_seqlens.device != arguments.device:
        raise BadSequenceBounds(op.label, f"is on {cu_seqlens.device}, but the tensors are on {arguments.device}")
    for decl in op.params:
        if "batch" in decl.dims:
            size = arguments.tensors[decl.name].shape[decl.dims.index("batch")]
            if size != 1:
                raise PackedBatch(op.name, decl, size)
    if readable(cu_seqlens) and (cut_by_values or self_check() or cu_seqlens.device.type == "cpu"):
        _check_bounds(op, cu_seqlens.tolist(), arguments.sizes["time"])


def _check_bounds(op: Op, bounds: list[int], length: int) -> None:
    if bounds[0] != 0:
        raise BadSequenceBounds(op.label, f"must start at 0, but starts at {bounds[0]}")
    for place, (start, end) in enumerate(pairwise(bounds)):
        if end < start:
            raise BadSequenceBounds(op.label, f"must not fall, but goes from {start} to {end} at entry {place + 1}")
    if bounds[-1] != length:
        raise BadSequenceBounds(op.label, f"must end at {length}, the length of the pack, but ends at {bounds[-1]}")
