"""Arithmetic on named tensors inside the stream engines, and the order of their dimensions there.

Batch-like axes come first, then chunks, then positions, then what is contracted, then the value: matrix products
over chunks then find their operands contiguous. Axes of the engines' own:

    group, chunk    groups of chunks, and chunks of positions
    pos, row, col   positions within a chunk; as query and as key position of a pair
    half, side      blocks of a chunk, and the earlier and later half of each
    power, turn     the components of a state that carries a kernel (`basis.Basis`)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from sma_compiler.torch_plans.named import Named

_ORDER = [
    *("batch", "head", "mode", "lag", "level"),
    *("group", "chunk", "chunk_from", "time", "half", "side", "pos", "row", "col"),
    *("key", "power", "power_from", "turn", "turn_from", "value"),
]
_RANK = {axis: rank for rank, axis in enumerate(_ORDER)}


def order(axes: Iterable[str]) -> tuple[str, ...]:
    """Axes in the engines' order, each once; contracted axes under fresh names stand beside `key`."""
    return tuple(sorted(set(axes), key=lambda axis: (_RANK.get(axis, _RANK["key"]), axis)))


def without(axes: Iterable[str], *gone: str) -> tuple[str, ...]:
    """Axes without some of them."""
    return tuple(axis for axis in axes if axis not in gone)


def apply(fn: Callable[..., Tensor], *args: Named) -> Named:
    """A pointwise function, broadcast by name."""
    axes = order(axis for arg in args for axis in arg.axes)
    return Named(fn(*(arg.view(axes) for arg in args)), axes)


def multiply(*factors: Named) -> Named:
    """The product, smallest factors first."""
    ranked = sorted(factors, key=lambda factor: len(factor.axes))
    product = ranked[0]
    for factor in ranked[1:]:
        product = apply(torch.mul, product, factor)
    return product


def product(*factors: Named) -> Named | None:
    """The product; None of nothing at all."""
    return multiply(*factors) if factors else None


def some(x: Named | None) -> tuple[Named, ...]:
    """x, if there is one."""
    return () if x is None else (x,)


def add(*terms: Named) -> Named:
    """The sum."""
    total = terms[0]
    for term in terms[1:]:
        total = apply(torch.add, total, term)
    return total


def add_into(total: Named, x: Named) -> Named:
    """The sum, in the memory of a tensor that nothing else uses, as far as it is large enough."""
    if set(x.axes) <= set(total.axes):
        term = x.view(total.axes)
        if all(ours in (1, theirs) for ours, theirs in zip(term.shape, total.data.shape, strict=True)):
            return Named(total.data.add_(term), total.axes)
    return add(total, x)


def add_product(x: Named, weight: Named | None, y: Named) -> Named:
    """x + weight * y."""
    return add(x, y) if weight is None else apply(torch.addcmul, x, weight, y)


def choose(condition: Named, yes: Named, no: float) -> Named:
    """`yes` where the condition holds, else a number."""
    return apply(lambda c, x: torch.where(c, x, no), condition, yes)


def exp2(x: Named) -> Named:
    """2 to the power of every entry."""
    return Named(x.data.exp2(), x.axes)


def contract(left: Named, right: Named, *over: str) -> Named:
    """Sum over some axes of the product of two tensors, by one batched matrix product.

    Axes that both have, and that are not summed, are its batch. The result is dense in the order batch, left, right.
    """
    every = order(without((*left.axes, *right.axes), *over))
    left, right = _squeezed(left), _squeezed(right)
    left, right = _summed_alone(left, over, right), _summed_alone(right, over, left)
    shared = order(axis for axis in left.axes if axis in right.axes and axis not in over)
    inside = [axis for axis in left.axes if axis in over]
    rows = order(without(left.axes, *shared, *over))
    columns = order(without(right.axes, *shared, *over))
    axes = (*without(every, *shared, *rows, *columns), *shared, *rows, *columns)
    shape = [max(left.size(axis), right.size(axis)) for axis in axes]
    a = _matrices(left, shared, rows, inside)
    b = _matrices(right, shared, inside, columns)
    return Named(torch.bmm(a, b).reshape(shape), axes)


def _squeezed(x: Named) -> Named:
    """x without its axes of size 1."""
    once = [axis for axis in x.axes if x.size(axis) == 1]
    return Named(x.data.squeeze([x.axes.index(axis) for axis in once]), without(x.axes, *once)) if once else x


def _summed_alone(x: Named, over: Collection[str], other: Named) -> Named:
    """x summed over the axes that the other operand lacks."""
    return summed(x, [axis for axis in over if axis in x.axes and axis not in other.axes])


def _matrices(x: Named, shared: Sequence[str], rows: Sequence[str], columns: Sequence[str]) -> Tensor:
    """[batch, row, column] of some axes each."""
    sizes = [math.prod(x.size(axis) for axis in axes) for axes in (shared, rows, columns)]
    return x.view((*shared, *rows, *columns)).reshape(sizes)


def reorder(x: Named) -> Named:
    """The same tensor, dense in memory in the engines' order."""
    axes = order(x.axes)
    return Named(x.view(axes).contiguous(), axes)


def at(x: Named, axis: str, index: int) -> Named:
    """One entry of an axis, which goes; x itself where it lacks the axis."""
    if axis not in x.axes:
        return x
    return Named(x.data.select(x.axes.index(axis), index), without(x.axes, axis))


def cut(x: Named, axis: str, start: int, length: int) -> Named:
    """Some entries of an axis; x itself where it lacks the axis."""
    if axis not in x.axes:
        return x
    return Named(x.data.narrow(x.axes.index(axis), start, length), x.axes)


def pad(x: Named, axis: str, before: int, after: int, value: float = 0) -> Named:
    """More entries at both ends of an axis that x has."""
    behind = len(x.axes) - 1 - x.axes.index(axis)
    return Named(functional.pad(x.data, (0, 0) * behind + (before, after), value=value), x.axes)


def padded(x: Named, axis: str, after: int) -> Named:
    """x with zeros behind an axis that it has; x itself where there are none to add."""
    return x if isinstance(after, int) and after == 0 else pad(x, axis, 0, after)


def shifted(x: Named, axis: str, value: float = 0) -> Named:
    """Every entry moved to the next place of the axis, `value` in the first."""
    return pad(cut(x, axis, 0, x.size(axis) - 1), axis, 1, 0, value)


def split(x: Named, axis: str, outer: str, inner: str, size: int) -> Named:
    """An axis as `outer` blocks of `size` entries, `inner`; x itself where it lacks the axis."""
    if axis not in x.axes:
        return x
    place = x.axes.index(axis)
    shape = x.data.shape
    data = x.data.reshape(*shape[:place], shape[place] // size, size, *shape[place + 1 :])
    return Named(data, (*x.axes[:place], outer, inner, *x.axes[place + 1 :]))


def merge(x: Named, outer: str, inner: str, axis: str) -> Named:
    """Two axes as one; the inverse of `split`."""
    rest = without(x.axes, outer, inner)
    place = min(x.axes.index(outer), x.axes.index(inner))
    axes = (*rest[:place], outer, inner, *rest[place:])
    return Named(x.view(axes).flatten(place, place + 1), (*rest[:place], axis, *rest[place:]))


def flip(x: Named, axis: str) -> Named:
    """An axis in the opposite direction; x itself where it lacks the axis."""
    return Named(x.data.flip(x.axes.index(axis)), x.axes) if axis in x.axes else x


def common(sizes: Iterable[int]) -> int:
    """The size that sizes broadcast to."""
    return next((size for size in sizes if size != 1), 1)


def pick(x: Named, axis: str, index: int | Tensor, before: float) -> Named:
    """The entry of an axis at an index, or at one for each batch row; `before` at the index -1. The axis goes."""
    if axis not in x.axes:
        return x
    if not isinstance(index, Tensor):  # a symbolic size, too, while torch exports
        return at(x, axis, index)
    axes = ("batch", *without(x.axes, "batch", axis), axis)
    data = x.view(axes).expand(index.shape[0], *(x.size(name) for name in axes[1:]))
    shape = (-1,) + (1,) * (data.dim() - 1)
    where = index.clamp(min=0).view(shape).expand(*data.shape[:-1], 1)
    found = data.gather(-1, where).masked_fill(index.view(shape) < 0, before)
    return Named(found.squeeze(-1), axes[:-1])


def number(value: float, dtype: torch.dtype, device: torch.device) -> Named:
    """A number without axes."""
    return Named(torch.full((), value, dtype=dtype, device=device), ())


def rename(x: Named, names: Mapping[str, str]) -> Named:
    """The same data with some axes under other names."""
    return Named(x.data, tuple(names.get(axis, axis) for axis in x.axes))


def summed(x: Named, axes: Collection[str]) -> Named:
    """Sum over those of some axes that x has."""
    places = [x.axes.index(axis) for axis in axes if axis in x.axes]
    return Named(x.data.sum(places), without(x.axes, *axes)) if places else x
