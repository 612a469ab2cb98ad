"""How long the quadratic kernels take, see `target.model`: told apart by their tiles, and by how many run at once.

A program owns rows (of the gradients of keys: columns) and walks over the tiles of the other side that are live. Tiles
are products, then an exponential and a few operations for each pair, which hide behind one another only in part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sma_compiler.kernel.config import PairConfig, power_of_two
from sma_compiler.plan.devices import Device
from sma_compiler.target.model import ALLOWED, BYTES, CACHE, MOST_REGISTERS, SPILL, Part, Predicted, Shape
from sma_compiler.target.resources import Resources

PRODUCTS = 0.892
"""Part of the rate of a large matrix product that products of tiles reach."""
HIDDEN = 0.66
"""Part of the other units' work that hides behind products."""
WEIGHED = 12.6
"""Simple operations for each pair that a mask's weight adds."""
WAIT = 8.11e-07
"""Seconds that a tile waits for what it reads, where it is not prefetched."""
TURN = 6.67e-08
"""Seconds of a tile, whatever is in it, where the next one is prefetched."""


@dataclass(frozen=True)
class Side:
    """A kernel. keys, values: products of a tile that contract or make channels of each. simple: operations a pair.

    held: tiles of pairs that are in registers at once. columns: whether a program owns columns.
    """

    keys: int
    values: int
    simple: float
    held: int = 1
    columns: bool = False


SIDES = {"forward": Side(1, 1, 8.0), "dq": Side(2, 1, 1.0, held=2), "dkv": Side(2, 2, 10.0, held=2, columns=True)}


def quadratic(
    shape: Shape, configs: Mapping[str, PairConfig], device: Device, used: Mapping[str, Resources]
) -> Predicted:
    """The kernels of the quadratic plan. used: what compiled kernels need, by role."""
    parts = {role: _part(role, shape, configs[role], device, used) for role in SIDES if role in configs}
    return Predicted((parts.pop("forward"),), tuple(parts.values()))


def _part(role: str, shape: Shape, config: PairConfig, device: Device, used: Mapping[str, Resources]) -> Part:
    side = SIDES[role]
    key, value = (max(config.least, 16, power_of_two(n)) for n in (shape.key, shape.value))
    own, other = (config.columns, config.rows) if side.columns else (config.rows, config.columns)
    pairs = float(config.rows * config.columns)
    live = shape.live_at((config.rows + config.columns) / 2)
    most = math.ceil(shape.time / other)
    turns = max(1.0, live * most)
    programs = shape.batch * shape.head * math.ceil(shape.time / own)
    rate = device.single if shape.dtype == "float32" else device.matrix * PRODUCTS
    each = {  # seconds that one tile keeps a multiprocessor's unit busy
        "tensor cores": 2.0 * pairs * (side.keys * key + side.values * value) * device.processors / rate,
        "exponentials": pairs * shape.streams * device.processors / device.exps,
        "simple": pairs * (side.simple + WEIGHED * shape.weighed) * device.processors / device.simple,
        "cache": other * (key + value) * BYTES[shape.dtype] * device.processors / (CACHE * device.bandwidth),
    }
    beside = (each["exponentials"] + each["simple"]) * HIDDEN
    alone = each["tensor cores"] + beside + TURN + WAIT * (config.stages < 3)
    resident, spills = _room(role, side, config, key, value, shape, device, used)

    def lasts(o: int) -> float:
        return max(o * max(each.values()), o * (each["tensor cores"] + beside), alone) * (SPILL if spills else 1.0)

    slots = device.processors * resident
    waves = programs / slots
    if waves <= 1:
        seconds = min(most, 2 * turns) * lasts(math.ceil(programs / device.processors))
    else:
        seconds = (waves * turns + min(most, 2 * turns) / 2) * lasts(resident)
    units = {name: x * programs * turns / device.processors for name, x in each.items()}
    return Part(role, seconds + device.launch, programs, resident, waves, units)


def _room(
    role: str,
    side: Side,
    config: PairConfig,
    key: int,
    value: int,
    shape: Shape,
    device: Device,
    used: Mapping[str, Resources],
) -> tuple[int, bool]:
    """How many programs share a multiprocessor, and whether a program's tiles are too many for its registers."""
    threads = 32 * config.warps
    if role in used:
        registers, shared, spills = used[role].registers, used[role].shared, used[role].spilled > ALLOWED
    else:
        own, other = (config.columns, config.rows) if side.columns else (config.rows, config.columns)
        sums = own * ((key + value) if side.columns else value if side.held == 1 else key)
        wanted = (side.held * own * other + sums) // threads + 56
        registers, spills = min(wanted, MOST_REGISTERS), wanted > MOST_REGISTERS + 20
        kept = own * (key + (side.held - 1) * value)
        shared = (kept + max(1, config.stages - 1) * other * (key + value)) * BYTES[shape.dtype]
    per_thread = -(-max(registers, 16) // 8) * 8
    fit = min(device.registers // (per_thread * threads), device.shared // max(shared, 1024), 2048 // threads)
    return max(1, fit), spills or fit < 1
