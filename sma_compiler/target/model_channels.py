"""How long kernels of gates that differ by channel take, see `target.model`.

Where gates differ by channels of one axis, kernels make decayed queries and keys of every chunk ahead, and walks read
them: nearly all that they do is to read and to write. Where gates differ by both axes, a scan keeps the state in
registers, and what counts is instructions for each number of the state and position.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from sma_compiler.kernel.config import Config, power_of_two
from sma_compiler.plan.devices import Device
from sma_compiler.target.model import BYTES, Part, Predicted, Shape

WALK, GRADIENTS = 0.906, 1.87
"""How much longer than its reading and writing a kernel takes: one that walks, and one that makes gradients."""
TURN = 1.4e-6
"""Seconds of a turn of a walk, at least."""
EMPTY = 0.07
"""The time of a kernel that finds that another did its chunks, as a part of the time of the other."""
STEP = {"forward": 17.1, "again": 9.5, "back": 45.7}
"""Instructions of a scan for each number of the state and position."""
STABILISED = 9.16
"""How many times as many they are for sums in units of the largest exponential."""
CUT = 1.5
"""How much longer a scan of parts takes, whose states are made before."""
HELD, WIDE = 64, 32
"""Numbers of a tile that a thread holds, and values that a program has, beyond which a scan is slower."""
SCANS = 20
"""Programs of a warp that run at once on a multiprocessor."""


def channelled(shape: Shape, configs: Mapping[str, Config], device: Device) -> Predicted:
    """Chunks of gates that differ by channels of one axis."""
    size = BYTES[shape.dtype]
    key, value = (max(16, power_of_two(n)) for n in (shape.key, shape.value))
    chunk = configs["forward"].chunk
    rows = float(shape.batch * shape.time * shape.head)
    state = key * value / chunk * size

    def stream(role: str, numbers: float, factor: float = 1.0) -> Part:
        seconds = rows * numbers * factor / device.bandwidth
        return Part(role, seconds + device.launch, 0, 0, 0.0, {"memory": seconds})

    def walk(role: str, config: Config, inner: float, outer: int, more: float) -> Part:
        tiles = math.ceil(outer / config.outer)
        found = stream(role, tiles * inner * (0.5 + 0.5 / tiles) + 2.0 * outer * size + more, WALK)
        programs = shape.batch * shape.head * tiles
        resident = 2 if config.warps <= 4 else 1
        waves = programs / (device.processors * resident)
        alone = math.ceil(waves) * shape.time / config.chunk * TURN
        return Part(role, max(found.seconds, alone), programs, resident, waves, found.units)

    reads = (2.0 * size + 4.0) * key
    scores = stream("scores", reads + 2.0 * size * key + 4.0 * chunk)
    wide = stream("scores_wide", (reads + 2.0 * size * key) * EMPTY)
    forward = (scores, wide, walk("forward", configs["forward"], 2.0 * size * key + 4.0 * chunk, value, 0.0))
    if "dv" not in configs:
        return Predicted(forward, ())
    dqk = stream("dqk", reads + 4.0 * key + 2.0 * size * value + 2.0 * state + 2.0 * size * key, GRADIENTS)
    backward = (
        scores,
        wide,
        walk("states", configs.get("states", configs["dv"]), size * key, value, state),
        walk("dv", configs["dv"], 2.0 * size * key + 4.0 * chunk, value, state),
        dqk,
        stream("dqk_wide", (reads + 2.0 * state) * EMPTY),
    )
    return Predicted(forward, backward)


def scanned(shape: Shape, configs: Mapping[str, Config], device: Device) -> Predicted:
    """Positions one after another, of gates that differ by both axes."""
    numbers = float(shape.batch * shape.time * shape.head * shape.value * power_of_two(shape.key))
    numbers *= STABILISED if shape.stabilised else 1.0

    def part(role: str, config: Config) -> Part:
        held = config.chunk * config.outer * power_of_two(shape.key) / (32 * config.warps)
        slower = (1.0 + 0.2 * max(0.0, config.outer / WIDE)) * (1.0 + 0.5 * max(0.0, math.log2(held / HELD)))
        simple = numbers * STEP[role] * slower / device.simple
        tiles = math.ceil(shape.value / config.outer)
        rows = shape.batch * shape.head * tiles
        programs = max(rows, config.programs)
        waves = programs * config.warps / (device.processors * SCANS)
        few = max(1.0, 8 * device.processors / (programs * config.warps))  # too few to hide how long each step takes
        cut = CUT if role == "forward" and programs > rows else 1.0
        seconds = simple * few * cut + device.launch
        return Part(role, seconds, programs, SCANS, waves, {"simple": simple})

    roles = ("again", "back") if "back" in configs else ()
    base = configs.get("recurrent") or configs["forward"]
    return Predicted((part("forward", base),), tuple(part(role, configs[role]) for role in roles))
