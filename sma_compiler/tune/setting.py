"""What is tuned for: an op's arguments at some sizes, of a dtype, on a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sma_compiler.call_errors import MissingSize, dims_text
from sma_compiler.plan.devices import Device
from sma_compiler.runtime.args import Arguments, bind, check_turns, check_values
from sma_compiler.runtime.drawn import draw, heads_at
from sma_compiler.runtime.job import operand_name
from sma_compiler.runtime.kernels import has_triton, target_of
from sma_compiler.runtime.program import Program, concrete, row_of
from sma_compiler.runtime.records import Key
from sma_compiler.runtime.sizes import named_sizes
from sma_compiler.runtime.tuned import make_key, measured_sizes
from sma_compiler.verify.samples import default_sizes

FITTING = ("mode", "lag", "level")
"""Axes whose sizes follow from the others where they are not given."""


@dataclass(frozen=True)
class Situation:
    """What is planned for: an op at sizes, without tensors.

    sizes: of every axis, and `group`. row: what the device can do. target: of kernels; "" where none run. heads: of
    tensors, by name.
    """

    program: Program
    sizes: Mapping[str, int]
    numbers: Mapping[str, int | float]
    dtype: str
    row: Device
    target: str
    training: bool
    heads: Mapping[str, int]

    @property
    def known(self) -> dict[str, int]:
        """Sizes and integers by name."""
        return {**self.sizes, **{name: concrete(n) for name, n in self.numbers.items() if isinstance(n, int)}}


def situation(
    program: Program, shape: Mapping[str, int], dtype: str, row: Device, target: str, *, training: bool
) -> Situation:
    """Of a shape, see `from_shape`: its random arguments have these sizes."""
    op = program.op
    given, numbers = _given(program, shape)
    sizes = default_sizes(op, **given)
    axes = {axis for decl in op.params for axis in decl.dims}
    found = {axis: size for axis, size in sizes.items() if axis in axes}
    heads = heads_at(program, sizes)
    groups = [heads[decl.name] for decl in op.params if {"head", "key"} <= set(decl.dims)]
    found |= {"group": max(groups)} if groups else {}
    return Situation(program, found, numbers, dtype, row, target, training, heads)


@dataclass(frozen=True, eq=False)
class Setting:
    """arguments: those that are timed. training: whether gradients are wanted, too."""

    program: Program
    arguments: Arguments
    training: bool

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Of every axis, and `group`."""
        return measured_sizes(self.program, self.arguments)

    @property
    def numbers(self) -> Mapping[str, int | float]:
        """The number parameters."""
        return self.arguments.numbers

    @property
    def device(self) -> torch.device:
        """Of the tensors."""
        return self.arguments.device

    @cached_property
    def dtype_name(self) -> str:
        """Of what matrix products multiply."""
        tensors = list(self.arguments.tensors.values())
        wide = any(x.dtype == torch.float64 for x in tensors)
        return "float64" if wide else operand_name(self.program, tensors)

    @cached_property
    def situation(self) -> Situation:
        """The same without tensors."""
        target = kernel_target(self.device) if self.dtype_name != "float64" else ""
        given = self.program, self.sizes, self.numbers, self.dtype_name
        dims = {decl.name: decl.dims for decl in self.program.op.params}
        heads = {
            name: x.shape[dims[name].index("head")]
            for name, x in self.arguments.tensors.items()
            if "head" in dims[name]
        }
        return Situation(*given, row_of(self.device), target, self.training, heads)

    @property
    def dtype(self) -> torch.dtype:
        """The same."""
        found: torch.dtype = getattr(torch, self.dtype_name)
        return found

    def key(self, training: bool) -> Key:
        """Of the record."""
        return make_key(self.program, self.sizes, self.numbers, self.dtype_name, self.device, training=training)

    def __str__(self) -> str:
        letters = {"batch": "B", "time": "T", "head": "H", "key": "K", "value": "V", "group": "G"}
        integers = {name: n for name, n in self.numbers.items() if isinstance(n, int)}
        parts = [f"{letters.get(axis, axis)}={size}" for axis, size in {**self.sizes, **integers}.items()]
        return f"{self.program.op.name} {' '.join(parts)} {self.dtype_name} on {self.device}"


def from_shape(
    program: Program, shape: Mapping[str, int], dtype: torch.dtype, device: torch.device, *, training: bool, seed: int
) -> Setting:
    """Random arguments of a shape: sizes by axis or letter, and the op's integer parameters by name.

    Raises:
        CallError: a size is missing, unknown or not positive.
    """
    given, numbers = _given(program, shape)
    drawn = draw(program, default_sizes(program.op, **given), dtype, seed, device, drawn=device)
    return from_tensors(program, (), {**drawn, **numbers}, training=training)


def _given(program: Program, shape: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Sizes by axis, and integer parameters by name."""
    op = program.op
    integers = tuple(decl.name for decl in op.params if decl.number)
    given = named_sizes(op.label, shape, integers)
    numbers = {name: given.pop(name) for name in integers if name in given}
    for decl in op.params:
        for axis in decl.dims:
            if axis not in given and axis not in FITTING:
                raise MissingSize(op.label, axis, f"{decl.name!r} has the dimensions {dims_text(decl.dims)}")
    return given, numbers


def kernel_target(device: torch.device) -> str:
    """The target of kernels that a device runs; "" where it runs none."""
    return target_of(device) if device.type == "cuda" and has_triton() else ""


def from_tensors(
    program: Program, positional: Sequence[object], named: Mapping[str, object], *, training: bool
) -> Setting:
    """The arguments of a call, which are checked as those of a call are."""
    arguments = bind(program.op, positional, named)
    check_turns(program.op, program.roles, arguments)
    check_values(program.op, program.roles, arguments)
    tensors = {
        name: x.detach().requires_grad_(training and x.is_floating_point()) for name, x in arguments.tensors.items()
    }
    return Setting(program, Arguments(tensors, arguments.numbers, arguments.sizes), training)


def leaves(setting: Setting) -> list[Tensor]:
    """The tensors that have gradients."""
    return [x for x in setting.arguments.tensors.values() if x.requires_grad]
