"""Runs the gradients of heads that share q and k, as `interpret_backward` does those of each head; prints the errors.

One group of two heads, and two groups of two; and two programs for a group. A mutant sums over the first head of a
group alone.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import torch
from kernel.interpret import arguments
from kernel.interpret_backward import CHUNK, SIZES, error, gradients, module, reference, run
from kernel.specs import compiled

from sma_compiler.kernel import config
from sma_compiler.kernel.config import Config
from sma_compiler.runtime.op import CompiledOp

NAMES = ("mamba2", "simple_gla", "unit_keys", "feature_maps", "open_ends", "factors")
MUTANTS = {
    "one head": ("tl.range(0, R, num_stages", "tl.range(0, 1, num_stages"),
    "no pairs": ("b_weights = b_weights + b_scores", "b_weights = b_weights"),
}


def few(common: Config, *_: object) -> dict[str, Config]:
    """The configuration of every op here."""
    small = replace(common, chunk=CHUNK, outer=16)
    return {"states": small, "dv": small, "dq": replace(small, warps=2), "dk": small}


def by_chunks(common: Config, *_: object) -> dict[str, Config]:
    """The same with dV by chunks too."""
    return {**few(common), "dstates": replace(common, chunk=CHUNK, outer=16)}


def divided(common: Config, *_: object) -> dict[str, Config]:
    """The same with two programs for a group."""
    return {role: replace(found, share=2) for role, found in few(common).items()}


def grouped(op: CompiledOp) -> dict[str, float]:
    """The errors with two groups of two heads."""
    sizes = {**SIZES, "time": 33, "head": 4}
    given = arguments(op.ir, sizes, "float32", 2)
    dy = torch.randn(sizes["batch"], 33, 4, sizes["value"])
    found = gradients(op.ir, module(op, "float32"), given, dy)
    return {key: error(found[key], want) for key, want in reference(op.ir, given, dy).items()}


def main(names: list[str]) -> None:
    """Print the errors of every op, and of mutants of the first."""
    config.shared = few
    found: dict[str, dict[str, float]] = {}
    for name in names:
        op = compiled(name)
        found[f"{name} float32"] = run(op, module(op, "float32"), "float32", 90)
        found[f"{name} groups"] = grouped(op)
    op = compiled("mamba2")
    found["mamba2 float16"] = run(op, module(op, "float16"), "float16", 80)
    found["mamba2 split"] = run(op, module(op, "float32", programs=64), "float32", 90)
    for name, (old, new) in MUTANTS.items():
        found[name] = run(op, module(op, "float32", old, new), "float32", 33)
    config.shared = by_chunks
    found["mamba2 chunks"] = run(op, module(op, "float32"), "float32", 33)
    found["mamba2 chunks-split"] = run(op, module(op, "float32", programs=64), "float32", 33)
    config.shared = divided
    found["mamba2 divided"] = run(op, module(op, "float32"), "float32", 33)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:] or list(NAMES))
