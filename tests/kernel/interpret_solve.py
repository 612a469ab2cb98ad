"""Runs the walks of `solve` in Triton's interpreter against fp64; prints errors as JSON.

Each is run whole; as two calls, of which the second hands the cotangent of its state to the first; and as a pack.
Log gates are mixed: weak, strong, and some that cut.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import torch
from kernel.interpret import Arguments, error, part
from kernel.solves import SPECS, compiled, text
from torch import Tensor

from sma_compiler.ir.nodes import Op
from sma_compiler.kernel import config
from sma_compiler.reference import evaluate
from sma_compiler.target.compile import load_text

CHUNK = 16
SIZES = {"batch": 1, "head": 2, "key": 10, "value": 18}
STARTS = (0, 1, 1, 19)
"""Where the sequences of a pack begin."""
MUTANTS = {
    "no inverse": "tl.dot(b_n, b_r.to(DOT), b_r, input_precision=PRECISION)",
    "no state": "b_s.to(DOT)",
    "no decay": "b_s * b_across",
    "not transposed": "b_x = tl.dot(b_n,",
}
TEXTS = ("b_r + 0.0", "(0.0 * b_s).to(DOT)", "b_s * 1.0", "b_x = tl.dot(tl.trans(b_n),")
"""For each mutant a text of the file of `gated`, and what takes its place."""


def given_to(op: Op, time: int, dtype: str) -> Arguments:
    """Random arguments: one head of a and b for two of the values."""
    torch.manual_seed(0)
    found: Arguments = {}
    for decl in op.params:
        sizes = {**SIZES, "time": time, "head": 1 if decl.name in "ak" else SIZES["head"]}
        value = torch.randn([sizes[axis] for axis in decl.dims])
        if decl.name in "gh":
            value = -0.5 * torch.rand(value.shape)
            for position, gate in ((7, -30.0), (20, -math.inf), (33, -80.0), (35, -math.inf), (38, -1e3)):
                value[:, position : position + 1] = gate
        elif decl.name == "beta":
            value = 1.5 * torch.rand(value.shape)
        elif decl.name in "ak":
            value = torch.nn.functional.normalize(value, dim=-1)
        found[decl.name] = value.to(getattr(torch, dtype)) if decl.name in "akv" else value
    return found


def errors(name: str, dtype: str, time: int, folder: Path, mutant: tuple[str, str] = ("", "")) -> dict[str, float]:
    """The errors of the result and of the adjoint's, in every way."""
    config.solve = lambda *_, **__: config.Config(chunk=CHUNK, outer=16, warps=4, stages=1)
    made = text(name, dtype)
    assert mutant[0] in made, mutant
    module = load_text(made.replace(*mutant) if mutant[0] else made, folder)
    launch, adjoint = getattr(module, name), getattr(module, f"{name}_adjoint")
    op = compiled(name)
    given = given_to(op.ir, time, dtype)
    du = torch.randn(*(1, time, *(SIZES[axis] for axis in ("head", "value"))), dtype=getattr(torch, dtype))
    wide = {key: x.double().requires_grad_() if isinstance(x, Tensor) else x for key, x in given.items()}
    right = evaluate(op.ir, wide)
    (gradient,) = torch.autograd.grad(right, [wide["v"]], du.double())
    right = right.detach()
    if name == "delta":
        gradient = gradient / wide["beta"].detach()[..., None]

    def solved(start: int, stop: int, **options: object) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = launch(**part(op.ir, given, start, stop), **options)
        return found

    def turned(start: int, stop: int, inverse: Tensor, **options: object) -> Tensor:
        found: Tensor = adjoint(du[:, start:stop], *part(op.ir, given, start, stop).values(), inverse, **options)
        return found

    u, inverse = solved(0, time)
    found = {"u": error(u, right), "x": error(turned(0, time, inverse), gradient)}
    if time < 3 or mutant[0]:
        return found
    middle = time // 3
    early, first, state = solved(0, middle, return_state=True)
    late, second = solved(middle, time, initial_state=state)
    found["u joined"] = error(torch.cat([early, late], 1), right)
    parts = [{key: x.detach() for key, x in part(op.ir, wide, *span).items()} for span in ((0, middle), (middle, time))]
    _, carried = op(**parts[0], plan="recurrent", return_state=True)
    carried = carried.map(lambda x: x.requires_grad_() if x.is_floating_point() else x)
    (dstate,) = torch.autograd.grad(
        op(**parts[1], plan="recurrent", initial_state=carried), [carried["solve0.S0"]], du[:, middle:].double()
    )
    found["state"] = error(state, carried["solve0.S0"].detach())
    both = [turned(0, middle, first, dstate=dstate), turned(middle, time, second)]
    found["x joined"] = error(torch.cat(both, 1), gradient)
    starts = (*STARTS, time)
    pack = {"cu_seqlens": torch.tensor(starts, dtype=torch.int32)}
    u, inverse = solved(0, time, **pack)
    spans = [span for span in pairwise(starts) if span[0] < span[1]]
    alone = [(*span, *solved(*span)) for span in spans]
    found["u pack"] = error(u, torch.cat([one[2] for one in alone], 1).double())
    apart = [turned(begin, end, own) for begin, end, _, own in alone]
    found["x pack"] = error(turned(0, time, inverse, **pack), torch.cat(apart, 1).double())
    return found


def main(names: list[str]) -> None:
    """Print the errors of every spec, dtype and length, and of the mutants."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            found[f"{name} float32"] = errors(name, "float32", 41, Path(folder))
            if name in ("delta", "gated"):
                found[f"{name} one"] = errors(name, "float32", 1, Path(folder))
                found[f"{name} float16"] = errors(name, "float16", 41, Path(folder))
        for mutant, taken in zip(MUTANTS.items(), TEXTS, strict=True):
            found[mutant[0]] = errors("gated", "float16", 41, Path(folder), (mutant[1], taken))
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:] or [*SPECS])
