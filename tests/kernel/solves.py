"""Specs of `solve` alone, whose gates and paths are not those of the library's."""

from __future__ import annotations

from sma_compiler.driver import compile_source
from sma_compiler.runtime.op import CompiledOp
from sma_compiler.source import Source

SPECS = {
    "gated": "k, v, g: [time, head], beta: [time, head]): solve(strict * decay(g), beta * k, k, v)",
    "open_ends": "a: [time, head, key], k, v, g: [time, head], w: [time, head], c: [time, head]): "
    "solve(strict * exp(sum(g[t], j < t < i)) * decay(w) * sigmoid(c[j]), -a, l2norm(k), v)",
    "static": "k, v, c: [head], beta: [time, head]): solve(strict * retention(sigmoid(c)), beta * k, k, silu(v))",
}
"""For each its parameters, and its result."""


def compiled(name: str) -> CompiledOp:
    """One of the specs."""
    params, result = SPECS[name].split("): ")
    return compile_source(Source(f"op {name}({params}):\n    return {result}\n", name))
