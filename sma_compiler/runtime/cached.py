"""Calls of ops that remember their positions in a cache, by kernels that take new positions after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sma_compiler.call_errors import CapacityExceeded
from sma_compiler.runtime.args import Arguments, readable, self_check
from sma_compiler.runtime.job import aligned, on
from sma_compiler.runtime.kernels import Kernel
from sma_compiler.runtime.program import Program
from sma_compiler.runtime.state_layout import all_heads, in_cache, in_order
from sma_compiler.runtime.triton import run_kernel, whole
from sma_compiler.torch_plans.remember import remember
from sma_compiler.torch_plans.run import Result, result_dtype

State = Mapping[str, Tensor]


def run_cached(
    program: Program,
    plan: str,
    precision: str,
    kernel: Kernel,
    arguments: Arguments,
    state: State | None,
    *,
    want_state: bool,
    want_lse: bool,
    inplace: bool,
) -> Result:
    """A call with a state, by its kernels, without gradients. inplace: of one position, into the state's own tensors.

    Raises:
        CapacityExceeded: the new position has no slot (on the CPU, and anywhere under SMA_SELF_CHECK=1; elsewhere the
            row becomes NaN, and the cache stays as it is).
    """
    member = program.kernels.cached
    assert member is not None
    compute = arguments.compute
    given = (program.op, program.plans, arguments.values, arguments.sizes, compute)
    if state is None:
        found = run_kernel(program, plan, precision, kernel, arguments, None, None, False, want_lse)
        after, _ = remember(*given, None, caches=True)
        return Result(found.result, after, found.lse)
    names = [name for name in state if in_cache(name)]
    slots = state[names[0]].shape[1]
    into = inplace and slots > 0
    if inplace and member.whole:
        _check_room(program, state[names[0]], names[0])
    after, counts = remember(*given, state, list(member.counts.values()), caches=False)
    held = {name: x if x.dim() < 3 or x.stride(-1) == 1 else x.contiguous() for name, x in state.items()}
    cache = [held[name] for name in names]
    y, lse = _launch(program, kernel, precision, arguments, cache, state["position"], counts, want_lse, into)
    result = y.to(result_dtype(program.op, arguments.tensors, torch.float32))
    if inplace:
        for name, tensor in state.items():
            new = after.get(name, held[name])
            if new is not tensor:
                tensor.copy_(new)
        return Result(result, dict(state), lse)
    if want_state:
        after, _ = remember(*given, all_heads(program, arguments, in_order(state)), caches=True)
    return Result(result, after if want_state else None, lse)


def _launch(
    program: Program,
    kernel: Kernel,
    precision: str,
    arguments: Arguments,
    cache: list[Tensor],
    seen: Tensor,
    counts: list[Tensor],
    want_lse: bool,
    inplace: bool,
) -> tuple[Tensor, Tensor | None]:
    launch = kernel.cached
    assert launch is not None
    tensors = iter(aligned(whole(program, arguments)))
    given: list[Any] = [arguments.numbers[decl.name] if decl.number else next(tensors) for decl in program.op.params]
    keywords = {"inplace": inplace, "return_lse": want_lse, "precision": precision}
    with on(arguments.device, program, "quadratic"):
        found = launch(*given, tuple(cache), seen, *counts, **keywords)
    return found if want_lse else (found, None)


def _check_room(program: Program, places: Tensor, name: str) -> None:
    slots = places.shape[1]
    looked = readable(places) and (places.device.type == "cpu" or self_check())
    if slots == 0 or (looked and bool((places >= 0).all(1).any())):
        raise CapacityExceeded(program.op.label, name.removesuffix(".pos"), slots)
