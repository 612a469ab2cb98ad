"""What a kernel takes: pointers, strides, numbers and constants, each with the host expression that is passed."""

from __future__ import annotations

from collections.abc import Container

from sma_compiler.ir.nodes import ParamDecl
from sma_compiler.kernel.build import Builder, E, Operand, lift, path
from sma_compiler.kernel.nodes import Expr, Name, Parameter, Tile

LETTER = {"batch": "b", "time": "t", "head": "h", "key": "k", "value": "v", "lag": "l", "level": "l"}
"""How the stride of an axis is named; the last axis of channels has stride 1."""


class Arguments:
    """The parameters of one kernel, in the order: pointers, strides, numbers, constants.

    Each has a name of its own in the kernel, like the one asked for: what the host passes tells them apart.
    """

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self._groups: tuple[dict[str, E], ...] = ({}, {}, {}, {})
        self._made: dict[tuple[str, Expr], E] = {}

    def _add(self, group: int, name: str, host: Operand, tile: Tile) -> E:
        given = lift(host)
        key = (name, given.node)
        if key not in self._made:
            own = self.builder.fresh(name)
            self._made[key] = E(Name(tile, own))
            self._groups[group][own] = given
        return self._made[key]

    def pointer(self, name: str, host: Operand) -> E:
        """The first address of a tensor; None where there is none."""
        return self._add(0, f"{name}_ptr", host, Tile("ptr"))

    def stride(self, name: str, axis: str, host: E, dimension: int) -> E:
        """The stride of one dimension, in elements; that of time is compiled in, for addresses without registers."""
        group = 3 if axis == "time" else 1
        return self._add(group, f"{name}_stride_{LETTER[axis]}", host.attr("stride").call(dimension), Tile("int32"))

    def integer(self, name: str, host: Operand) -> E:
        """A number known at the launch."""
        return self._add(2, name, host, Tile("int32"))

    def real(self, name: str, host: Operand) -> E:
        """A real number known at the launch."""
        return self._add(2, name, host, Tile("fp32"))

    def constant(self, name: str, host: Operand) -> E:
        """A number that the kernel is compiled for."""
        return self._add(3, name, host, Tile("int32"))

    def give(self, name: str, host: Operand) -> None:
        """Pass a constant whose name the builder holds back."""
        self._groups[3][name] = lift(host)

    def restrict(self, uses: Container[str]) -> None:
        """Drop what the kernel does not mention."""
        for group in self._groups:
            for name in [name for name in group if name not in uses]:
                del group[name]

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The kernel's parameters."""
        return tuple(
            Parameter(name, constant=number == 3) for number, group in enumerate(self._groups) for name in group
        )

    def launch(self, kernel: str, grid: E, **options: Operand) -> E:
        """The expression that launches the kernel."""
        given = [host for group in self._groups[:3] for host in group.values()]
        return path(kernel).at(grid).call(*given, **self._groups[3], **options)


def strided(decl: ParamDecl) -> tuple[tuple[str, int], ...]:
    """The axes of a tensor that a kernel walks by stride, with their dimensions."""
    return tuple((axis, number) for number, axis in enumerate(decl.dims) if axis in ("batch", "time", "head"))
