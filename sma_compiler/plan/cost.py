"""A first cost model of the torch backend: operations of each plan at given sizes, and the cheapest legal one."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sma_compiler.facts.sizes import to_sympy
from sma_compiler.ir.nodes import Expr, Solve
from sma_compiler.plan.choose import Choice

CHUNK, PAIRWISE_CHUNK = 64, 16
"""Positions of a chunk: where its scores are one matrix product, and where channels are compared pair by pair."""

EXP = 16.0
"""Operations that one mask entry costs: a difference, an exponential, a product."""

STEP = 3e5
"""Operations that fit into the fixed cost of one step of a Python loop."""

CALL = 3e6
"""Operations that fit into the fixed cost of the many small calls of a chunked or FFT plan."""


def estimate(choice: Choice, plan: str, sizes: Mapping[str, int]) -> float:
    """Operations of one contraction under a plan, forward, the whole batch; only their order is meant."""
    steps = sizes.get("time", 1)
    key, value = (sizes.get(axis, 1) for axis in ("key", "value"))
    rows = sizes.get("batch", 1) * sizes.get("head", 1)
    per_channel = "key" in choice.site.facts.gate or "value" in choice.site.facts.gate
    pair = (8.0 * key + 2.0 * value) if per_channel else 2.0 * (key + value) + EXP
    match plan:
        case "quadratic":
            return rows * steps * _live(choice, steps, sizes) * pair
        case "recurrent":
            return steps * (rows * 6.0 * key * value + STEP * (2 if isinstance(choice.site.node, Solve) else 1))
        case "chunked":
            chunk = PAIRWISE_CHUNK if per_channel else CHUNK
            return rows * steps * (min(chunk, steps) * pair + 4.0 * key * value) + CALL
        case "toeplitz":
            return rows * value * 40.0 * steps * math.log2(max(steps, 2)) + CALL
        case "global":
            return rows * steps * 4.0 * key * value
    raise AssertionError(plan)


def _live(choice: Choice, steps: int, sizes: Mapping[str, int]) -> float:
    """Columns a row visits: the band where it is known, half of all where the mask is causal."""
    decomposition = choice.site.decomposition
    lo, hi = (_at(bound, sizes) for bound in (decomposition.lo, decomposition.hi))
    below = steps / 2 if hi is None else min(steps / 2, max(hi, 0) + 1)
    above = steps / 2 if lo is None else min(steps / 2, max(-lo, 0))
    return below + above


def _at(bound: Expr | None, sizes: Mapping[str, int]) -> int | None:
    """A band's bound as a number, None where there is none or an int parameter of the call is not in `sizes`."""
    if bound is None:
        return None
    expr = to_sympy(bound)
    known = {symbol: sizes[str(symbol)] for symbol in expr.free_symbols if str(symbol) in sizes}
    found = expr.subs(known)
    return int(found) if found.is_Integer else None


def pick(choice: Choice, sizes: Mapping[str, int], requested: str = "auto") -> str:
    """The plan of one contraction: the requested one where it is legal here, else the cheapest legal one."""
    if requested in choice.legal:
        return requested
    return min(choice.legal, key=lambda name: estimate(choice, name, sizes))
