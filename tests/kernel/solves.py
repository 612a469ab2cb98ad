"""Files of `solve` alone: the launchers of its result and of its adjoint system, and the op that says what is right."""

from __future__ import annotations

from functools import partial

from sma_compiler.driver import compile_source
from sma_compiler.emit.file import MODULES, assembled, made_kernel
from sma_compiler.emit.gradients import Gradients
from sma_compiler.emit.module import library
from sma_compiler.emit.solve import solve
from sma_compiler.ir.graph import Graph
from sma_compiler.kernel import config
from sma_compiler.kernel.choices import DEFAULT, Choices
from sma_compiler.kernel.linear import linear
from sma_compiler.runtime.op import CompiledOp
from sma_compiler.source import Source

SIZES = {"batch": 8, "time": 4096, "head": 16, "key": 128, "value": 128}
SPECS = {
    "delta": ("k, v, beta: [time, head]", "strict, beta * k, k, beta * v"),
    "gated": ("k, v, g: [time, head], beta: [time, head]", "strict * decay(g), beta * k, k, v"),
    "open_ends": (
        "a: [time, head, key], k, v, g: [time, head], h: [time, head], c: [time, head]",
        "strict * exp(sum(g[t], j < t < i)) * decay(h) * sigmoid(c[j]), -a, l2norm(k), v",
    ),
    "static": ("k, v, c: [head], beta: [time, head]", "strict * retention(sigmoid(c)), beta * k, k, v"),
    "per_key": ("k, v, g: [time, head, key], beta: [time, head]", "strict * decay(g), beta * k, k, v"),
    "per_key_open": (
        "a: [time, head, key], k, v, g: [time, head, key]",
        "strict * exp(sum(g[t], j < t < i)), -a, k, v",
    ),
}
"""For each its parameters, and the arguments of `solve`."""


def compiled(name: str) -> CompiledOp:
    """One of the specs."""
    params, given = SPECS[name]
    return compile_source(Source(f"op {name}({params}):\n    return solve({given})\n", name))


def text(name: str, dtype: str, target: str = "sm_90", choices: Choices = DEFAULT) -> str:
    """A file with the launchers `name` and `name_adjoint`."""
    params, given = SPECS[name]
    mask, a, b, right = given.rsplit(", ", 3)
    spec = f"op {name}({params}, w: [time, head, value]):\n    return {right} - attend({mask}, {a}, {b}, w)\n"
    op = compile_source(Source(spec, name))
    member = linear(op.ir, op.program.plans, "chunked", exact=dtype == "float32")
    made = partial(made_kernel, wide=config.wide_products(dtype, target))
    reserved = frozenset({*MODULES, *library()})
    found = solve(member, Graph.of(op.ir.result), SIZES, dtype, target, choices, reserved, made)
    return assembled((), found.builders, found.kernels.values(), found.launchers, Gradients()).text
