"""How long emitted kernels take, without running them: from facts, sizes, configurations and what they need of a GPU.

A chunked kernel is a grid of programs, each a loop over chunks. One turn of the loop costs, for o programs that share a
multiprocessor, the largest of what they ask of each unit together, and what one of them waits for by itself:

    turn(o) = max(o tensor cores, o exponentials, o simple operations, o memory,  alone)
    alone   = tensor cores + exponentials / 2 + simple operations + latency
    time    = (whole waves turn(occupancy) + turn(the rest)) chunks + launches

Registers and shared memory come from the compiled kernel where it was compiled before, else from tile sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from sma_compiler.kernel.config import Config, Recurrence, power_of_two
from sma_compiler.plan.devices import Device
from sma_compiler.target.resources import Resources

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
TENSOR_CORES = 0.339
"""Part of the rate of a large matrix product that products of tiles reach, in a loop that waits for each."""
PAIRS, VALUES, STATE = 10.0, 8.0, 2.94
"""Simple operations for each pair of a chunk, each value of a tile and chunk, each number of the state and chunk."""
CACHE = 3.0
"""How many times faster than memory the second-level cache is."""
CLOCK = 1.7e9
"""Instructions of a warp a second, where it has a scheduler to itself."""
MOST_REGISTERS = 255
SPILL = 1.5
"""How much slower a turn is where a program's tiles do not fit into its registers."""
ALLOWED = 256
"""Bytes of a thread's spills that cost nothing to speak of."""
PREFETCHED = {1: 1.0, 2: 0.384, 3: 0.6}
"""The part of a turn's latency that is left, by the stages in flight."""
NORMALISED = 1.84
"""What the divisors of rows add to a walk."""
RECURRENT = 13.9
"""Instructions of a recurrence for each number of the state and position."""
RECURRENT_BACKWARD = 3.64
"""How much longer than its forward pass the gradients of a recurrence take."""
BACKWARD_SUMS = 6.52
"""What sums over pairs for gates add to a walk of gradients."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a contraction. group: heads that q and k have. varying: whether gates vary in time.

    gated: whether pairs have a weight that is an exponential. streams: of the mask. live: part of the tiles of pairs
    that hold any, of tiles so small that their size does not matter; edges: what is added for each row or column that
    tiles have. channels: whether gates differ by channel of the keys or values.
    weighed: whether the quadratic plan has weights of pairs.
    stabilised: whether states are sums in units of the largest exponential.
    """

    batch: int
    time: int
    head: int
    key: int
    value: int
    group: int
    dtype: str
    gated: bool
    varying: bool
    normalised: bool
    streams: int = 1
    live: float = 0.5
    edges: float = 0.0
    channels: bool = False
    weighed: bool = False
    stabilised: bool = False

    def live_at(self, side: float) -> float:
        """The part of the tiles with sides of so many rows and columns that hold any pairs."""
        return min(1.0, self.live + self.edges * side)


@dataclass(frozen=True)
class Part:
    """One kernel. units: seconds that all its programs ask of each unit of the whole device.

    programs: how many; occupancy: how many share a multiprocessor; waves; seconds: what is predicted.
    """

    role: str
    seconds: float
    programs: int
    occupancy: int
    waves: float
    units: Mapping[str, float]

    @property
    def bound(self) -> str:
        """The unit that is asked most, or "latency" where none is busy for half of the time."""
        name, most = max(self.units.items(), key=lambda item: item[1], default=("latency", 0.0))
        return name if 2 * most >= self.seconds else "latency"


@dataclass(frozen=True)
class Predicted:
    """Forward and backward kernels."""

    forward: tuple[Part, ...]
    backward: tuple[Part, ...]

    def seconds(self, *, backward: bool) -> float:
        """Of one pass."""
        return sum(part.seconds for part in (self.backward if backward else self.forward))


def chunked(
    shape: Shape,
    configs: Mapping[str, Config],
    device: Device,
    used: Mapping[str, Resources],
) -> Predicted:
    """The kernels of the chunked plan. used: what compiled kernels need, by role."""
    forward = list(_walk("forward", shape, configs["forward"], device, used, "key", "value"))
    if shape.varying:
        forward.insert(0, stream("gates", shape, device, 8.0 * shape.head * shape.streams))
    if "backward" not in configs:
        return Predicted(tuple(forward), ())
    backward: list[Part] = []
    if shape.varying:
        backward.append(stream("gates", shape, device, 8.0 * shape.head * shape.streams))
    axes = {"dq": ("value", "key"), "dk": ("value", "key"), "dv": ("key", "value"), "again": ("key", "value")}
    together = "states" in configs
    by_chunk = {"dq", "dk"} if together else set()
    by_chunk |= {"dv"} if "dstates" in configs else set()
    for role, (inner, outer) in axes.items():
        if role in configs and role not in by_chunk:
            backward += _walk(role, shape, configs[role], device, used, inner, outer, keeps=together)
    if together:
        backward += _shared(shape, configs, device, used)
    if shape.gated:
        backward.append(stream("chain", shape, device, 24.0 * shape.head * shape.streams))
    return Predicted(tuple(forward), tuple(backward))


def recurrent(shape: Shape, chosen: Recurrence, device: Device) -> Predicted:
    """The kernels of the recurrent plan: positions one after another, with little but waiting in each."""
    inner = power_of_two(max(shape.key, 16))
    outer = max(1, chosen.elements // inner)
    programs = shape.batch * shape.head * math.ceil(shape.value / outer)
    elements = BYTES[shape.dtype]
    work = RECURRENT * inner * outer  # of a position, each an instruction of a thread
    units = {
        "simple": programs * shape.time * work / device.simple,
        "memory": programs * shape.time * (2 * inner + 2 * outer) * elements / (CACHE * device.bandwidth),
    }
    resident = max(
        1, min(32, device.registers // (32 * chosen.warps * min(MOST_REGISTERS, 64 + chosen.elements // 16)))
    )
    waves = programs / (device.processors * resident)
    alone = shape.time * (device.latency / (1 + chosen.stages) + work / (32 * chosen.warps) / CLOCK)
    seconds = max(math.ceil(waves) * alone, *units.values()) + device.launch
    part = Part("forward", seconds, programs, resident, waves, units)
    return Predicted((part,), (Part("walks", RECURRENT_BACKWARD * seconds, programs, resident, waves, units),))


def stream(role: str, shape: Shape, device: Device, bytes_: float) -> Part:
    """A kernel that does little but read and write so many bytes for each position."""
    seconds = shape.batch * shape.time * bytes_ / device.bandwidth
    return Part(role, seconds + device.launch, 0, 0, 0.0, {"memory": seconds})


def _walk(
    role: str,
    shape: Shape,
    config: Config,
    device: Device,
    used: Mapping[str, Resources],
    inner_axis: str,
    outer_axis: str,
    *,
    keeps: bool = False,
) -> list[Part]:
    """The kernels of one walk: scores ahead, and states of parts ahead, where it has them.

    keeps: whether the walk of dV writes the states of every chunk.
    """
    inner = max(16, power_of_two(getattr(shape, inner_axis)))
    tile = min(config.outer, max(config.outer if config.chunk >= 64 else 16, 16))
    tiles = math.ceil(getattr(shape, outer_axis) / tile)
    rows = shape.batch * shape.head * tiles
    chunks = math.ceil(shape.time / config.chunk)
    parts = min(chunks, max(1, config.programs // rows)) if config.programs else 1
    c, size = config.chunk, BYTES[shape.dtype]
    products = 2.0 * c * c * tile + 4.0 * c * inner * tile
    if not config.scores:
        products += 2.0 * c * c * inner
    if role in ("dq", "dk") and shape.gated:
        products += 2.0 * c * c * tile  # the scores again, for sums over pairs
    exps = c * c * shape.streams if shape.gated else 0.0
    simple = PAIRS * c * c * (0.5 + 0.5 * shape.gated) + VALUES * c * tile + STATE * inner * tile
    if role in ("dq", "dk") and shape.gated:
        simple *= BACKWARD_SUMS
    moved = (2.0 * c * inner + 2.0 * c * tile) * size + (c * c * size if config.scores else 0.0)
    if role == "dv" and keeps:
        moved += inner * tile * size
    distinct = moved * _fresh(shape, inner_axis, tiles)
    divided = NORMALISED if shape.normalised else 1.0
    turn = Turn(products * divided, exps, simple * shape.streams * divided, moved, distinct)
    found = []
    if config.scores:
        ahead = Turn(2.0 * c * c * inner, 0.0, 2.0 * c * c, 2 * c * inner * size, 2 * c * inner * size + c * c * size)
        found.append(
            grid("scores", ahead, shape.batch * shape.group * chunks, 1, config, inner, tile, shape, device, used)
        )
    if parts > 1:
        state = Turn(2.0 * c * inner * tile, 0.0, STATE * inner * tile + VALUES * c * tile, moved / 2, distinct / 2)
        local = grid(f"local_{role}", state, rows * parts, chunks / parts, config, inner, tile, shape, device, used)
        scan = stream("scan", shape, device, rows * parts * inner * tile * 8.0 / (shape.batch * shape.time))
        found += [local, scan]
    found.append(grid(role, turn, rows * parts, chunks / parts, config, inner, tile, shape, device, used))
    return found


def _fresh(shape: Shape, inner_axis: str, tiles: int) -> float:
    """The part of what a program reads that others have not read before it, and left in the cache."""
    shared = shape.group / shape.head if inner_axis == "key" else 1.0
    return min(1.0, 0.5 + 0.5 * shared / tiles)


def _shared(shape: Shape, configs: Mapping[str, Config], device: Device, used: Mapping[str, Resources]) -> list[Part]:
    """Gradients of q and k for all heads that share them: states of every chunk, then chunks in parallel."""
    size = BYTES[shape.dtype]
    c, key, value = configs["states"].chunk, max(16, power_of_two(shape.key)), max(16, power_of_two(shape.value))
    chunks, found = math.ceil(shape.time / c), []
    for role, states in (("dstates", 1), ("states", 2 if shape.gated else 1)):
        if role not in configs:
            continue
        config = configs[role]
        rows = shape.batch * shape.head * math.ceil(value / config.outer)
        parts = min(chunks, max(1, config.programs // rows)) if config.programs else 1
        moved = float((c * key + c * config.outer + states * key * config.outer) * size)
        distinct = moved - float(c * key * size) * (1 - shape.group / shape.head)
        state = Turn(2.0 * c * key * config.outer, 0.0, states * STATE * key * config.outer, moved, distinct)
        found.append(grid(role, state, rows * parts, chunks / parts, config, key, config.outer, shape, device, used))
        found += [replace(found[-1], role=f"local_{role}")] * (parts > 1)
    if "dstates" in configs:
        config = configs["dv"]
        programs = shape.batch * shape.head * chunks * math.ceil(value / config.outer)
        distinct = float((2 * c * config.outer + key * config.outer) * size)
        products = 2.0 * c * c * config.outer + 2.0 * c * key * config.outer
        turn = Turn(products, 1.0 * c * c, PAIRS * c * c, distinct + (c * key + c * c) * size, distinct)
        found.append(grid("dv", turn, programs, 1.0, config, key, config.outer, shape, device, used))
    for role in ("dk", "dq"):
        config = configs[role]
        programs = shape.batch * shape.group * chunks * math.ceil(key / config.outer) * config.share
        first = role == "dk"  # it weighs the pairs inside chunks, for both
        moved = ((1.0 + first) * c * value + config.outer * value) * size
        products = 2.0 * c * c * value * first + 2.0 * c * value * config.outer
        turn = Turn(products, 1.0 * c * c * first, BACKWARD_SUMS * PAIRS * c * c * first, moved, moved)
        turns = shape.head / shape.group / config.share
        found.append(grid(role, turn, programs, turns, config, value, config.outer, shape, device, used))
    return found


@dataclass(frozen=True)
class Turn:
    """What one turn of a program's loop asks for: operations, and bytes (of them those that come from memory)."""

    products: float
    exps: float
    simple: float
    moved: float
    distinct: float


def grid(
    role: str,
    turn: Turn,
    programs: int,
    turns: float,
    config: Config,
    inner: int,
    tile: int,
    shape: Shape,
    device: Device,
    used: Mapping[str, Resources],
) -> Part:
    """One kernel of so many programs with so many turns each."""
    resident, spills = occupancy(role, config, inner, tile, shape, device, used)
    rate = device.single if shape.dtype == "float32" else device.matrix * TENSOR_CORES
    each = {  # seconds that one program's turn keeps a multiprocessor's unit busy
        "tensor cores": turn.products / (rate / device.processors),
        "exponentials": turn.exps / (device.exps / device.processors),
        "simple": turn.simple / (device.simple / device.processors),
        "cache": turn.moved / (CACHE * device.bandwidth / device.processors),
        "memory": turn.distinct / (device.bandwidth / device.processors),
    }
    latency = device.latency * PREFETCHED.get(config.stages, PREFETCHED[3])
    alone = each["tensor cores"] + each["exponentials"] / 2 + each["simple"] + latency

    def lasts(o: int) -> float:
        return max(o * max(each.values()), alone) * (SPILL if spills else 1.0)

    slots = device.processors * resident
    full, left = divmod(programs, slots)
    rest = math.ceil(left / device.processors)
    seconds = (full * lasts(resident) + (lasts(rest) if rest else 0.0)) * turns
    units = {name: x * programs * turns / device.processors for name, x in each.items()}
    return Part(role, seconds + device.launch, programs, resident, programs / slots, units)


def occupancy(
    role: str,
    config: Config,
    inner: int,
    tile: int,
    shape: Shape,
    device: Device,
    used: Mapping[str, Resources],
) -> tuple[int, bool]:
    """How many programs share a multiprocessor, and whether a program's tiles are too many for its registers."""
    threads = 32 * config.warps
    if role in used:
        registers, shared, spills = used[role].registers, used[role].shared, used[role].spilled > ALLOWED
    else:
        c, size = config.chunk, BYTES[shape.dtype]
        held = inner * tile + c * c + 2 * c * tile
        wanted = held // threads + 56
        spills = wanted > MOST_REGISTERS + 40
        registers = min(wanted, MOST_REGISTERS)
        shared = (config.stages * (c * inner + c * tile) + c * inner + inner * tile) * size
    per_thread = -(-max(registers, 16) // 8) * 8
    fit = min(device.registers // (per_thread * threads), device.shared // max(shared, 1024), 2048 // threads)
    return max(1, fit), spills or fit < 1


def roof(shape: Shape, device: Device, *, backward: bool) -> tuple[float, str]:
    """The time that no chunked kernel goes below, and the unit that says so: everything read and written once, the
    products of half of a chunk's pairs."""
    size = BYTES[shape.dtype]
    rows = shape.batch * shape.time
    moved = rows * (2 * shape.group * shape.key + 2 * shape.head * shape.value) * size
    products = rows * shape.head * (64.0 * (shape.key + shape.value) + 4.0 * shape.key * shape.value)
    times = {
        "memory": moved * (2.0 if backward else 1.0) / device.bandwidth,
        "tensor cores": products * (2.5 if backward else 1.0) / device.matrix,
    }
    name = max(times, key=lambda unit: times[unit])
    return times[name], name
