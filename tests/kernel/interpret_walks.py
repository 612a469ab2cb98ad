"""Runs the walks of gradients in Triton's interpreter against autograd of the fp64 reference; prints errors as JSON.

Each op is run whole, and as two calls of which the second hands the cotangent of its initial state to the first.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from kernel.interpret import Arguments, arguments, error, part
from kernel.specs import compiled
from kernel.walks import Built, build
from torch import Tensor

from sma_compiler.kernel.config import Config
from sma_compiler.reference import evaluate
from sma_compiler.runtime.op import CompiledOp
from sma_compiler.target.compile import load_text

CHUNK, OUTER = 16, 16
SIZES = {"batch": 1, "time": 90, "head": 2, "key": 20, "value": 24}
CASES = (
    ("retention",),
    ("simple_gla", "parts"),
    ("simple_gla", "cuts"),
    ("mamba2",),
    ("linear_attention_normalized", "parts"),
    ("two_streams", "parts"),
    ("mixed",),
    ("anticausal", "parts"),
    ("anticausal_sums",),
    ("mamba2", "exact"),
    ("mixed", "exact", "cuts"),
    ("anticausal", "exact"),
)
"""Ops; whether sequences are cut in parts, some gates are -inf, sums are as exact as fp32 can be."""

Tensors = dict[str, Tensor | float | None]
Launch = Callable[..., object]


def chunks(time: int) -> int:
    """How many chunks a sequence has."""
    return -(-time // CHUNK)


class Walks:
    """One op's walks and its forward launcher."""

    def __init__(self, op: CompiledOp, parts: bool, exact: bool) -> None:
        self.op = op
        self.built: Built = build(op, Config(CHUNK, OUTER, warps=4, stages=1, programs=64 if parts else 0), exact)
        with tempfile.TemporaryDirectory() as folder:
            self.walks: Launch = load_text(self.built.text, Path(folder)).walks
        with tempfile.TemporaryDirectory() as folder:
            text = op.source("chunked", SIZES, "float32")
            self.forward: Launch = getattr(load_text(text, Path(folder)), op.name)
        self.normalised = self.built.backward.dq.offset is not None

    def forwarded(self, given: Arguments, state: object) -> tuple[object, Tensors]:
        """The final state, and what a backward pass reads of the forward one."""
        options = {"return_norm": True} if self.normalised else {}
        y, final, *norm = self.forward(**given, initial_state=state, return_state=True, **options)
        return final, {"y": y, "norm": norm[0]} if self.normalised else {}

    def run(self, given: Arguments, reads: Tensors, initial: object, cotangent: Tensors) -> dict[str, Tensors]:
        """The tensors of every walk. cotangent: of the final state, by the names of the walks' initial states."""
        first = next(x for x in given.values() if isinstance(x, Tensor))
        batch, time, heads = first.shape[0], first.shape[1], SIZES["head"]
        shapes = {"key": SIZES["key"], "value": SIZES["value"]}
        held: dict[str, Tensors] = {}
        passed: Tensors = {"cu_seqlens": None, **given, **reads}
        states = initial if isinstance(initial, tuple) else (initial,)
        for walk in self.built.backward.walks:
            tiles = -(-shapes[walk.outer] // OUTER)
            own: Tensors = {}
            for (kind, number), name in self.built.names[walk.name].items():
                output = next((x for x in walk.outputs if x.name == kind), None)
                if output is not None:
                    wide = walk.outer in output.axes
                    shape = [batch, time, heads, shapes[walk.outer]] if wide else [tiles, batch, heads, time]
                    tensor = torch.full(shape, math.nan)
                elif kind.startswith("initial"):
                    which = number * (1 + self.normalised) + kind.endswith("vector")
                    tensor = states[which] if walk.name == "dq" else cotangent.get(name)
                elif kind == "final_matrix":
                    tensor = torch.full([batch, heads, shapes["key"], shapes["value"]], math.nan)
                elif kind == "final_vector":
                    tensor = torch.full([batch, heads, shapes["key"]], math.nan)
                else:
                    slots = chunks(time)
                    shape = {
                        "states": [batch, heads, slots, shapes["key"], shapes["value"]],
                        "vectors": [batch, heads, slots, shapes["key"]],
                        "anchors": [tiles, batch, heads, slots],
                    }.get(kind, [tiles, batch, heads, time])
                    made = torch.full(shape, math.nan)
                    tensor = passed.get(name, made) if kind in ("states", "vectors") else made
                own[f"{kind}{number}"] = passed[name] = tensor
            held[walk.name] = own
        self.walks(**passed)
        return held

    def handed(self, held: dict[str, Tensors]) -> Tensors:
        """The cotangent of the initial state, as the walks of an earlier call take it."""
        names = self.built.names
        found: Tensors = {}
        for number in range(len(self.built.backward.linear.terms)):
            matrix = held["dv"][f"final_matrix{number}"]
            found[names["dv"]["initial_matrix", number]] = found[names["dk"]["initial_matrix", number]] = matrix
            if self.normalised:
                found[names["dk"]["initial_vector", number]] = held["dk"][f"final_vector{number}"]
        return found

    def gradients(self, held: dict[str, Tensors]) -> dict[str, Tensor]:
        """What the walks alone bring to the gradients of q, k, v and of what else is theirs."""
        found: dict[str, Tensor] = {}
        for piece in self.built.backward.pieces:
            walk = next((own for own in held.values() if f"{piece.tensor}0" in own), None)
            tensor = walk[f"{piece.tensor}0"] if walk is not None else None
            if isinstance(tensor, Tensor) and piece.param in ("q", "k", "v"):
                found[piece.param] = found.get(piece.param, 0) + tensor
        return found

    def gates(self, held: dict[str, Tensors]) -> Tensor:
        """The gradient of the first stream's log gate, closed at the query alone, [B, T, H]."""
        net, inter, through, anchors = (
            sums.double().sum(0).movedim(-1, 0)  # [T, B, H], [chunks, B, H]
            for sums in (held["dq"]["net0"], held["dq"]["inter0"], held["dk"]["through0"], held["dk"]["anchors0"])
            if isinstance(sums, Tensor)
        )
        found = [
            over + (pairs + late).flip(0).cumsum(0).flip(0) + early.cumsum(0) - early
            for pairs, late, early, over in zip(*(x.split(CHUNK) for x in (net, inter, through)), anchors, strict=True)
        ]
        return torch.cat(found).movedim(0, 1)


def errors(name: str, parts: bool, cuts: bool, exact: bool) -> dict[str, float]:
    """The errors of every gradient, of one call and of two."""
    op = compiled(name)
    walks = Walks(op, parts, exact)
    given = arguments(op.ir, SIZES, "float32", SIZES["head"])
    if not cuts and isinstance(given.get("g"), Tensor):
        given["g"] = given["g"].clamp(min=-1.0)
    leaves = {name: x.double().requires_grad_() if isinstance(x, Tensor) else x for name, x in given.items()}
    expected = evaluate(op.ir, leaves)
    dy = torch.randn(expected.shape)
    expected.backward(dy.double())
    _, reads = walks.forwarded(given, None)
    nothing = (None,) * 4
    held = walks.run(given, {"dy": dy, **reads}, nothing, {})
    found = {f"{key} whole": value for key, value in walks.gradients(held).items()}
    middle = SIZES["time"] // 3
    spans = [(0, middle), (middle, SIZES["time"])]
    calls = sorted(spans, reverse=walks.built.backward.linear.backward)
    start, then = (part(op.ir, given, *span) for span in calls)
    state, start_reads = walks.forwarded(start, None)
    _, then_reads = walks.forwarded(then, state)
    second = walks.run(then, {"dy": dy[:, slice(*calls[1])], **then_reads}, state, {})
    first = walks.run(start, {"dy": dy[:, slice(*calls[0])], **start_reads}, nothing, walks.handed(second))
    ordered = sorted(zip(calls, (first, second), strict=True), key=lambda pair: pair[0])
    for key in "qkv":
        found[f"{key} joined"] = torch.cat([walks.gradients(held)[key] for _, held in ordered], 1)
    if name in ("simple_gla", "two_streams") and not cuts:
        found["g whole"] = walks.gates(held)
        found["g joined"] = torch.cat([walks.gates(first), walks.gates(second)], 1)
    return {key: error(value, leaves[key[0]].grad) for key, value in found.items()}


def main() -> None:
    """Print the errors of every case."""
    options = ("parts", "cuts", "exact")
    print(json.dumps({" ".join(case): errors(case[0], *(x in case for x in options)) for case in CASES}))


if __name__ == "__main__":
    main()
