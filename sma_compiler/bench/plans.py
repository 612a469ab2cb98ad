"""The plans of one op side by side at one size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sma_compiler.bench.timing import median_times
from sma_compiler.runtime.op import CompiledOp
from sma_compiler.verify.samples import default_sizes, samples


@dataclass(frozen=True)
class PlanTime:
    """Median seconds of one plan: forward without gradients, and forward with backward."""

    plan: str
    forward: float
    both: float


def time_plans(
    op: CompiledOp,
    plans: Sequence[str],
    sizes: Mapping[str, int],
    numbers: Mapping[str, int | float],
    dtype: torch.dtype,
    repeats: int,
    tick: Callable[[], None],
) -> tuple[PlanTime, ...]:
    """Times plans on sample inputs, in turns.

    sizes: by axis name; numbers: the op's int and real parameters, sampled where not given. tick: called after each of
    2 * (repeats + 1) * len(plans) calls.
    """
    arguments = {**samples(op.ir, default_sizes(op.ir, **sizes), dtype), **numbers}
    real = [x for x in arguments.values() if isinstance(x, Tensor) and x.is_floating_point()]
    leaves = [x.requires_grad_() for x in real]

    call: Callable[..., Tensor] = op

    def forward(plan: str) -> None:
        with torch.no_grad():
            call(**arguments, plan=plan)

    def both(plan: str) -> None:
        y = call(**arguments, plan=plan)
        torch.autograd.grad(y, leaves, torch.ones_like(y), allow_unused=True)

    once = median_times({plan: partial(forward, plan) for plan in plans}, repeats, tick)
    twice = median_times({plan: partial(both, plan) for plan in plans}, repeats, tick)
    return tuple(PlanTime(plan, once[plan], twice[plan]) for plan in plans)
