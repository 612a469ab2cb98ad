"""Whether a kernel computes what torch does, on this device: asked under SMA_SELF_CHECK=1, and by the tuner.

Small random inputs of the same dtype and channels, and the contract's rule: against the fp64 reference, outputs and
gradients may err as far as those of the torch backend with the same dtype, and a little further.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, reduce
from operator import add

import torch
from torch import Tensor

from sma_compiler.backend_errors import WrongKernel
from sma_compiler.kernel.choices import read_plan
from sma_compiler.reference import Argument
from sma_compiler.runtime.args import Arguments, bind, readable
from sma_compiler.runtime.drawn import draw
from sma_compiler.runtime.job import operand_name
from sma_compiler.runtime.kernels import DTYPES, Kernel, target_of
from sma_compiler.runtime.program import Program, row_of
from sma_compiler.runtime.triton import run_kernel
from sma_compiler.torch_plans.run import run_op
from sma_compiler.verify.cases import Case, make_case
from sma_compiler.verify.check import check_plan, compare_with, errors_of
from sma_compiler.verify.contract import Report
from sma_compiler.verify.errors import Errors
from sma_compiler.verify.samples import default_sizes

TIME = 150
"""Positions: two whole chunks of 64 and a ragged one."""
TIMES = (TIME, 256)
"""Whole chunks alone as well, before a record may name a kernel: it is compiled anew for those."""
HEADS = 2
BATCH = 8
"""Sequences of a check, at most."""
MOST_PAIRS = 2**26
"""Of positions (and channels) that all heads of a check have; beyond them it has `HEADS`."""
SEEDS = 4
"""Draws of the inputs, pooled where a block of a tensor is small."""
SLACK = 8.0
"""How far beyond its bound an error may be: so few draws are off by chance, a wrong kernel by orders of magnitude."""
_checked: set[tuple[Kernel, torch.device, torch.dtype]] = set()


def check_kernel(program: Program, plan: str, kernel: Kernel, arguments: Arguments) -> None:
    """Compare a kernel with the torch backend, at its first use on a device with a dtype.

    Raises:
        WrongKernel: their results differ by more than rounding.
    """
    tensors = list(arguments.tensors.values())
    if not all(readable(x) for x in tensors):
        return
    name = operand_name(program, tensors)
    dtype = next(dtype for dtype, known in DTYPES.items() if known == name)
    key = kernel, arguments.device, dtype
    if key not in _checked:
        report = compare(program, plan, kernel, arguments.sizes, dtype, arguments.device)
        failures = [check for check in report.checks if check.ratio > SLACK]
        if failures:
            raise WrongKernel(program.op.label, plan, arguments.device, "\n".join(map(str, failures)))
        _checked.add(key)


def check_pick(
    program: Program,
    backend: str,
    plan: str,
    sizes: Mapping[str, int],
    numbers: Mapping[str, int | float],
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    times: Sequence[int] = TIMES,
) -> Report:
    """The errors of a plan (with its choices) on a backend, before a record may name it.

    A kernel is held to the torch backend, a plan of the torch backend to the fp64 reference. seed: of the inputs.
    times: how many positions they have, of kernels.

    Raises:
        NoTritonKernel: there is no such kernel.
    """
    if backend == "triton":
        kernel = program.kernels.find(plan, sizes, DTYPES[dtype], target_of(device))
        reports = (compare(program, plan, kernel, sizes, dtype, device, numbers, seed, time) for time in times)
        return reduce(add, reports)
    cases = small_cases(program, sizes, dtype, device, numbers, seed)
    with torch.inference_mode(False), torch.enable_grad():
        return check_plan(cases, lambda plan, arguments: run_plan(program, plan, arguments), plan)


def small_cases(
    program: Program,
    sizes: Mapping[str, int],
    dtype: torch.dtype,
    device: torch.device,
    numbers: Mapping[str, int | float],
    seed: int,
    time: int = TIME,
) -> list[Case]:
    """Random inputs with their exact answers, at the key and value size of `sizes` and few positions and heads."""
    small = tuple(small_sizes(program, sizes, time).items())
    return _cases(program, small, dtype, device, tuple(numbers.items()), seed)


@lru_cache(maxsize=2 * len(TIMES))
def _cases(
    program: Program,
    sizes: tuple[tuple[str, int], ...],
    dtype: torch.dtype,
    device: torch.device,
    numbers: tuple[tuple[str, int | float], ...],
    seed: int,
) -> list[Case]:
    """The same; remembered while one configuration after another is checked."""
    found = []
    with torch.inference_mode(False), torch.enable_grad():
        for own in range(seed, seed + max(1, SEEDS * HEADS // dict(sizes).get("head", 1))):
            arguments = {**draw(program, dict(sizes), dtype, own, device), **dict(numbers)}
            found.append(make_case(program.op, dict(sizes), dtype, own, device, arguments=arguments))
    return found


def small_sizes(program: Program, sizes: Mapping[str, int], time: int) -> dict[str, int]:
    """The key and value size of `sizes` and few positions; heads share keys where they do there.

    As many heads and about as many sequences as there, where the reference can hold all their pairs: then the kernels
    are those that are compiled for `sizes`.
    """
    fixed = ("batch", "time", "head", "group", "lag", "level")
    few = {axis: size for axis, size in sizes.items() if axis not in fixed}
    heads, group = sizes.get("head", HEADS), sizes.get("group", 0)
    batch = min(BATCH, sizes.get("batch", 1))
    if batch * heads * time**2 * max(sizes.get("key", 1) * _channels(program), 1) > MOST_PAIRS:
        batch, heads, group = 1, HEADS, 1 if group not in (0, heads) else 0
    few |= {"batch": batch, "time": time, "head": heads}
    if group not in (0, heads):
        few["group"] = group
    return default_sizes(program.op, **few)


def _channels(program: Program) -> bool:
    """Whether gates differ by channel, so that the reference holds pairs for each."""
    return any(mask.gate not in ("none", "scalar") for mask in program.plans.facts.masks)


def run_plan(program: Program, plan: str, arguments: Mapping[str, Argument]) -> Tensor:
    """An op by the torch backend."""
    given = bind(program.op, (), arguments)
    chosen = program.choose(plan, given.sizes, given.numbers, row_of(given.device))
    return run_op(program.op, program.plans, chosen, given.values, given.sizes, compute=given.compute).result


def compare(
    program: Program,
    plan: str,
    kernel: Kernel,
    sizes: Mapping[str, int],
    dtype: torch.dtype,
    device: torch.device,
    numbers: Mapping[str, int | float] | None = None,
    seed: int = 0,
    time: int = TIME,
) -> Report:
    """The errors of a kernel's output and gradients beside those of the torch backend."""
    op = program.op

    def by_kernel(plan: str, arguments: Mapping[str, Argument]) -> Tensor:
        return run_kernel(program, plan, "ieee", kernel, bind(op, (), arguments), None, None, False).result

    name, _ = read_plan(plan)
    name = "chunked" if name == "auto" else name
    cases = small_cases(program, sizes, dtype, device, numbers or {}, seed, time)
    with torch.inference_mode(False), torch.enable_grad():
        return compare_with(cases, by_kernel, _errors_of_torch(program, tuple(cases), name), name)


@lru_cache(maxsize=2 * len(TIMES))
def _errors_of_torch(program: Program, cases: tuple[Case, ...], plan: str) -> list[dict[str, Errors]]:
    return errors_of(cases, lambda plan, arguments: run_plan(program, plan, arguments), plan)
