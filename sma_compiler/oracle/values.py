"""Tensors whose dimensions have names, and the pointwise functions of the language on them, in fp64.

Gradients absorb zeros: where the gradient of a function's result is 0, the gradients of its arguments are 0 too, even
where its derivative is infinite or NaN. What a boolean factor or a `where` leaves out thereby has the gradient 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from sma_compiler.ir.graph import sort_axes
from sma_compiler.ir.nodes import Apply, Expr, Kind

T = TypeVar("T")

DTYPES = {Kind.BOOL: torch.bool, Kind.INT: torch.int64, Kind.REAL: torch.float64}


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor and the names of its dimensions, which are in the order of `sort_axes`."""

    data: Tensor
    axes: tuple[str, ...]

    def size(self, axis: str) -> int:
        """The size of an axis; 1 where it is missing."""
        return self.data.shape[self.axes.index(axis)] if axis in self.axes else 1

    def map(self, fn: Callable[[Tensor], Tensor]) -> Value:
        return Value(fn(self.data), self.axes)

    def to(self, kind: Kind) -> Value:
        return self.map(lambda data: data.to(DTYPES[kind]))

    def aligned(self, axes: Sequence[str]) -> Tensor:
        """The tensor with these dimensions, size 1 where it lacks one."""
        ordered = self.data.permute([self.axes.index(axis) for axis in axes if axis in self.axes])
        return ordered[tuple(slice(None) if axis in self.axes else None for axis in axes)]

    def renamed(self, old: str, new: str) -> Value:
        return named(self.data, [new if axis == old else axis for axis in self.axes])

    def expanded(self, sizes: dict[str, int]) -> Value:
        """The value with the axes that it lacks, repeated."""
        axes = sort_axes((*self.axes, *sizes))
        shape = [sizes.get(axis, self.size(axis)) for axis in axes]
        return Value(self.aligned(axes).expand(shape), axes)

    def select(self, axis: str, index: Tensor, new: str) -> Value:
        """The entries of `axis` at `index`, along an axis called `new`."""
        return named(
            self.data.index_select(self.axes.index(axis), index),
            [new if name == axis else name for name in self.axes],
        )


def named(data: Tensor, axes: Sequence[str]) -> Value:
    """A value from a tensor with its dimensions in any order."""
    ordered = sort_axes(axes)
    return Value(data.permute([list(axes).index(axis) for axis in ordered]), ordered)


def union(values: Iterable[Value]) -> tuple[str, ...]:
    """All the axes of some values."""
    return sort_axes(axis for value in values for axis in value.axes)


def contract(left: Value, right: Value, over: Iterable[str]) -> Value:
    """The product, summed over the axes `over`; integers stay integers (exact below 2**53)."""
    over = tuple(over)
    every = union((left, right))
    letter = {axis: number for number, axis in enumerate(every)}
    out = [axis for axis in every if axis not in over]
    operands: list[Tensor | list[int]] = []
    for value in (left, right):
        operands += [value.data.to(torch.float64), [letter[axis] for axis in value.axes]]
    data = torch.einsum(*operands, [letter[axis] for axis in out])
    if not (left.data.is_floating_point() or right.data.is_floating_point()):
        data = data.round().to(torch.int64)
    return Value(data, tuple(out))


class _Context(Protocol):
    """What autograd carries from the forward pass to the backward one; torch's own class does not declare it."""

    fn: Callable[..., Tensor]
    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep tensors; they are `saved_tensors` in the backward pass."""


class _Absorbing(torch.autograd.Function):
    """fn(*args) with broadcasting; a zero gradient of the result gives zero gradients, whatever the derivative is."""

    @staticmethod
    def forward(ctx: _Context, fn: Callable[..., Tensor], *args: Tensor) -> Tensor:
        ctx.save_for_backward(*args)
        ctx.fn = fn
        return fn(*args)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        with torch.enable_grad():
            args = [arg.detach().expand(grad.shape) for arg in saved]
            leaves = [arg.requires_grad_() for arg in args if arg.is_floating_point()]
            found = torch.autograd.grad(ctx.fn(*args), leaves, grad, allow_unused=True)
        found_of = {id(leaf): one for leaf, one in zip(leaves, found, strict=True)}
        grads: list[Tensor | None] = []
        for arg, shape in zip(args, saved, strict=True):
            one = found_of.get(id(arg))
            grads.append(None if one is None else torch.where(grad == 0, 0.0, one).sum_to_size(shape.shape))
        return (None, *grads)


def pointwise(fn: Callable[..., Tensor], *args: Value) -> Value:
    """fn of real values, broadcast by axis name."""
    axes = union(args)
    result: Tensor = _Absorbing.apply(fn, *(arg.to(Kind.REAL).aligned(axes) for arg in args))
    return Value(result, axes)


def where(condition: Value, yes: Value, no: Value) -> Value:
    """`yes` where the condition holds, else `no`; both have the same kind."""
    axes = union((condition, yes, no))
    return Value(torch.where(condition.aligned(axes), yes.aligned(axes), no.aligned(axes)), axes)


def keep(condition: Value, value: Value, other: float = 0) -> Value:
    """The value where the condition holds, else `other`."""
    return where(condition, value, Value(torch.full((), other, dtype=value.data.dtype, device=value.data.device), ()))


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "exp": torch.exp,
    "log": torch.log,
    "log2": torch.log2,
    "sqrt": torch.sqrt,
    "relu": torch.relu,
    "silu": functional.silu,
    "sigmoid": torch.sigmoid,
    "logsigmoid": functional.logsigmoid,
    "softplus": functional.softplus,
    "tanh": torch.tanh,
    "elu": functional.elu,
    "gelu": functional.gelu,
    "sin": torch.sin,
    "cos": torch.cos,
    "div": torch.div,
    "pow": torch.pow,
}

ARITHMETIC: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "neg": torch.neg,
    "abs": torch.abs,
    "min": torch.minimum,
    "max": torch.maximum,
    "mod": torch.remainder,
    "floordiv": lambda a, b: torch.div(a, b, rounding_mode="floor"),
}

COMPARISONS: dict[str, Callable[..., Tensor]] = {
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
    "eq": torch.eq,
    "ne": torch.ne,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "not": torch.logical_not,
}


def _exact(fn: Callable[..., Tensor], kind: Kind, args: Sequence[Value]) -> Value:
    axes = union(args)
    return Value(fn(*(arg.to(kind).aligned(axes) for arg in args)), axes)


def apply(node: Apply, args: Sequence[Value]) -> Value:
    """The value of a pointwise node from the values of its arguments (of the kinds that `node.args` have)."""
    fn = node.fn
    kinds = [arg.kind for arg in node.args]
    joined = max(Kind.INT, *kinds)
    if fn == "where":
        return where(args[0], args[1].to(node.kind), args[2].to(node.kind))
    if fn == "mul" and Kind.BOOL in kinds:
        first = kinds.index(Kind.BOOL)
        return keep(args[first], args[1 - first])
    if fn in COMPARISONS:
        return _exact(COMPARISONS[fn], Kind.BOOL if fn in ("and", "or", "not") else joined, args)
    if fn in FUNCTIONS:
        if fn == "pow" and node.kind is Kind.INT:
            return _exact(torch.pow, Kind.INT, args)
        return pointwise(FUNCTIONS[fn], *args)
    if node.kind is Kind.REAL:
        return pointwise(ARITHMETIC[fn], *args)
    if fn in ("floordiv", "mod"):  # an integer divided by 0 is 0 here: it can only be where nothing selects it
        divides = _exact(torch.ne, Kind.INT, (args[1], constant(0, args[1])))
        return keep(divides, _exact(ARITHMETIC[fn], Kind.INT, (args[0], keep(divides, args[1].to(Kind.INT), 1))))
    return _exact(ARITHMETIC[fn], Kind.INT, args)


def reduce(fn: str, value: Value, axis: str) -> Value:
    """`sum`, `mean` or `softmax` (which keeps the axis) over an axis."""
    rest = tuple(name for name in value.axes if name != axis)
    dim = value.axes.index(axis)
    if fn == "sum":
        data = value.data if value.data.is_floating_point() else value.data.to(torch.int64)
        return Value(data.sum(dim), rest)
    real = value.to(Kind.REAL)
    if fn == "mean":
        return Value(real.data.mean(dim), rest)
    top = Value(real.data.detach().amax(dim, keepdim=True), real.axes)
    weights = pointwise(lambda x, m: (x - m).exp(), real, top)
    return pointwise(torch.div, weights, Value(weights.data.sum(dim), rest))


def constant(value: float | int | bool, like: Value) -> Value:
    """A number on the device of another value."""
    kind = Kind.BOOL if isinstance(value, bool) else Kind.INT if isinstance(value, int) else Kind.REAL
    return Value(torch.tensor(value, dtype=DTYPES[kind], device=like.data.device), ())


def fold(root: Expr, below: Callable[[Expr], Iterable[Expr]], visit: Callable[[Expr, dict[Expr, T]], T]) -> T:
    """`visit` of every node that `below` reaches from the root, operands first, each once, without recursion."""
    done: dict[Expr, T] = {}
    for node in reached((root,), below):
        done[node] = visit(node, done)
    return done[root]


def reached(roots: Iterable[Expr], below: Callable[[Expr], Iterable[Expr]]) -> Iterator[Expr]:
    """Every node that `below` reaches from the roots, operands before users, each once, without recursion."""
    seen: set[Expr] = set()
    stack = [(root, False) for root in roots]
    while stack:
        node, ready = stack.pop()
        if ready:
            yield node
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((child, False) for child in below(node) if child not in seen)
