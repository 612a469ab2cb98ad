"""Runs emitted gradients in Triton's interpreter against autograd of the fp64 reference; prints errors as JSON.

Each op is run whole, and as two calls of which the second hands the cotangent of its initial state to the first.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import torch
from kernel.gradient_specs import GRADIENT_SPECS
from kernel.interpret import Arguments, arguments, part
from kernel.specs import LIBRARY, SPECS, compiled
from torch import Tensor

from sma_compiler.ir.nodes import Op
from sma_compiler.kernel import config
from sma_compiler.oracle.values import named
from sma_compiler.reference import evaluate
from sma_compiler.runtime.op import CompiledOp
from sma_compiler.target.compile import load_text

CHUNK = 16
SIZES = {"batch": 2, "head": 4, "key": 20, "value": 24}
LENGTHS = {"float32": (1, CHUNK - 1, CHUNK, CHUNK + 1, 90), "float16": (80,)}
RESULT = ("batch", "time", "head", "value")


def module(op: CompiledOp, dtype: str) -> ModuleType:
    """An op's file with chunks of 16, so that short sequences have several stretches."""
    small = config.Config(chunk=CHUNK, outer=16, warps=4, stages=1)
    config.forward = lambda *_, **__: small  # type: ignore[assignment]
    config.backward = lambda *_, **__: small
    with tempfile.TemporaryDirectory() as folder:
        return load_text(op.source("chunked", {}, dtype), Path(folder))


def given_to(op: Op, time: int, dtype: str) -> Arguments:
    """Random arguments: two heads of q, k for four of v, log gates from 0 to -0.5 and some of -30, -1e3, -inf."""
    found = arguments(op, {**SIZES, "time": time}, dtype, 2)
    for name, x in found.items():
        if isinstance(x, Tensor) and name == "g" and time > 40:
            x[:, 7], x[:, 33] = -30.0, -30.0
            if "exp(g)" not in op.text:
                x[:, 20], x[:, 65:66], x[:, 38] = -math.inf, -math.inf, -1e3
    return found


def reference(op: Op, given: Arguments, dy: Tensor) -> dict[str, Tensor]:
    """The gradients in fp64."""
    wide = {key: x.double().requires_grad_() if isinstance(x, Tensor) else x for key, x in given.items()}
    leaves = {key: x for key, x in wide.items() if isinstance(x, Tensor)}
    y = named(evaluate(op, wide), op.result.axes).aligned(RESULT)
    found = torch.autograd.grad(y, list(leaves.values()), dy.double(), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def gradients(op: Op, made: ModuleType, given: Arguments, dy: Tensor, **options: object) -> dict[str, Tensor]:
    """What the emitted file gives; the gradient of the initial state is called `state`."""
    found = getattr(made, f"{op.name}_backward")(dy, **given, **options)
    names = [decl.name for decl in op.params if not decl.number]
    return dict(zip([*names, "state"], found, strict=False))


def joined(op: Op, made: ModuleType, given: Arguments, dy: Tensor, normalised: bool) -> dict[str, Tensor]:
    """The same by two calls."""
    time, launch = dy.shape[1], getattr(made, op.name)
    middle = time // 3
    first, second = part(op, given, 0, middle), part(op, given, middle, time)
    _, state, *_ = launch(**first, return_state=True)
    saved: dict[str, object] = {}
    if normalised:
        y, norm = launch(**second, initial_state=state, return_norm=True)
        saved = {"norm": norm} if op.result.axes and "y" not in backward_options(op, made) else {"y": y, "norm": norm}
    late = gradients(op, made, second, dy[:, middle:], initial_state=state, **saved)
    early = gradients(op, made, first, dy[:, :middle], dstate=late["state"])
    long = {decl.name for decl in op.params if "time" in decl.dims}
    return {
        name: torch.cat([early[name], late[name]], 1) if name in long else early[name] + late[name] for name in early
    }


def error(found: Tensor, expected: Tensor) -> float:
    """Relative error in the mean square, of a gradient that vanishes the absolute one; infinite where not finite."""
    if not bool(found.isfinite().all()):
        return math.inf
    return float((found.double() - expected).norm() / max(float(expected.norm()), 0.1 * expected.numel() ** 0.5))


def backward_options(op: Op, made: ModuleType) -> tuple[str, ...]:
    """The names of the arguments that the backward launcher takes."""
    return getattr(made, f"{op.name}_backward").__code__.co_varnames


def main(names: list[str]) -> None:
    """Print, for every op, dtype and length, the errors of all gradients: of one call, and of two joined ones."""
    found: dict[str, dict[str, float]] = {}
    for name in names:
        op = compiled(name)
        for dtype, lengths in LENGTHS.items():
            made = module(op, dtype)
            for time in lengths:
                given = given_to(op.ir, time, dtype)
                dy = torch.randn(SIZES["batch"], time, SIZES["head"], SIZES["value"], dtype=getattr(torch, dtype))
                expected = reference(op.ir, given, dy)
                whole = gradients(op.ir, made, given, dy)
                errors = {key: error(whole[key], want) for key, want in expected.items()}
                if time > 40:
                    normalised = "return_norm" in getattr(made, op.ir.name).__code__.co_varnames
                    halves = joined(op.ir, made, given, dy, normalised)
                    errors |= {f"{key} joined": error(halves[key], want) for key, want in expected.items()}
                found[f"{name} {dtype} {time}"] = errors
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:] or [*LIBRARY, *SPECS, *GRADIENT_SPECS])
