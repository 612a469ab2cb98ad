"""What each parameter of an op is for: which feed a mask, which feed the operands of a contraction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sma_compiler.ir.nodes import Apply, Attend, Expr, Kind, MaskTimes, Op, Param, Rope, Solve, children, postorder


@dataclass(frozen=True)
class Roles:
    """Names of tensor parameters by what they feed; one may have several roles.

    gates: those that feed a mask, whatever lies between.
    phases: those that feed the angle of a `rope` or the argument of `sin` or `cos`.
    turns: those with a `mode` axis that feed the angle of a `rope`: one entry a pair of the key.
    operands: those that feed q, k, v (a, b, u; x) of a contraction.
    cast: what autocast casts: operands that are neither gates nor phases and have every axis of the operand they
        feed, so that a factor such as the `beta` of `beta * k` keeps its precision, as gates do.
    """

    gates: frozenset[str]
    phases: frozenset[str]
    turns: frozenset[str]
    operands: frozenset[str]
    cast: frozenset[str]


def operands(node: Expr) -> tuple[Expr, ...]:
    """The tensors that a contraction multiplies by its mask; of other nodes, none."""
    match node:
        case Attend(q=q, k=k, v=v):
            return (q, k, v)
        case MaskTimes(x=x):
            return (x,)
        case Solve(a=a, b=b, u=u):
            return (a, b, u)
    return ()


def parameters(roots: Iterable[Expr]) -> frozenset[str]:
    """The tensor parameters that some expressions depend on, through contractions too."""
    return frozenset(node.name for node in postorder(roots) if isinstance(node, Param) and not node.number)


def roles(op: Op) -> Roles:
    """The roles of an op's parameters."""
    masks: list[Expr] = []
    angles: list[Expr] = []
    ropes: list[Expr] = []
    tensors: list[Expr] = []
    for node in postorder((op.result,)):
        if isinstance(node, Attend | MaskTimes | Solve):
            masks.append(node.mask)
            tensors.extend(operands(node))
        angles.extend(_angles(node))
        ropes.extend([node.angle] if isinstance(node, Rope) and "mode" in node.angle.axes else [])
    gates, phases = parameters(masks), parameters(angles)
    whole = frozenset(
        leaf.name
        for tensor in tensors
        for leaf in _own_leaves(tensor)
        if leaf.kind is Kind.REAL and "time" in leaf.axes and set(leaf.axes) >= set(tensor.axes)
    )
    counted = {decl.name for decl in op.params if "mode" in decl.dims}
    return Roles(gates, phases, parameters(ropes) & counted, parameters(tensors), whole - gates - phases)


def _angles(node: Expr) -> tuple[Expr, ...]:
    match node:
        case Rope(angle=angle):
            return (angle,)
        case Apply(fn="sin" | "cos", args=args):
            return args
    return ()


def _own_leaves(tensor: Expr) -> Iterator[Param]:
    """The tensor parameters of an operand, without those of contractions nested in it."""
    stack, seen = [tensor], set[Expr]()
    while stack:
        node = stack.pop()
        if node in seen or isinstance(node, Attend | MaskTimes | Solve):
            continue
        seen.add(node)
        if isinstance(node, Param) and not node.number:
            yield node
        stack.extend(children(node))
