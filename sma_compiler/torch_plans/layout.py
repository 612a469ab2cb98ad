"""Arithmetic on named tensors inside the stream engines, and the order of their dimensions there.

Batch-like axes come first, then chunks, then positions, then what is contracted, then the value: matrix products
over chunks then find their operands contiguous. Axes of the engines' own:

    group, chunk    groups of chunks, and chunks of positions
    pos, row, col   positions within a chunk; as query and as key position of a pair
    half, side      blocks of a chunk, and the earlier and later half of each
    power, turn     the components of a state that carries a kernel (`basis.Basis`)
"""

from __future__ import annotations

import string
from collections.abc import Callable, Collection, Iterable, Mapping

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


def choose(condition: Named, yes: Named, no: float) -> Named:
    """`yes` where the condition holds, else a number."""
    return apply(lambda c, x: torch.where(c, x, no), condition, yes)


def exp2(x: Named) -> Named:
    """2 to the power of every entry."""
    return Named(x.data.exp2(), x.axes)


def contract(left: Named, right: Named, *over: str) -> Named:
    """Sum over some axes of the product: batched matrix products wherever both operands have the axes."""
    axes = order((*left.axes, *right.axes))
    letter = dict(zip(axes, string.ascii_letters, strict=False))
    terms = ["".join(letter[axis] for axis in x.axes) for x in (left, right)]
    out = tuple(axis for axis in axes if axis not in over)
    result = "".join(letter[axis] for axis in out)
    return Named(torch.einsum(f"{terms[0]},{terms[1]}->{result}", left.data, right.data), out)


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
    found = torch.where(index.view(shape) < 0, before, data.gather(-1, where))
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
