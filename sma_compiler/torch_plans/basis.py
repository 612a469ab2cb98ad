"""Kernels |i - j| ** degree * prod of cos or sin(rate * |i - j|), carried across a boundary by a few components.

Let x = s - j be the distance of a column from a boundary s at or after it, and u = i - s that of a row after it.
(u + x) ** p is a sum over `power` of binom(p, m) u^(p-m) * x^m, and cos and sin of rate * (u + x) are sums over `turn`
of two products: a state holds its columns times the column components, and a row reads it with the row components.
Moving the boundary by n steps is a small matrix. Distances stay small and positive, so nothing cancels.

Phases rate * distance are computed in fp64 and rounded after the sine or cosine is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sma_compiler.torch_plans.layout import apply, merge, multiply
from sma_compiler.torch_plans.named import Named


@dataclass(frozen=True)
class Basis:
    """degree: p. turns: `cos` or `sin` with its rate, static and in fp64. dtype: of the components."""

    degree: int
    turns: tuple[tuple[str, Named], ...]
    dtype: torch.dtype

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes that a state has for its components."""
        return ("power",) * (self.degree > 0) + ("turn",) * bool(self.turns)

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of `axes`."""
        return {"power": self.degree + 1, "turn": 2 ** len(self.turns)}

    def kernel(self, distance: Named) -> Named | None:
        """The kernel at distances >= 0 (integers of any axes); None: it is 1."""
        factors = [apply(_WAVE[fn], self._phase(rate, distance)) for fn, rate in self.turns]
        if self.degree:
            factors.append(Named(distance.data.to(torch.float64) ** self.degree, distance.axes))
        return multiply(*factors).to(self.dtype) if factors else None

    def rows(self, distance: Named) -> Named | None:
        """Row components at distance u >= 0 behind the boundary."""
        power = _stack([math.comb(self.degree, m) * _power(distance, self.degree - m) for m in range(self.degree + 1)])
        turns = []
        for fn, rate in self.turns:
            phase = self._phase(rate, distance)
            cos, sin = phase.data.cos(), phase.data.sin()
            parts = (cos, -sin) if fn == "cos" else (sin, cos)
            turns.append(Named(torch.stack(parts, -1), (*phase.axes, "turn")))
        return self._product(Named(power, (*distance.axes, "power")), turns)

    def columns(self, distance: Named) -> Named | None:
        """Column components at distance x >= 0 before the boundary."""
        power = _stack([_power(distance, m) for m in range(self.degree + 1)])
        return self._product(Named(power, (*distance.axes, "power")), self._circles(distance))

    def move(self, steps: Named) -> Named | None:
        """The matrices [power, power_from, turn, turn_from] that move the boundary by steps >= 0."""
        size = self.degree + 1
        rows = [_stack([math.comb(m, n) * _power(steps, max(m - n, 0)) for n in range(size)]) for m in range(size)]
        power = Named(torch.stack(rows, -2), (*steps.axes, "power", "power_from"))
        turns = []
        for _, rate in self.turns:
            phase = self._phase(rate, steps)
            turns.append(_matrix(phase, (("cos", 1), ("sin", -1)), (("sin", 1), ("cos", 1))))
        return self._product(power, turns)

    def mirror(self, position: Named) -> Named | None:
        """The matrices [turn, turn_from] between components about a boundary and components about the origin.

        About the origin, a column at position j has cos and sin of rate * j: such a state needs no turning as the
        boundary moves. `position` is the boundary's; the matrix is its own inverse.
        """
        turns = []
        for _, rate in self.turns:
            turns.append(_matrix(self._phase(rate, position), (("cos", 1), ("sin", 1)), (("sin", 1), ("cos", -1))))
        return _kronecker(turns).to(self.dtype) if turns else None

    def origin_rows(self, position: Named) -> Named | None:
        """Turning components that read a state about the origin at distance 0 behind the position's boundary."""
        turns = []
        for fn, rate in self.turns:
            phase = self._phase(rate, position)
            cos, sin = phase.data.cos(), phase.data.sin()
            parts = (cos, sin) if fn == "cos" else (sin, -cos)
            turns.append(Named(torch.stack(parts, -1), (*phase.axes, "turn")))
        return _kronecker(turns).to(self.dtype) if turns else None

    def origin_columns(self, position: Named) -> Named | None:
        """Turning components of columns in a state about the origin."""
        circles = self._circles(position)
        return _kronecker(circles).to(self.dtype) if circles else None

    def pascal(self, device: torch.device) -> Named | None:
        """The matrix [power, power_from] of one step; None: no powers."""
        if not self.degree:
            return None
        size = range(self.degree + 1)
        table = [[float(math.comb(m, n)) for n in size] for m in size]
        return Named(torch.tensor(table, dtype=self.dtype, device=device), ("power", "power_from"))

    def _circles(self, place: Named) -> list[Named]:
        phases = [self._phase(rate, place) for _, rate in self.turns]
        return [Named(torch.stack((phase.data.cos(), phase.data.sin()), -1), (*phase.axes, "turn")) for phase in phases]

    def _phase(self, rate: Named, place: Named) -> Named:
        return multiply(rate, place.to(torch.float64))

    def _product(self, power: Named, turns: list[Named]) -> Named | None:
        factors = [power] * (self.degree > 0) + ([_kronecker(turns)] if turns else [])
        return multiply(*factors).to(self.dtype) if factors else None


_WAVE = {"cos": torch.cos, "sin": torch.sin}


def _power(x: Named, exponent: int) -> Tensor:
    return x.data.to(torch.float64) ** exponent


def _stack(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts, -1)


def _matrix(phase: Named, *rows: tuple[tuple[str, int], tuple[str, int]]) -> Named:
    """[turn, turn_from] of signed sines and cosines."""
    entries = [torch.stack([sign * _WAVE[fn](phase.data) for fn, sign in row], -1) for row in rows]
    return Named(torch.stack(entries, -2), (*phase.axes, "turn", "turn_from"))


def _kronecker(factors: list[Named]) -> Named:
    """The product over turns, whose components multiply."""
    product = factors[0]
    for factor in factors[1:]:
        product = multiply(product.rename("turn", "half").rename("turn_from", "side"), factor)
        product = merge(product, "half", "turn", "turn")
        if "turn_from" in factor.axes:
            product = merge(product, "side", "turn_from", "turn_from")
    return product
