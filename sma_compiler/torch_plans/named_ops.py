"""Operations on named tensors: selection, contraction, tables, rotation."""

from __future__ import annotations

import string
from collections.abc import Iterable

import torch
from torch import Tensor

from sma_compiler.ir.graph import sort_axes
from sma_compiler.torch_plans.named import Named, aligned, union


def canonical(x: Named) -> Named:
    """The same tensor with its dimensions in the order of `sort_axes`."""
    axes = sort_axes(x.axes)
    return Named(x.view(axes), axes)


def dropped(axes: Iterable[str], *gone: str) -> tuple[str, ...]:
    """Axes without some of them."""
    return tuple(axis for axis in axes if axis not in gone)


def common(sizes: Iterable[int]) -> int:
    """The size that some sizes broadcast to."""
    return next((size for size in sizes if size != 1), 1)


def select(holds: Named, x: Named, other: float) -> Named:
    """x where `holds`, else a number; the gradient there is 0. A boolean x is false elsewhere."""
    axes, (condition, data) = aligned(holds, x)
    if data.dtype == torch.bool:
        return Named(condition & data, axes)
    return Named(torch.where(condition, data, other), axes)


def both(left: Named, right: Named) -> Named:
    """The conjunction of two conditions."""
    axes, (ours, theirs) = aligned(left, right)
    return Named(ours & theirs, axes)


def any_over(holds: Named, axis: str) -> Named:
    """Whether a condition holds anywhere along an axis, which goes; a condition without the axis is itself."""
    if axis not in holds.axes:
        return holds
    return Named(holds.data.any(holds.axes.index(axis)), dropped(holds.axes, axis))


def spread(x: Named, axis: str, size: int) -> Named:
    """x with this axis present and of this size (a view)."""
    if x.size(axis) == size and axis in x.axes:
        return x
    axes = sort_axes((*x.axes, axis))
    shape = [size if name == axis else x.size(name) for name in axes]
    return Named(x.view(axes).expand(shape), axes)


def multiply(*factors: Named) -> Named:
    """The product, broadcast by name."""
    axes, views = aligned(*factors)
    data = views[0]
    for view in views[1:]:
        data = data * view
    return Named(data, axes)


def add(*terms: Named) -> Named:
    """The sum, broadcast by name."""
    axes, views = aligned(*terms)
    data = views[0]
    for view in views[1:]:
        data = data + view
    return Named(data, axes)


def contract(left: Named, right: Named, *over: str) -> Named:
    """Sum over some axes of the product of two tensors; sizes of 1 broadcast. Integers give exact sums.

    Real operands must share their dtype, in which torch sums.
    """
    axes = union((left, right))
    out = dropped(axes, *over)
    if not left.data.is_floating_point():
        product = multiply(left, right)
        dims = [axes.index(axis) for axis in over if axis in axes]
        return Named(product.data.sum(dims), out) if dims else product
    letter = dict(zip(axes, string.ascii_letters, strict=False))
    subscripts = ["".join(letter[axis] for axis in x.axes) for x in (left, right)]
    result = "".join(letter[axis] for axis in out)
    return Named(torch.einsum(f"{subscripts[0]},{subscripts[1]}->{result}", left.data, right.data), out)


def cut(x: Named, axis: str, start: int, stop: int) -> Named:
    """Entries start .. stop - 1 of an axis; x itself where it lacks the axis or has it once for all."""
    if axis not in x.axes:
        return x
    return Named(x.data.narrow(x.axes.index(axis), start, stop - start), x.axes)


def picked(x: Named, axis: str, entry: int) -> Named:
    """One entry of an axis, which goes."""
    return Named(x.data.select(x.axes.index(axis), entry), dropped(x.axes, axis))


def negative(x: Named) -> Named:
    """-x."""
    return Named(-x.data, x.axes)


def join(tensors: list[Named], axis: str, sizes: list[int]) -> Named:
    """Tensors one after the other along an axis, which each of them has with its size; other axes broadcast."""
    axes = sort_axes((*union(tensors), axis))
    shape = {name: common(x.size(name) for x in tensors) for name in axes}
    views = []
    for x, size in zip(tensors, sizes, strict=True):
        views.append(x.view(axes).expand([size if name == axis else shape[name] for name in axes]))
    return Named(torch.cat(views, axes.index(axis)), axes)


def look_up(table: Named, axis: str, index: Named) -> Named:
    """The table's `axis` at an integer index, 0 where the index is outside 0 .. length - 1."""
    length = table.size(axis)
    inside = Named((index.data >= 0) & (index.data < length), index.axes)
    rest = dropped(table.axes, axis)
    if length == 0:
        return select(inside, Named(table.data.sum(table.axes.index(axis)), rest), 0)
    at = index.data.clamp(0, length - 1)
    if set(rest).isdisjoint(index.axes):
        rows = table.view((axis, *rest)).index_select(0, at.reshape(-1))
        found = Named(rows.reshape(*at.shape, *rows.shape[1:]), (*index.axes, *rest))
        return canonical(select(inside, found, 0))
    axes = sort_axes((*rest, *index.axes))
    shape = [common((table.size(name), index.size(name))) for name in axes]
    entries = table.view((*axes, axis)).expand(*shape, length)
    at = Named(at, index.axes).view(axes).expand(shape)
    return select(inside, Named(entries.gather(-1, at[..., None]).squeeze(-1), axes), 0)


def rope(x: Named, angle: Named) -> Named:
    """The pairs (2n, 2n + 1) of `key` turned by entry n of the angle's `mode`; pairs beyond it stay.

    The angle is in radians; its sine and cosine are taken in its own dtype, then rounded to that of x.
    """
    pairs = min(angle.size("mode"), x.size("key") // 2)
    turn = cut(angle, "mode", 0, pairs).rename("mode", "key")
    axes = sort_axes((*x.axes, *turn.axes))
    data, turned = x.view(axes), turn.view(axes)
    dim = axes.index("key")
    cos, sin = turned.cos().to(data.dtype), turned.sin().to(data.dtype)
    head = data.narrow(dim, 0, 2 * pairs)
    head = head.reshape(*head.shape[:dim], pairs, 2, *head.shape[dim + 1 :])
    even, odd = head.select(dim + 1, 0), head.select(dim + 1, 1)
    both_turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim + 1).flatten(dim, dim + 1)
    rest = data.narrow(dim, 2 * pairs, x.size("key") - 2 * pairs)
    rest = rest.expand([size if at == dim else both_turned.shape[at] for at, size in enumerate(rest.shape)])
    return Named(torch.cat((both_turned, rest), dim), axes)


def arranged(x: Named, axes: tuple[str, ...], sizes: Iterable[int]) -> Tensor:
    """The data with exactly these axes and sizes (a view)."""
    return x.view(axes).expand(list(sizes))
