"""Random arguments of the ops that are measured beside other implementations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sma_compiler.ir.nodes import Op

Input = Tensor | int
"""What an op of a row takes: a tensor, or the width of a window."""

DOCUMENTS = 12
"""In a row of positions."""
WINDOW = 8
"""A window has an eighth of the positions."""


@dataclass(frozen=True)
class Dice:
    """Random tensors of one shape, fp32, on one device. sizes: by axis, as of a row."""

    shape: tuple[int, ...]
    sizes: Mapping[str, int]
    generator: torch.Generator

    def normal(self) -> Tensor:
        """Of mean 0 and variance 1."""
        return torch.randn(self.shape, device=self.generator.device, generator=self.generator)

    def uniform(self) -> Tensor:
        """Between 0 and 1."""
        return torch.rand(self.shape, device=self.generator.device, generator=self.generator)

    def count(self) -> Tensor:
        """1, 2, 3, ... along the last axis."""
        return torch.arange(1.0, self.shape[-1] + 1, device=self.generator.device).expand(self.shape)


DRAWS: Mapping[str, Callable[[Dice], Tensor]] = {
    "q": lambda dice: dice.normal() / dice.sizes["key"] ** 0.5,
    "positive q": lambda dice: dice.uniform() / dice.sizes["key"] ** 0.5,
    "positive k": lambda dice: dice.uniform(),
    "dt": lambda dice: dice.normal() - 2,
    "a": lambda dice: -dice.uniform() - 0.5,
    "bias": lambda dice: dice.uniform(),
    "mamba1 dt": lambda dice: F.softplus(dice.normal() - 4),
    "mamba1 a": lambda dice: -dice.count(),
    "gamma": lambda dice: 1 - 2.0 ** (-4 - dice.count()),
    "g": lambda dice: F.logsigmoid(dice.normal()) / 16,
    "rwkv6 w": lambda dice: -torch.exp(dice.normal() / 2 - 3),
    "f": lambda dice: dice.normal() + 3,
    "slope": lambda dice: 2.0 ** (-8 * dice.count() / dice.shape[-1]),
    "doc": lambda dice: (dice.uniform().argsort(-1) < DOCUMENTS - 1).cumsum(-1),
}
"""By a parameter's name, after the op's where ops differ: gates as layers of such models make them. Others: normal."""

NARROW = {"q", "k", "v", "mamba1 dt"}
"""What is in bf16; gates and factors are in fp32."""
GROUPED = {"q", "k"}
"""What several heads may share."""


def inputs(
    op: Op, sizes: Mapping[str, int], device: torch.device | str, seed: int = 0, *, positive: bool = False
) -> dict[str, Input]:
    """Arguments by name. sizes: by axis, with `group`, the heads of q and k. positive: whether q and k are."""
    generator = torch.Generator(device=device).manual_seed(seed)
    found: dict[str, Input] = {}
    for decl in op.params:
        if decl.number:
            found[decl.name] = max(1, sizes["time"] // WINDOW)
            continue
        own = {**sizes, "head": sizes["group"]} if decl.name in GROUPED else sizes
        dice = Dice(tuple(own[axis] for axis in decl.dims), sizes, generator)
        names = [f"{op.name} {decl.name}", decl.name]
        if positive:
            names.insert(0, f"positive {decl.name}")
        x = next((DRAWS[name](dice) for name in names if name in DRAWS), None)
        x = dice.normal() if x is None else x
        found[decl.name] = x.bfloat16() if NARROW & set(names) else x
    return found
