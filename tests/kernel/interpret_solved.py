"""Runs ops with a `solve` in Triton's interpreter beside the torch backend, by the accuracy contract; prints JSON.

Beside the usual draws: keys that are all alike, of length 1, where a step takes out almost twice what is there, so that
what positions have of each other cancels; gates of which some cut; and where little decays, or nothing for long, sums
over all positions, which keep what rounding brings to them; with 24 channels the scale is no power of 2.
"""

from __future__ import annotations

import json
import math
import sys

import torch
from torch import Tensor

import sma_compiler as sma
from sma_compiler.reference import Argument
from sma_compiler.runtime import again, execute
from sma_compiler.verify.cases import Case, make_case
from sma_compiler.verify.check import compare_backends
from sma_compiler.verify.samples import samples

CASES = {
    # op, dtype, positions, draws
    "delta_net": ("delta_net", torch.float32, 37, 2),
    "delta_net alike": ("delta_net", torch.float32, 150, 2),
    "delta_net fp16": ("delta_net", torch.float16, 70, 1),
    "delta_net long": ("delta_net", torch.float16, 1000, 1),
    "gated_delta_net": ("gated_delta_net", torch.float32, 37, 2),
    "gated_delta_net cut": ("gated_delta_net", torch.float32, 37, 2),
    "gated_delta_net fp16": ("gated_delta_net", torch.float16, 70, 1),
    "gated_delta_net weak": ("gated_delta_net", torch.float16, 200, 2),
    "kda": ("kda", torch.float32, 21, 1),
    "rwkv7": ("rwkv7", torch.float32, 18, 1),
}
SIZES = {"batch": 1, "head": 1, "key": 16, "value": 16, "group": 1}


def drawn(case: str, seed: int) -> Case:
    """A case of a seed."""
    name, dtype, length, _ = CASES[case]
    op, sizes = sma.library(name), {**SIZES, "time": length}
    sizes |= {"key": 24} if case.endswith("long") else {}
    given: dict[str, Argument] = dict(samples(op.ir, sizes, dtype, seed))
    keys, gates = given["k"], given.get("g")
    assert isinstance(keys, Tensor)
    if case.endswith("alike"):
        given["k"] = keys[:, :1].expand_as(keys).contiguous()
        given["beta"] = torch.full(keys.shape[:3], 1.9)
    if case.endswith("cut"):
        assert isinstance(gates, Tensor)
        cuts = torch.rand(gates.shape, generator=torch.Generator().manual_seed(seed)) < 0.1
        given["g"] = torch.where(cuts, -math.inf, gates)
    if case.endswith("weak"):
        assert isinstance(gates, Tensor)
        given["g"] = -1e-3 * torch.rand(gates.shape, generator=torch.Generator().manual_seed(seed))
    return make_case(op.ir, sizes, dtype, seed, arguments=given)


def failures(case: str) -> list[str]:
    """What breaks the contract."""
    name, _, _, seeds = CASES[case]
    op = sma.library(name)
    report = compare_backends(
        [drawn(case, seed) for seed in range(seeds)],
        lambda plan, arguments: op(**arguments, plan=plan, backend="triton"),
        lambda plan, arguments: op(**arguments, plan=plan, backend="torch"),
        "chunked",
    )
    return [f"{check.ratio:.2f} {check}" for check in report.failures]


def main(cases: list[str]) -> None:
    """Print the failures of every case."""
    again.replayable = lambda _: True
    execute.check_values = lambda *_: None
    print(json.dumps({case: failures(case) for case in cases}))


if __name__ == "__main__":
    main(sys.argv[1:] or [*CASES])
