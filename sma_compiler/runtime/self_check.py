"""Whether a kernel computes what torch does, on this device: asked under SMA_SELF_CHECK=1, and by the tuner.

Small random inputs of the same dtype and channels, and the contract's rule: against the fp64 reference, outputs and
gradients may err as far as those of the torch backend with the same dtype, and a little further.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sma_compiler.backend_errors import WrongKernel
from sma_compiler.reference import Argument
from sma_compiler.runtime.args import Arguments, bind, readable
from sma_compiler.runtime.job import operand_name
from sma_compiler.runtime.kernels import DTYPES, Kernel
from sma_compiler.runtime.program import Program
from sma_compiler.runtime.triton import run_kernel
from sma_compiler.torch_plans.run import run_op
from sma_compiler.verify.cases import make_case
from sma_compiler.verify.check import compare_backends
from sma_compiler.verify.contract import Report
from sma_compiler.verify.samples import default_sizes

TIME = 150
"""Positions: two whole chunks of 64 and a ragged one."""
HEADS = 2
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


def compare(
    program: Program, plan: str, kernel: Kernel, sizes: Mapping[str, int], dtype: torch.dtype, device: torch.device
) -> Report:
    """The errors of a kernel's output and gradients beside those of the torch backend, at the key and value size of
    `sizes` and few positions and heads."""
    op = program.op
    channels = {axis: size for axis, size in sizes.items() if axis not in ("batch", "time", "head")}
    small = default_sizes(op, **{**channels, "batch": 1, "time": TIME, "head": HEADS})

    def by_kernel(plan: str, arguments: Mapping[str, Argument]) -> Tensor:
        return run_kernel(program, plan, "ieee", kernel, bind(op, (), arguments), None, None, False).result

    def by_torch(plan: str, arguments: Mapping[str, Argument]) -> Tensor:
        given = bind(op, (), arguments)
        chosen = program.choose(plan, given.sizes, given.numbers)
        return run_op(op, program.plans, chosen, given.values, given.sizes, compute=torch.float32).result

    with torch.inference_mode(False), torch.enable_grad():
        cases = [make_case(op, small, dtype, seed, device) for seed in range(SEEDS)]
        return compare_backends(cases, by_kernel, by_torch, "chunked" if plan == "auto" else plan)
