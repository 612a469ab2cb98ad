"""Runs gradients of the recurrent plan in Triton's interpreter against fp64 autograd; prints errors as JSON."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import torch
from kernel import interpret_backward
from kernel.gradient_specs import GRADIENT_SPECS
from kernel.interpret_backward import compiled, error, given_to, gradients, joined, reference
from kernel.specs import SPECS

from sma_compiler.kernel import config
from sma_compiler.runtime.op import CompiledOp
from sma_compiler.target.compile import load_text

SIZES = {"batch": 1, "head": 2, "key": 12, "value": 9}
LENGTHS = (1, 45)
OPS = ["mamba2", "lightning", *SPECS, *GRADIENT_SPECS]


def module(op: CompiledOp) -> ModuleType:
    """An op's file with short chunks."""
    config.recurrent_backward = lambda _, **__: config.Config(chunk=4, outer=8, warps=1, stages=1)
    with tempfile.TemporaryDirectory() as folder:
        return load_text(op.source("recurrent", {}, "float32"), Path(folder))


def main(names: list[str]) -> None:
    """Print, for every op and length, the errors of all gradients: of one call, and of two joined ones."""
    interpret_backward.SIZES = SIZES
    found: dict[str, dict[str, float]] = {}
    for name in names:
        op = compiled(name)
        made = module(op)
        for time in LENGTHS:
            given = given_to(op.ir, time, "float32")
            dy = torch.randn(SIZES["batch"], time, SIZES["head"], SIZES["value"])
            expected = reference(op.ir, given, dy)
            whole = gradients(op.ir, made, given, dy)
            errors = {key: error(whole[key], want) for key, want in expected.items()}
            if time > 1:
                halves = joined(op.ir, made, given, dy)
                errors |= {f"{key} joined": error(halves[key], want) for key, want in expected.items()}
            found[f"{name} {time}"] = errors
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:] or OPS)
