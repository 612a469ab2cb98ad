"""Masks written out: the value of a mask expression at every pair of some rows and some columns, in fp64.

A value over pairs has the dimensions `i` and `j`; a path's gate has `t`. Besides its value, a mask has a *support*
(where no boolean factor makes it 0) and a *signed logarithm*, which holds where the value itself would underflow.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sma_compiler.ir.nodes import (
    Apply,
    At,
    Const,
    Expr,
    Kind,
    Lag,
    Levels,
    MaskProduct,
    PathSum,
    Position,
    Reduce,
    Rename,
    Rope,
)
from sma_compiler.oracle.values import (
    Value,
    apply,
    contract,
    fold,
    keep,
    named,
    pointwise,
    reached,
    reduce,
    union,
    where,
)

SignedLog = tuple[Value, Value]
"""log|x| and the sign of x, both real."""


class Pairs:
    """Evaluates mask expressions at `rows` x `columns` of a sequence of `length` positions.

    tensors: the values of expressions without positions. rows, columns: int64 positions, both [n].
    """

    def __init__(self, tensors: Callable[[Expr], Value], rows: Tensor, columns: Tensor, length: int) -> None:
        self.tensors = tensors
        self.length = length
        self.places = {"i": rows, "j": columns, "t": torch.arange(length, device=rows.device)}
        self._values: dict[Expr, Value] = {}

    def value(self, mask: Expr) -> Value:
        """The mask, of its own kind; without the dimension of a position that it does not mention."""
        for node in reached((mask,), _operands):
            if node not in self._values:
                self._values[node] = self._visit(node)
        return self._values[mask]

    def support(self, mask: Expr) -> Value | None:
        """Where no boolean factor and no `where` makes the mask 0; None: everywhere."""
        return fold(mask, _terms, self._support)

    def log(self, mask: Expr) -> SignedLog:
        """log|mask| (-inf where it is 0) and its sign, built from the logarithms of its factors and terms."""
        return fold(mask, _terms, self._log)

    def _visit(self, node: Expr) -> Value:
        done = self._values
        if not node.positions:
            return self.tensors(node)
        match node:
            case Position(name=name):
                return Value(self.places[name], (name,))
            case At(x=x, position=position):
                return self._at(self.tensors(x), position)
            case Apply(args=args):
                return apply(node, [done[arg] for arg in args])
            case Reduce(fn=fn, x=x, axis=axis):
                return reduce(fn, done[x], axis)
            case Rename(x=x, old=old, new=new):
                return done[x].renamed(old, new)
            case Rope(x=x, angle=angle):
                return rope(done[x], done[angle])
            case Lag(table=table, index=index):
                return look_up(done[table], done[index])
            case PathSum():
                return self._path_sum(node)
            case Levels():
                return self._levels(node)
            case MaskProduct():
                return self._product(node)
        raise TypeError(f"{type(node).__name__} is no mask")

    def _at(self, x: Value, position: str) -> Value:
        """x[position]; a value without time is itself."""
        return x.select("time", self.places[position], position) if "time" in x.axes else x

    def _path_sum(self, node: PathSum) -> Value:
        """The sum of the gates that the row keeps, taken up from the row: no sum is the difference of two others."""
        gate = self._values[node.gate]
        rows, columns, steps = self.places["i"][:, None], self.places["j"], self.places["t"]
        if "t" not in gate.axes:
            start, end = (rows, columns) if node.start == "i" else (columns, rows)
            count = (end - start - 1 + node.start_closed + node.end_closed).clamp(min=0)
            inside = Value(count > 0, ("i", "j"))
            return keep(inside, apply_times(gate, Value(count, ("i", "j")), node.kind))
        from_row = node.start == "i"
        row_closed, column_closed = (node.start_closed, node.end_closed)[:: 1 if from_row else -1]
        later = steps >= rows if row_closed else steps > rows
        earlier = steps <= rows if row_closed else steps < rows
        inside = Value(later if from_row else earlier, ("i", "t"))
        kept = keep(inside, gate.to(node.kind))
        along = kept.axes.index("t")
        nothing = kept.data.narrow(along, 0, 0).sum(along, keepdim=True)
        if from_row:  # the sum up to t is entry t + 1
            sums = torch.cat((nothing, kept.data.cumsum(along)), along)
            last = columns + (1 if column_closed else 0)
        else:  # the sum from t on is entry t
            sums = torch.cat((kept.data.flip(along).cumsum(along).flip(along), nothing), along)
            last = columns + (0 if column_closed else 1)
        return Value(sums, kept.axes).select("t", last, "j")

    def _levels(self, node: Levels) -> Value:
        rows, columns = self.places["i"][:, None], self.places["j"][None, :]
        if node.row == "j":
            rows, columns = columns, rows
        level = torch.frexp((rows ^ columns).to(torch.float64)).exponent.to(torch.int64)  # bit length; 0 of 0
        inside = Value(columns <= rows, ("i", "j"))
        weights = self.tensors(node.weights)
        return keep(inside, look_up(self._at(weights, node.row), Value(level, ("i", "j")), "level"))

    def _factors(self, node: MaskProduct) -> tuple[Pairs, dict[str, int], Pairs, dict[str, int]]:
        """The rows of the left factor and the columns of the right one, each with all positions on the other side."""
        rows, every, columns = self.places["i"], self.places["t"], self.places["j"]
        left, right = Pairs(self.tensors, rows, every, self.length), Pairs(self.tensors, every, columns, self.length)
        return left, {"i": len(rows), "j": self.length}, right, {"i": self.length, "j": len(columns)}

    def _product(self, node: MaskProduct) -> Value:
        left, left_sizes, right, right_sizes = self._factors(node)
        first = left.value(node.left).expanded(left_sizes).renamed("j", "between")
        second = right.value(node.right).expanded(right_sizes).renamed("i", "between")
        return contract(first, second, ("between",))

    def _product_support(self, node: MaskProduct) -> Value | None:
        left, left_sizes, right, right_sizes = self._factors(node)
        first, second = left.support(node.left), right.support(node.right)
        if first is None or second is None:
            return None
        first = first.expanded(left_sizes).renamed("j", "between")
        second = second.expanded(right_sizes).renamed("i", "between")
        return contract(first, second, ("between",)).map(lambda data: data > 0)

    def _support(self, node: Expr, done: dict[Expr, Value | None]) -> Value | None:
        match node:
            case Expr(kind=Kind.BOOL):
                return self.value(node)
            case Apply(fn="mul", args=args):
                return _both(done[args[0]], done[args[1]])
            case Apply(fn="neg" | "abs", args=args) | Apply(fn="div", args=args):
                return done[args[0]]
            case Apply(fn="add" | "sub", args=args):
                return _either(done[args[0]], done[args[1]])
            case Apply(fn="where", args=(condition, yes, no)):
                holds = self.value(condition)
                first = _both(holds, done[yes])
                second = _both(holds.map(torch.logical_not), done[no])
                return _either(first, second)
            case Reduce(fn="sum" | "mean", axis=axis, x=x):
                return _any(done[x], axis)
            case Rename(x=x, old=old, new=new):
                inner = done[x]
                return inner if inner is None else inner.renamed(old, new)
            case At(x=x, position=position):
                inner = done[x]
                return inner if inner is None else self._at(inner, position)
            case MaskProduct():
                return self._product_support(node)
            case Const(value=0):
                return self.value(node).map(lambda data: data != 0)
        return None

    def _log(self, node: Expr, done: dict[Expr, SignedLog]) -> SignedLog:
        match node:
            case Expr(kind=Kind.BOOL):
                held = self.value(node).to(Kind.REAL)
                return held.map(torch.log), held
            case Apply(fn="mul", args=args):
                for condition, other in (args, args[::-1]):
                    if condition.kind is Kind.BOOL:
                        magnitude, sign = done[other]
                        return keep(self.value(condition), magnitude, -torch.inf), sign
                return _times(done[args[0]], done[args[1]])
            case Apply(fn="div", args=args):
                magnitude, sign = done[args[1]]
                return _times(done[args[0]], (magnitude.map(torch.neg), sign))
            case Apply(fn="exp", args=(exponent,)):
                return _positive(self.value(exponent).to(Kind.REAL))
            case Apply(fn="sigmoid", args=(x,)):
                return _positive(pointwise(torch.nn.functional.logsigmoid, self.value(x)))
            case Apply(fn="pow", args=(base, exponent)) if not isinstance(exponent, Const):
                return _positive(_power_log(self.value(base), self.value(exponent)))
            case Apply(fn="neg", args=(x,)):
                magnitude, sign = done[x]
                return magnitude, sign.map(torch.neg)
            case Apply(fn="add", args=args):
                return _plus(done[args[0]], done[args[1]])
            case Apply(fn="sub", args=args):
                magnitude, sign = done[args[1]]
                return _plus(done[args[0]], (magnitude, sign.map(torch.neg)))
            case Apply(fn="where", args=(condition, yes, no)):
                holds = self.value(condition)
                return where(holds, done[yes][0], done[no][0]), where(holds, done[yes][1], done[no][1])
            case Reduce(fn="sum", x=x, axis=axis):
                return _total(done[x], axis)
            case Rename(x=x, old=old, new=new):
                return done[x][0].renamed(old, new), done[x][1].renamed(old, new)
            case At(x=x, position=position):
                return self._at(done[x][0], position), self._at(done[x][1], position)
        value = self.value(node).to(Kind.REAL)
        return pointwise(lambda x: x.abs().log(), value), value.map(lambda data: data.detach().sign())


def _operands(node: Expr) -> tuple[Expr, ...]:
    """The operands that are evaluated at the same positions as the node."""
    match node:
        case _ if not node.positions:
            return ()
        case Apply(args=args):
            return args
        case Reduce(x=x) | Rename(x=x):
            return (x,)
        case Rope(x=x, angle=angle):
            return (x, angle)
        case Lag(table=table, index=index):
            return (table, index)
        case PathSum(gate=gate):
            return (gate,)
    return ()


def _terms(node: Expr) -> tuple[Expr, ...]:
    """The operands whose support and logarithm decide those of the node."""
    match node:
        case Expr(kind=Kind.BOOL):
            return ()
        case Apply(fn="where", args=(_, yes, no)):
            return (yes, no)
        case Apply(fn="mul" | "div" | "add" | "sub" | "neg" | "abs", args=args):
            return args
        case Reduce(fn="sum" | "mean", x=x) | Rename(x=x) | At(x=x):
            return (x,)
    return ()


def _both(left: Value | None, right: Value | None) -> Value | None:
    if left is None or right is None:
        return left if right is None else right
    axes = union((left, right))
    return Value(left.aligned(axes) & right.aligned(axes), axes)


def _either(left: Value | None, right: Value | None) -> Value | None:
    if left is None or right is None:
        return None
    axes = union((left, right))
    return Value(left.aligned(axes) | right.aligned(axes), axes)


def _any(value: Value | None, axis: str) -> Value | None:
    if value is None or axis not in value.axes:
        return value
    return Value(value.data.any(value.axes.index(axis)), tuple(name for name in value.axes if name != axis))


def _positive(magnitude: Value) -> SignedLog:
    return magnitude, magnitude.map(torch.ones_like)


def _times(left: SignedLog, right: SignedLog) -> SignedLog:
    return pointwise(torch.add, left[0], right[0]), pointwise(torch.mul, left[1], right[1])


def _power_log(base: Value, exponent: Value) -> Value:
    """log of base ** exponent; 0 ** 0 is 1."""
    return pointwise(lambda b, e: e * torch.where(e == 0, 1.0, b).log(), base, exponent)


def _plus(left: SignedLog, right: SignedLog) -> SignedLog:
    """log|x + y| and the sign, relative to the larger of the two."""
    axes = union((*left, *right))
    magnitude, sign = (
        Value(torch.stack(_spread([x.aligned(axes), y.aligned(axes)])), ("term", *axes))
        for x, y in zip(left, right, strict=True)
    )
    return _total((named(magnitude.data, magnitude.axes), named(sign.data, sign.axes)), "term")


def _spread(tensors: list[Tensor]) -> list[Tensor]:
    shape = [max(sizes) if min(sizes) else 0 for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    return [tensor.expand(shape) for tensor in tensors]


def _total(terms: SignedLog, axis: str) -> SignedLog:
    """log|sum of x| along an axis and the sign, relative to the largest."""
    axes = union(terms)
    magnitude, sign = _spread([term.aligned(axes) for term in terms])
    dim = axes.index(axis)
    rest = tuple(name for name in axes if name != axis)
    top = magnitude.detach().amax(dim, keepdim=True)
    top = torch.where(top.isfinite(), top, 0.0)
    scaled = pointwise(lambda m, s, t: s * (m - t).exp(), *(Value(one, axes) for one in (magnitude, sign, top)))
    total = Value(scaled.data.sum(dim), rest)
    lifted = pointwise(lambda x, t: x.abs().log() + t, total, Value(top.squeeze(dim), rest))
    return lifted, total.map(lambda data: data.detach().sign())


def apply_times(gate: Value, count: Value, kind: Kind) -> Value:
    """gate * count, of this kind; a gate of -inf times 0 is 0 by the caller's choice."""
    if kind is Kind.REAL:
        return pointwise(torch.mul, gate, count)
    axes = union((gate, count))
    return Value(gate.to(kind).aligned(axes) * count.aligned(axes), axes)


def look_up(table: Value, index: Value, axis: str = "lag") -> Value:
    """The table's `axis` at an integer index, 0 outside 0..length-1."""
    length = table.size(axis)
    inside = index.map(lambda data: (data >= 0) & (data < length))
    if not length:
        return keep(inside, table.map(lambda data: data.sum(table.axes.index(axis))))
    clamped = index.map(lambda data: data.clamp(0, length - 1))
    if not set(table.axes) & set(index.axes):
        found = table.select(axis, clamped.data.reshape(-1), "flat")
        at = found.axes.index("flat")
        data = found.data.reshape(*found.data.shape[:at], *clamped.data.shape, *found.data.shape[at + 1 :])
        axes = (*found.axes[:at], *clamped.axes, *found.axes[at + 1 :])
        return keep(inside, named(data, axes))
    axes = union((table, clamped))
    rest = tuple(name for name in axes if name != axis)
    sizes = [(table if name in table.axes else clamped).size(name) for name in rest]
    spread = table.aligned((*rest, axis)).expand(*sizes, length)
    chosen = clamped.aligned(rest).expand(sizes)
    return keep(inside, Value(spread.gather(-1, chosen[..., None]).squeeze(-1), rest))


def rope(x: Value, angle: Value) -> Value:
    """The pairs (2n, 2n + 1) of `key` turned by entry n of the angle's `mode`; pairs beyond it stay."""
    turned = 2 * angle.size("mode")
    key = x.axes.index("key")
    first_of_pair = torch.arange(0, turned, 2, device=x.data.device)
    even, odd = (x.select("key", first_of_pair + parity, "pair") for parity in (0, 1))
    pairs = angle.renamed("mode", "pair")
    first = pointwise(lambda a, b, t: a * t.cos() - b * t.sin(), even, odd, pairs)
    second = pointwise(lambda a, b, t: a * t.sin() + b * t.cos(), even, odd, pairs)
    at = first.axes.index("pair")
    both = named(torch.stack((first.data, second.data), at + 1).flatten(at, at + 1), first.axes).renamed("pair", "key")
    if turned == x.size("key"):
        return both
    others = Value(x.to(Kind.REAL).data.narrow(key, turned, x.size("key") - turned), x.axes)
    others = others.expanded({axis: both.size(axis) for axis in both.axes if axis != "key"})
    return Value(torch.cat((both.data, others.data), both.axes.index("key")), both.axes)
