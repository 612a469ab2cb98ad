"""The reference: the dense evaluation of an op in fp64, by interpreting its equation.

It knows nothing of plans: every mask is written out at every pair of positions, in blocks of query rows so that memory
stays bounded. It is differentiable by autograd. Inputs are cast to fp64 (integers and booleans stay what they are) and
results are never rounded back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from sma_compiler.ir.nodes import (
    Apply,
    Attend,
    Const,
    Contraction,
    Expr,
    MaskTimes,
    Op,
    Param,
    ParamDecl,
    Reduce,
    Rename,
    Rope,
    Size,
    Solve,
    children,
    postorder,
)
from sma_compiler.oracle.contractions import run, weight_axes
from sma_compiler.oracle.masks import Pairs, rope
from sma_compiler.oracle.values import DTYPES, Value, apply, named, reached, reduce

Argument = Tensor | int | float
"""A tensor with the dimensions that the op declares, or a number."""


def evaluate(
    op: Op,
    arguments: Mapping[str, Argument],
    *,
    cu_seqlens: Tensor | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """The op's result, fp64 (or int64, bool), with the axes of `op.result` as dimensions.

    arguments: one for each parameter, by name. cu_seqlens: [S + 1] offsets of the sequences of a pack (batch 1).
    rows: int64 [R], the positions of the last contractions' rows to evaluate; the result's time axis then has size R.
    """
    return _run(op, arguments, cu_seqlens, rows)[0]


def evaluate_with_lse(
    op: Op,
    arguments: Mapping[str, Argument],
    *,
    cu_seqlens: Tensor | None = None,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The op's result and the log-sum-exp of each row of its last softmax.

    The log-sum-exp has the axes of the weights without `key`, in the order of `AXES`; -inf where a row is empty.
    """
    result, lse = _run(op, arguments, cu_seqlens, rows)
    if lse is None:
        raise ValueError(f"{op.name} has no softmax, so its rows have no log-sum-exp")
    return result, lse


def mask_matrix(op: Op, mask: Expr, arguments: Mapping[str, Argument], rows: Tensor | None = None) -> Value:
    """A mask of the op at every pair of positions (or of some rows): its own axes, then `i` and `j`."""
    pairs, full = _pairs(op, mask, arguments, rows)
    return pairs.value(mask).expanded(full)


def mask_support(op: Op, mask: Expr, arguments: Mapping[str, Argument], rows: Tensor | None = None) -> Value:
    """Where no boolean factor and no `where` makes the mask 0, as a boolean mask."""
    pairs, full = _pairs(op, mask, arguments, rows)
    held = pairs.support(mask)
    if held is None:
        held = Value(torch.ones((), dtype=torch.bool, device=pairs.places["t"].device), ())
    return held.expanded(full)


def _pairs(op: Op, mask: Expr, arguments: Mapping[str, Argument], rows: Tensor | None) -> tuple[Pairs, dict[str, int]]:
    sequence = Sequence(op, arguments)
    columns = torch.arange(sequence.sizes["time"], device=sequence.device)
    at = columns if rows is None else rows
    pairs = Pairs(sequence.tensors_of(mask).__getitem__, at, columns, len(columns))
    return pairs, {"i": len(at), "j": len(columns)}


def _run(
    op: Op, arguments: Mapping[str, Argument], cu_seqlens: Tensor | None, rows: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    if cu_seqlens is None:
        return Sequence(op, arguments).result(rows)
    offsets = cu_seqlens.tolist()
    results: list[Tensor] = []
    lses: list[Tensor] = []
    order: list[Tensor] = []
    for start, stop in pairwise(offsets):
        chosen = None
        if rows is not None:
            order.append(((rows >= start) & (rows < stop)).nonzero()[:, 0])
            chosen = rows[order[-1]] - start
        result, lse = Sequence(op, _slice(op, arguments, start, stop)).result(chosen)
        results.append(result)
        lses += [] if lse is None else [lse]
    back = None if rows is None else torch.cat(order).argsort()
    joined = [_join(op.result.axes, results, back)]
    if lses:
        softmax = _last_softmax(op)
        assert softmax is not None
        joined.append(_join(weight_axes(softmax), lses, back))
    return joined[0], joined[1] if lses else None


def _join(axes: tuple[str, ...], parts: list[Tensor], back: Tensor | None) -> Tensor:
    if "time" not in axes:
        return parts[-1]
    along = axes.index("time")
    whole = torch.cat(parts, along)
    return whole if back is None else whole.index_select(along, back)


def _slice(op: Op, arguments: Mapping[str, Argument], start: int, stop: int) -> dict[str, Argument]:
    found: dict[str, Argument] = {}
    for decl in op.params:
        argument = arguments[decl.name]
        if isinstance(argument, Tensor) and "time" in decl.dims:
            argument = argument.narrow(decl.dims.index("time"), start, stop - start)
        found[decl.name] = argument
    return found


def _last_softmax(op: Op) -> Attend | None:
    found = [node for node in postorder((op.result,)) if isinstance(node, Attend) and node.normalize == "softmax"]
    return found[-1] if found else None


def axis_sizes(op: Op, arguments: Mapping[str, Argument]) -> dict[str, int]:
    """The size of each axis that the arguments have; the largest where they differ."""
    sizes: dict[str, int] = {}
    for decl in op.params:
        argument = arguments[decl.name]
        if isinstance(argument, Tensor):
            if argument.dim() != len(decl.dims):
                raise ValueError(f"{decl.name} has {argument.dim()} dimensions, not {decl.dims}")
            for axis, size in zip(decl.dims, argument.shape, strict=True):
                sizes[axis] = max(size, sizes.get(axis, 0))
    return sizes


@dataclass
class Sequence:
    """The evaluation of one op on one batch of whole sequences."""

    op: Op
    arguments: Mapping[str, Argument]

    def __post_init__(self) -> None:
        self.sizes = axis_sizes(self.op, self.arguments)
        self._decls = {decl.name: decl for decl in self.op.params}
        tensors = [argument for argument in self.arguments.values() if isinstance(argument, Tensor)]
        self.device = tensors[0].device if tensors else torch.device("cpu")
        self._values: dict[Expr, Value] = {}
        self._lses: dict[Expr, Value] = {}

    def result(self, rows: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The op's result and the log-sum-exp of its last softmax, at some rows or at all of them."""
        root = self.op.result
        rows = rows if rows is None else rows.to(self.device)
        if rows is None:
            value = self.tensors_of(root)[root]
            lses = self._lses
        else:
            above = list(reached((root,), lambda node: () if isinstance(node, Contraction) else children(node)))
            last = [node for node in above if isinstance(node, Contraction)]
            for contraction in last:
                for child in children(contraction):
                    self.tensors_of(child)
            chosen: dict[Expr, Value] = {}
            lses = {node: value.select("time", rows, "time") for node, value in self._lses.items()}
            for node in above:
                chosen[node] = self._visit(node, chosen, lses, rows)
            value = chosen[root]
        value = value.expanded({axis: self.sizes[axis] for axis in root.axes if axis not in value.axes})
        softmax = _last_softmax(self.op)
        return value.data, None if softmax is None else lses[softmax].data

    def tensors_of(self, expr: Expr) -> dict[Expr, Value]:
        """The values of all expressions without positions below this one (and, for a tensor, its own)."""
        for node in postorder((expr,)):
            if not node.positions and node not in self._values:
                self._values[node] = self._visit(node, self._values, self._lses, None)
        return self._values

    def _visit(self, node: Expr, done: dict[Expr, Value], lses: dict[Expr, Value], rows: Tensor | None) -> Value:
        match node:
            case Const(value=number):
                return Value(torch.tensor(number, dtype=DTYPES[node.kind], device=self.device), ())
            case Size(axis=axis):
                return Value(torch.tensor(self.sizes[axis], device=self.device), ())
            case Param():
                value = self._argument(self._decls[node.name])
                return value if rows is None or "time" not in value.axes else value.select("time", rows, "time")
            case Apply(args=args):
                return apply(node, [done[arg] for arg in args])
            case Reduce(fn=fn, x=x, axis=axis):
                return reduce(fn, done[x], axis)
            case Rename(x=x, old=old, new=new):
                return done[x].renamed(old, new)
            case Rope(x=x, angle=angle):
                return rope(done[x], done[angle])
            case Attend() | MaskTimes() | Solve():
                at = torch.arange(self.sizes["time"], device=self.device) if rows is None else rows
                value, lse = run(node, self._values.__getitem__, at, self.sizes)
                if lse is not None:
                    lses[node] = lse
                return value
        raise TypeError(f"{type(node).__name__} is no tensor")

    def _argument(self, decl: ParamDecl) -> Value:
        """The argument in the reference's dtype, with one entry of `head` for each head and of `batch` for each row."""
        argument = self.arguments[decl.name]
        if not isinstance(argument, Tensor):
            return Value(torch.tensor(argument, dtype=DTYPES[decl.kind], device=self.device), ())
        value = named(argument.to(DTYPES[decl.kind]), decl.dims)
        heads = value.size("head")
        if "head" in value.axes and heads != self.sizes["head"]:
            if self.sizes["head"] % heads:
                raise ValueError(f"{decl.name} has {heads} heads, which do not divide {self.sizes['head']}")
            at = value.axes.index("head")
            value = value.map(lambda data: data.repeat_interleave(self.sizes["head"] // heads, at))
        if "batch" in value.axes and value.size("batch") != self.sizes["batch"]:
            shape = [self.sizes["batch"] if axis == "batch" else -1 for axis in value.axes]
            value = value.map(lambda data: data.expand(shape))
        return value
