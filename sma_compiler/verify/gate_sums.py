"""How far a mask's exponents reach: the largest sum of |log gate| over 64 positions, on the actual inputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from sma_compiler.ir.graph import Graph
from sma_compiler.ir.nodes import (
    Apply,
    Const,
    Contraction,
    Expr,
    MaskProduct,
    Op,
    PathSum,
    Reduce,
    Rename,
    postorder,
)
from sma_compiler.mask.elementary import elementary
from sma_compiler.oracle.masks import Pairs
from sma_compiler.oracle.values import Value, fold, pointwise, union
from sma_compiler.reference import Argument, Sequence
from sma_compiler.verify.errors import POSITIONS


def contractions(op: Op) -> tuple[Contraction, ...]:
    """The contractions of an op whose masks are more than a shift or a sum: those that need a plan."""
    every = [node for node in postorder((op.result,)) if isinstance(node, Contraction)]
    graph = Graph.of(op.result)
    counted = tuple(node for node in every if elementary(graph, node) is None)
    return counted or tuple(every)


def gate_sum(op: Op, arguments: Mapping[str, Argument]) -> float:
    """G: the largest sum of |log gate| over 64 positions, finite gates only; the largest of the op's masks."""
    sequence = Sequence(op, arguments)
    sums = [_mask_sum(node.mask, sequence) for node in contractions(op)]
    return max(sums, default=0.0)


def _mask_sum(mask: Expr, sequence: Sequence) -> float:
    length = sequence.sizes["time"]
    places = torch.arange(length, device=sequence.device)
    near = places[: POSITIONS + 1]  # what depends on i - j alone is as large here as anywhere
    tensors = sequence.tensors_of(mask).__getitem__
    band = Pairs(tensors, near, near, len(near))
    path = Pairs(tensors, near[:0], near[:0], length)

    def visit(node: Expr, done: dict[Expr, float]) -> float:
        match node:
            case Apply(fn="exp", args=(PathSum(gate=gate),)):
                return _window(path.value(gate), length)
            case Apply(fn="exp", args=(exponent,)) if exponent.positions >= {"i", "j"}:
                return _largest(band.value(exponent), band.support(mask))
            case Apply(fn="pow", args=(base, exponent)) if not isinstance(exponent, Const):
                logs = pointwise(lambda b, e: e * b.log(), band.value(base), band.value(exponent))
                return _largest(logs, band.support(mask))
            case Apply(fn="mul" | "div", args=(x, y)):
                return done[x] + done[y]
            case MaskProduct(left=x, right=y):
                return done[x] + done[y]
            case Apply(fn="add" | "sub" | "min" | "max", args=(x, y)) | Apply(fn="where", args=(_, x, y)):
                return max(done[x], done[y])
            case Apply(fn="neg" | "abs", args=(x,)) | Reduce(x=x) | Rename(x=x):
                return done[x]
        return 0.0

    return fold(mask, _terms, visit)


def _terms(node: Expr) -> tuple[Expr, ...]:
    match node:
        case Apply(fn="mul" | "div" | "add" | "sub" | "min" | "max" | "where" | "neg" | "abs", args=args):
            return args
        case MaskProduct(left=x, right=y):
            return (x, y)
        case Reduce(x=x) | Rename(x=x):
            return (x,)
    return ()


def _window(gate: Value, length: int) -> float:
    """The largest sum of |gate| over `POSITIONS` neighbours."""
    size = torch.where(gate.data.isfinite(), gate.data.to(torch.float64), 0.0).abs()
    if "t" not in gate.axes:
        return float(size.max()) * min(POSITIONS, length)
    if not length:
        return 0.0
    along = size.movedim(gate.axes.index("t"), -1)
    return float(along.unfold(-1, min(POSITIONS, length), 1).sum(-1).max())


def _largest(exponent: Value, support: Value | None) -> float:
    size = exponent.data.to(torch.float64).abs()
    if support is not None:
        axes = union((exponent, support))
        size = torch.where(support.aligned(axes), Value(size, exponent.axes).aligned(axes), 0.0)
    finite = size[size.isfinite()]
    return float(finite.max()) if finite.numel() else 0.0
