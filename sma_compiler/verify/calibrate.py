"""Measures the constants of `bounds.py`: `python -m sma_compiler.verify.calibrate [op ...]` prints its table.

Every legal plan of the torch backend, fp32, bf16 and fp16, on random inputs of `samples.py`: T of 65 and 257 with 8
seeds, B = 2, H = 2, K = 16 and V = 16 and 32; T of 1024 with 3 seeds, B = H = 1, K = 8 and V = 16.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import torch
from torch import Tensor

from sma_compiler.interface import library
from sma_compiler.reference import Argument
from sma_compiler.runtime.op import CompiledOp
from sma_compiler.verify.bounds import growth
from sma_compiler.verify.cases import make_case
from sma_compiler.verify.check import FOURIER, group_of, steepness
from sma_compiler.verify.contract import UNIT, Part, blocks, wholes
from sma_compiler.verify.samples import default_sizes

SIZES = (
    ({"batch": 2, "time": 65, "head": 2, "key": 16, "value": 16}, 8),
    ({"batch": 2, "time": 257, "head": 2, "key": 16, "value": 32}, 8),
    ({"batch": 1, "time": 1024, "head": 1, "key": 8, "value": 16}, 3),
)
"""Sizes, and how many seeds."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Row = list[float]
"""Largest error found: fp32 whole, fp32 block, bf16 or fp16 whole, block."""


def calibrate(name: str) -> dict[str, Row]:
    """The largest errors of a library op, in the units of its bounds, by group."""
    op = library(name)
    assert isinstance(op, CompiledOp)
    run = _Runner(op)
    found: dict[str, Row] = {}
    for dtype in DTYPES:
        for sizes, seeds in SIZES:
            cases = [make_case(op.ir, default_sizes(op.ir, **sizes), dtype, seed) for seed in range(seeds)]
            unit = cases[0].unit
            narrow = unit > UNIT[torch.float32]
            error = unit * (growth(sizes["time"]) if narrow else steepness(cases))
            for plan in op.plans:
                runs = [case.errors(run, plan.name, by_row_maximum=plan.name in FOURIER) for case in cases]
                for what in runs[0]:
                    group = "" if what == "lse" else group_of(cases[0], what)
                    if group:
                        row = found.setdefault(group, [0.0] * 4)
                        every = [errors[what] for errors in runs]
                        for place, parts in ((0, wholes(every)), (1, blocks(every))):
                            at = 2 * narrow + place
                            row[at] = max(row[at], *(_needed(part, error, narrow) for part in parts), 0.0)
    return found


class _Runner:
    def __init__(self, op: CompiledOp) -> None:
        self.op = op

    def __call__(self, plan: str, arguments: Mapping[str, Argument], /) -> Tensor:
        positional = [arguments[decl.name] for decl in self.op.params]
        result = self.op(*positional, plan=plan, backend="torch")
        assert isinstance(result, Tensor)
        return result


def _needed(part: Part, error: float, narrow: bool) -> float:
    """The multiple of `error` that the part's error needs beside its rounding."""
    errors = part.errors
    allowed = error * errors.rms(errors.exact)
    excess = errors.rms(errors.error) - (2 * errors.rms(errors.rounding) if narrow else 0)
    return excess / allowed if allowed else 0.0


def main(names: list[str]) -> None:
    """Prints the table of some ops, or of all."""
    for name in names or library():
        print(f'    "{name}": {{')
        for group, row in calibrate(name).items():
            print(f'        "{group}": ({", ".join(f"{number:.2f}" for number in row)}),')
        print("    },", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
