"""Runs ops where rounding shows in Triton's interpreter, by the accuracy contract; prints what breaks it as JSON."""

from __future__ import annotations

import json
from unittest.mock import patch

import torch
from torch import Tensor

import sma_compiler as sma
from sma_compiler.kernel.build import lift
from sma_compiler.kernel.maker import Maker
from sma_compiler.runtime import again, execute
from sma_compiler.runtime.op import CompiledOp
from sma_compiler.verify.cases import Case, make_case
from sma_compiler.verify.check import compare_backends
from sma_compiler.verify.samples import samples

CASES = (
    ("attention", "quadratic", 1, 8),
    ("sliding_window", "quadratic", 1, 8),
    ("forgetting", "quadratic", 1, 8),
    ("linear_attention_normalized", "quadratic", 1, 8),
    ("linear_attention_normalized", "chunked", 1, 8),
    ("linear_attention_normalized", "recurrent", 1, 8),
    ("alibi", "quadratic", 33, 2),
    ("simple_gla", "recurrent", 65, 3),
    ("gla", "recurrent", 65, 2),
)
"""Op, plan, positions, seeds: gradients that are 0 but for rounding, and sums over positions."""
STRONG = {"gla": 30.0}
"""How far below 0 log gates reach: what leads over a position is then small beside what ends there."""
DIVIDED = (("causal", "chunked"), ("causal", "quadratic"), ("full", "quadratic"), ("decay(g)", "chunked"))
"""Masks in fp16 whose rows are divided by sums of weights so large that cotangents over these are below its range."""
LARGE = """
op {name}(q, k, v, g: [time, head]):
    return attend({mask}, elu(q) + 1, elu(k) + 1, v, normalize=sum)
"""
SIZES = {"batch": 1, "head": 1, "key": 16, "value": 16, "group": 1}


def strong(case: Case, seed: int, rate: float) -> Case:
    """A case whose log gates lie between -rate and 0."""
    gates = case.arguments["g"]
    assert isinstance(gates, torch.Tensor)
    generator = torch.Generator().manual_seed(seed)
    given = {**case.arguments, "g": -rate * torch.rand(gates.shape, generator=generator)}
    sizes = {**SIZES, "time": case.length}
    return make_case(case.op, sizes, torch.float32, seed, arguments=given)


def failures(name: str, plan: str, time: int, seeds: int) -> list[str]:
    """What of an op breaks the contract in fp32."""
    op = sma.library(name)
    cases = [make_case(op.ir, {**SIZES, "time": time}, torch.float32, seed) for seed in range(seeds)]
    if name in STRONG:
        cases = [strong(case, seed, STRONG[name]) for seed, case in enumerate(cases)]
    return compared(op, cases, plan)


def compared(op: CompiledOp, cases: list[Case], plan: str) -> list[str]:
    """What breaks the contract."""
    report = compare_backends(
        cases,
        lambda plan, arguments: op(**arguments, plan=plan, backend="triton"),
        lambda plan, arguments: op(**arguments, plan=plan, backend="torch"),
        plan,
    )
    return [str(check) for check in report.failures]


def large_sums(name: str, mask: str, plan: str) -> list[str]:
    """What breaks the contract in fp16 where rows are divided by sums of some 10^6."""
    op = sma.compile(LARGE.format(name=name, mask=mask))
    sizes = {**SIZES, "time": 150, "key": 64, "value": 64}
    given = samples(op.ir, sizes, torch.float16, 0)
    for operand in ("q", "k"):
        tensor = given[operand]
        assert isinstance(tensor, Tensor)
        given[operand] = 24 * tensor
    case = make_case(op.ir, sizes, torch.float16, 0, arguments=given)
    return compared(op, [case], plan)


def main() -> None:
    """Print the failures of every case, and without the units of what was divided."""
    again.replayable = lambda _: True
    execute.check_values = lambda *_: None
    found = {" ".join(map(str, case)): failures(*case) for case in CASES}
    for case in DIVIDED:
        found[" ".join(case)] = large_sums("divided", *case)
        with patch.object(Maker, "unit", lambda *_: (lift(1.0), lift(1.0))):
            found[" ".join(("mutant", *case))] = large_sums("mutant", *case)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
