"""How long the kernels of a `solve` take, see `target.model`.

What the pairs of every chunk are solved by is made ahead, chunks in parallel. Then a walk passes the chunks one after
the other; the same walk from the end makes the adjoint, and the gradients are those of a contraction of these sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from sma_compiler.kernel.config import Config, power_of_two
from sma_compiler.plan.devices import Device
from sma_compiler.target.model import BYTES, STATE, VALUES, Part, Predicted, Shape, Turn, chunked, grid
from sma_compiler.target.model_channels import channelled
from sma_compiler.target.resources import Resources

INVERSE = 4.5
"""Products of two tiles of pairs that solving a chunk's pairs for the identity takes as long as."""


def solved(shape: Shape, configs: Mapping[str, Config], device: Device, used: Mapping[str, Resources]) -> Predicted:
    """The kernels of a solve. used: what compiled kernels need, by role."""
    walks = {role: _walk(role, shape, configs[role], device, used) for role in ("solve", "adjoint")}
    model = channelled(shape, {**configs, "forward": configs["solve"]}, device) if shape.channels else None
    if model is None:
        model = chunked(shape, {**configs, "forward": configs["solve"]}, device, used)
        ahead = [part for part in model.forward if part.role == "gates"]
        ahead.append(_inverse(shape, configs["solve"], device, used))
    else:
        ahead = [part for part in model.forward if part.role != "forward"]
    gradients = [part for part in model.backward if part.role != "dv"]  # those of its own value are not wanted
    return Predicted((*ahead, walks["solve"]), (*ahead[:-1], walks["adjoint"], *gradients))


def _inverse(shape: Shape, config: Config, device: Device, used: Mapping[str, Resources]) -> Part:
    """What the pairs of chunks are solved by, a program for each chunk."""
    c, key, size = config.chunk, max(16, power_of_two(shape.key)), BYTES[shape.dtype]
    moved = float((2 * c * key + c * c) * size)
    products = 2.0 * c * c * key + INVERSE * 2.0 * c**3
    turn = Turn(products, 1.0 * c * c * shape.gated, VALUES * c * c, moved, moved)
    programs = shape.batch * shape.head * math.ceil(shape.time / c)
    return grid("inverse", turn, programs, 1.0, config, key, c, shape, device, used)


def _walk(role: str, shape: Shape, config: Config, device: Device, used: Mapping[str, Resources]) -> Part:
    """A walk that takes what came before from what a chunk is solved for, and solves it."""
    c, key, size = config.chunk, max(16, power_of_two(shape.key)), BYTES[shape.dtype]
    tile = config.outer
    tiles = math.ceil(shape.value / tile)
    products = 2.0 * c * c * tile + 4.0 * c * key * tile
    moved = float((2 * c * key + c * c + 2 * c * tile) * size)
    fresh = (2.0 * c * key + c * c) * size / tiles + 2.0 * c * tile * size  # tiles share what is in the cache
    turn = Turn(products, 1.0 * c * shape.gated, VALUES * c * tile + STATE * key * tile, moved, fresh)
    turns = math.ceil(shape.time / c)
    return grid(role, turn, shape.batch * shape.head * tiles, turns, config, key, tile, shape, device, used)
