"""The cost model of the torch backend: what a plan asks of a device at given sizes, and the fastest legal plan.

Kernels have a model of their own, see `target.model`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sma_compiler.facts.sizes import to_sympy
from sma_compiler.ir.nodes import Attend, Expr, Solve
from sma_compiler.plan.choose import Choice
from sma_compiler.plan.devices import CPU, Device

CHUNK, PAIRWISE_CHUNK = 64, 16
"""Positions of a chunk: where its scores are one matrix product, and where channels are compared pair by pair."""

BLOCK = 256
"""Rows that the quadratic plan computes at once."""

CALLS = {"quadratic": 130.0, "recurrent": 75.0, "chunked": 160.0, "toeplitz": 120.0, "global": 50.0}
"""Operations of torch that a plan is, at any sizes."""
CHANNEL_CALLS = {"quadratic": 80.0, "chunked": 270.0}
"""More of them, where gates are per channel."""
STABILISED = 250.0
"""More of them, where a chunked plan keeps softmax stable."""
TURN = 10.0
"""More of them, for each chunk of a `solve`: there the chunks come one after the other."""
SMALL = 3.75
"""How much slower the small matrix products of chunks are than large ones."""
STEP_CALLS = 5.0
"""Operations of torch for each position of a recurrence, beside those that `Device.step` stands for."""
PAIR, SOFTMAX, MASK, CHANNEL = 2.5, 1.0, 18.0, 6.0
"""Simple operations for a pair of positions: plain; of its softmax; of a mask that is computed; for each channel."""
BACKWARD = 1.6
"""How much longer than the forward pass the backward pass takes."""


@dataclass(frozen=True)
class Work:
    """What one contraction asks for. matrix: operations of matrix products. simple: others. calls, steps: of torch."""

    matrix: float = 0.0
    simple: float = 0.0
    calls: float = 0.0
    steps: float = 0.0

    def seconds(self, device: Device) -> float:
        """On a device: operations in memory are paid at its bandwidth, where that is slower."""
        slow = max(1.0 / device.simple, 8.0 / device.bandwidth)
        return (
            self.matrix / device.single
            + self.simple * slow
            + self.calls * device.call
            + self.steps * (device.step + STEP_CALLS * device.call)
        )


def work(choice: Choice, plan: str, sizes: Mapping[str, int]) -> Work:
    """One contraction under a plan, forward, the whole batch."""
    steps = sizes.get("time", 1)
    key, value = (sizes.get(axis, 1) for axis in ("key", "value"))
    node, gate = choice.site.node, choice.site.facts.gate
    rows = float(sizes.get("batch", 1) * sizes.get("head", 1))
    per_channel = "key" in gate or "value" in gate
    channels = key if "key" in gate else value
    mask = MASK if gate != "none" or choice.site.decomposition.near else 0.0
    softmax = SOFTMAX if isinstance(node, Attend) and node.normalize == "softmax" else 0.0
    pair = Work(2.0 * (key + value), CHANNEL * channels if per_channel else PAIR + mask + softmax)
    solves = 2.0 if isinstance(node, Solve) else 1.0
    modes = sizes.get("mode", 1) if _waves(choice) else 1
    calls = solves * (CALLS.get(plan, 0.0) + (CHANNEL_CALLS.get(plan, 0.0) if per_channel else 0.0))
    if softmax and plan == "chunked":
        calls += STABILISED
    match plan:
        case "quadratic":
            live = rows * steps * _live(choice, steps, sizes)
            return Work(pair.matrix * live, pair.simple * live * max(1.0, modes / 2), calls)
        case "recurrent":
            gates = MASK * channels if per_channel else 0.0
            return Work(0.0, rows * steps * (0.5 * key * value * modes + gates), calls, solves * steps)
        case "chunked":
            chunk = min(PAIRWISE_CHUNK if per_channel else CHUNK, steps)
            state = 4.0 * key * value * modes
            products = SMALL * (chunk / 2 * pair.matrix + state)
            simple = (pair.simple * chunk / (3 if per_channel else 8) + 0.5 * (key + value)) * modes
            turns = TURN * -(-steps // CHUNK) if isinstance(node, Solve) else 0.0
            return Work(rows * steps * products, rows * steps * simple, calls + turns)
        case "toeplitz":
            return Work(0.0, rows * value * steps * (2.5 * math.log2(max(steps, 2)) + 4.0 * modes), calls)
        case "global":
            return Work(rows * steps * 4.0 * key * value, rows * steps * 8.0 * (key + value), calls)
    raise AssertionError(plan)


def _waves(choice: Choice) -> bool:
    """Whether the mask has streams for each mode."""
    return any(stream.contracted for stream in choice.site.decomposition.streams)


def seconds(choice: Choice, plan: str, sizes: Mapping[str, int], device: Device = CPU) -> float:
    """Predicted seconds of one contraction under a plan by the torch backend, forward."""
    return work(choice, plan, sizes).seconds(device)


def _live(choice: Choice, steps: int, sizes: Mapping[str, int]) -> float:
    """Columns a row visits, whole blocks of rows at a time: the band where it is known, half where it is causal."""
    decomposition = choice.site.decomposition
    lo, hi = (_at(bound, sizes) for bound in (decomposition.lo, decomposition.hi))
    half = min(float(steps), (steps + BLOCK) / 2)
    below = half if hi is None else min(half, max(hi, 0) + BLOCK)
    above = half if lo is None else min(half, max(-lo, 0) + BLOCK * (lo < 0))
    return min(float(steps), below + above)


def _at(bound: Expr | None, sizes: Mapping[str, int]) -> int | None:
    """A band's bound as a number, None where there is none or an int parameter of the call is not in `sizes`."""
    if bound is None:
        return None
    expr = to_sympy(bound)
    known = {symbol: sizes[str(symbol)] for symbol in expr.free_symbols if str(symbol) in sizes}
    found = expr.subs(known)
    return int(found) if found.is_Integer else None


def pick(choice: Choice, sizes: Mapping[str, int], requested: str = "auto", device: Device = CPU) -> str:
    """The plan of one contraction: the requested one where it is legal here, else the fastest legal one."""
    if requested in choice.legal:
        return requested
    return min(choice.legal, key=lambda name: seconds(choice, name, sizes, device))
