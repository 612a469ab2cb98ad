"""Inputs with their exact answers, and the errors of a run on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sma_compiler.ir.nodes import Attend, Op, postorder
from sma_compiler.ir.roles import roles
from sma_compiler.oracle.contractions import weight_axes
from sma_compiler.reference import Argument, axis_sizes, evaluate, evaluate_with_lse
from sma_compiler.verify.contract import UNIT
from sma_compiler.verify.errors import POSITIONS, Errors, measure
from sma_compiler.verify.gate_sums import gate_sum
from sma_compiler.verify.samples import samples

LONG = 16384
"""Beyond this length the reference evaluates a sample of rows."""
SAMPLED_ROWS = 256


class Run(Protocol):
    """Runs an op with one plan on some arguments; differentiable by autograd."""

    def __call__(self, plan: str, arguments: Mapping[str, Argument], /) -> Tensor | tuple[Tensor, Tensor]:
        """The op's result, in its own dtype; with the log-sum-exp of its only softmax, if that is to be checked."""
        ...


@dataclass(frozen=True, eq=False)
class Case:
    """One draw of an op's inputs with the fp64 output and gradients of <cotangent, output>.

    exact, axes: by what they are, "output", "lse", or "d " and a parameter. rows: the positions of the output that were
    evaluated and that the cotangent weighs; None: all. unit: roundoff of the coarsest dtype that dots round to.
    """

    op: Op
    arguments: Mapping[str, Argument]
    cotangent: Tensor
    rows: Tensor | None
    exact: Mapping[str, Tensor]
    axes: Mapping[str, tuple[str, ...]]
    gate_sum: float
    unit: float

    @property
    def length(self) -> int:
        """T."""
        return self.cotangent.shape[self.op.result.axes.index("time")]

    def errors(self, run: Run, plan: str, *, by_row_maximum: bool = False) -> dict[str, Errors]:
        """The errors of a run's output and gradients."""
        arguments, leaves = _with_leaves(self.arguments, None)
        returned = run(plan, arguments)
        result, lse = returned if isinstance(returned, tuple) else (returned, None)
        if tuple(result.shape) != tuple(self.cotangent.shape) or result.dtype != self.cotangent.dtype:
            raise ValueError(f"{plan} gave {tuple(result.shape)} {result.dtype}, not {tuple(self.cotangent.shape)}")
        found = {"output": result.detach()} | ({} if lse is None else {"lse": lse.detach()})
        if self.rows is not None:
            for what, value in found.items():
                found[what] = value.index_select(self.axes[what].index("time"), self.rows)
        if leaves and self.cotangent.is_floating_point():
            grads: Sequence[Tensor | None] = [None] * len(leaves)
            if result.requires_grad:
                grads = torch.autograd.grad(result, list(leaves.values()), self.cotangent, allow_unused=True)
            for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
                found[f"d {name}"] = torch.zeros_like(leaf) if grad is None else grad
        errors: dict[str, Errors] = {}
        for what, actual in found.items():
            rows = self.rows if what in ("output", "lse") else None
            relative = by_row_maximum and what != "lse"
            sampled = self.rows if rows is None else None
            errors[what] = measure(
                actual, self.exact[what], self.axes[what], rows=rows, sampled=sampled, by_row_maximum=relative
            )
        return errors


def make_case(
    op: Op,
    sizes: Mapping[str, int],
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    device: torch.device | str = "cpu",
    *,
    arguments: Mapping[str, Argument] | None = None,
) -> Case:
    """Draws inputs (or takes the given ones) and computes the exact answers.

    Beyond `LONG` positions the cotangent is 0 but for `SAMPLED_ROWS` rows, so that only these need the reference.
    """
    given = samples(op, sizes, dtype, seed, device) if arguments is None else dict(arguments)
    tensors = [x for x in (given[decl.name] for decl in op.params) if isinstance(x, Tensor)]
    length = axis_sizes(op, given)["time"]
    rows = sampled_rows(length, seed).to(tensors[0].device) if length > LONG else None
    exact_arguments, leaves = _with_leaves(given, torch.float64)
    softmaxes = [node for node in postorder((op.result,)) if isinstance(node, Attend) and node.normalize == "softmax"]
    exact, axes = {}, {"output": op.result.axes} | {f"d {decl.name}": decl.dims for decl in op.params}
    if len(softmaxes) == 1:
        output, lse = evaluate_with_lse(op, exact_arguments, rows=rows)
        exact["lse"], axes["lse"] = lse.detach(), weight_axes(softmaxes[0])
    else:
        output = evaluate(op, exact_arguments, rows=rows)
    generator = torch.Generator().manual_seed(seed + 1)
    shape = list(output.shape)
    at = op.result.axes.index("time")
    shape[at] = length
    result_dtype = tensors[0].dtype if tensors[0].is_floating_point() and output.is_floating_point() else output.dtype
    cotangent = torch.randn(shape, generator=generator).to(result_dtype).to(output.device)
    exact["output"] = output.detach()
    if leaves and output.is_floating_point():
        weights = cotangent if rows is None else cotangent.index_select(at, rows)
        found = torch.autograd.grad(output, list(leaves.values()), weights.to(torch.float64), allow_unused=True)
        for (name, leaf), grad in zip(leaves.items(), found, strict=True):
            exact[f"d {name}"] = torch.zeros_like(leaf) if grad is None else grad
    if rows is not None:
        chosen = torch.zeros(length, dtype=torch.bool, device=output.device).index_fill(0, rows, True)
        cotangent = cotangent * chosen.view([-1 if axis == "time" else 1 for axis in op.result.axes])
    return Case(op, given, cotangent, rows, exact, axes, gate_sum(op, given), operand_unit(op, given))


def operand_unit(op: Op, arguments: Mapping[str, Argument]) -> float:
    """The unit roundoff of the coarsest dtype among the parameters that feed q, k and v; where none does, among all."""
    tensors = [arguments[name] for name in roles(op).operands or arguments]
    dtypes = [x.dtype for x in tensors if isinstance(x, Tensor) and x.is_floating_point()]
    return max((UNIT[dtype] for dtype in dtypes), default=UNIT[torch.float32])


def sampled_rows(length: int, seed: int) -> Tensor:
    """`SAMPLED_ROWS` positions in order: the first and the last block, and others drawn from between."""
    between = torch.randperm(length - 2 * POSITIONS, generator=torch.Generator().manual_seed(seed)) + POSITIONS
    ends = torch.arange(POSITIONS)
    return torch.cat((ends, between[: SAMPLED_ROWS - 2 * POSITIONS].sort().values, ends + length - POSITIONS))


def _with_leaves(
    arguments: Mapping[str, Argument], dtype: torch.dtype | None
) -> tuple[dict[str, Argument], dict[str, Tensor]]:
    """The arguments with fresh leaves for the real tensors (in another dtype, if given), and these leaves."""
    found = dict(arguments)
    leaves: dict[str, Tensor] = {}
    for name, argument in arguments.items():
        if isinstance(argument, Tensor) and argument.is_floating_point():
            leaves[name] = argument.detach().to(dtype or argument.dtype).requires_grad_()
            found[name] = leaves[name]
    return found, leaves
