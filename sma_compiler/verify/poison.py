"""What a position may influence, and whether a run keeps to it bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sma_compiler.ir.nodes import Attend, Contraction, Expr, MaskTimes, Op, Param, Solve, children
from sma_compiler.ir.roles import operands, roles
from sma_compiler.oracle.values import fold
from sma_compiler.reference import Argument, axis_sizes, mask_support

OutputOnly = Callable[[str, Mapping[str, Argument]], Tensor]
"""Runs an op with a plan on some arguments."""
POISON = 1e4
"""Put in place of what an output must not depend on."""


def influenced(op: Op, arguments: Mapping[str, Argument], names: frozenset[str], position: int) -> Tensor:
    """bool [T]: the rows of the result that may depend on these parameters' entries at a position.

    names: parameters that no mask depends on. What a mask lets through is its support.
    """
    length = axis_sizes(op, arguments)["time"]
    nowhere = torch.zeros(length, dtype=torch.bool)

    def visit(node: Expr, done: dict[Expr, Tensor]) -> Tensor:
        if isinstance(node, Param):
            return nowhere.clone().index_fill(0, torch.tensor(position), node.name in names)
        if not isinstance(node, Contraction):
            found = nowhere
            for child in _tensors(node):
                found = found | done[child]
            return found
        support = mask_support(op, node.mask, arguments).data.cpu().reshape(-1, length, length).any(0)
        match node:
            case Attend(q=q, k=k, v=v):
                return done[q] | (support & (done[k] | done[v])).any(1)
            case MaskTimes(x=x):
                return (support & done[x]).any(1)
            case Solve(a=a, b=b, u=u):
                found = done[u] | done[a] | (support & done[b]).any(1)
                for row in range(length):
                    found[row] |= (support[row] & found).any()
                return found

    return fold(op.result, _tensors, visit)


def _tensors(node: Expr) -> tuple[Expr, ...]:
    return operands(node) if isinstance(node, Contraction) else children(node)


def leaks(op: Op, arguments: Mapping[str, Argument], run: OutputOnly, plan: str, position: int) -> list[int]:
    """Rows of a run's result that change when what they must not depend on is poisoned at a position; empty is right.

    The poison goes into every real parameter that feeds an operand and neither a mask nor a phase.
    """
    found = roles(op)
    names = found.operands - found.gates - found.phases
    poisoned = dict(arguments)
    for decl in op.params:
        argument = arguments[decl.name]
        if decl.name in names and "time" in decl.dims and isinstance(argument, Tensor) and argument.is_floating_point():
            where = torch.tensor(position, device=argument.device)
            poisoned[decl.name] = argument.detach().index_fill(decl.dims.index("time"), where, POISON)
    before, after = run(plan, arguments).detach(), run(plan, poisoned).detach()
    axis = op.result.axes.index("time")
    same = (before == after) | (before.isnan() & after.isnan())
    changed = ~same.movedim(axis, 0).flatten(1).all(1).cpu()
    return (changed & ~influenced(op, arguments, names, position)).nonzero()[:, 0].tolist()
