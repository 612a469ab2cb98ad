"""A second interpreter of the IR: one number at a time, in plain Python, by the definitions alone."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping

from torch import Tensor

from sma_compiler.ir.nodes import (
    Apply,
    At,
    Attend,
    Const,
    Expr,
    Kind,
    Lag,
    Levels,
    MaskProduct,
    MaskTimes,
    Op,
    Param,
    PathSum,
    Position,
    Reduce,
    Rename,
    Rope,
    Size,
    Solve,
)
from sma_compiler.reference import Argument, axis_sizes

Number = float | int | bool
Place = Mapping[str, int]
"""An index for each axis, and for the positions i, j, t in use."""

FUNCTIONS: dict[str, Callable[..., Number]] = {
    "add": operator.add,
    "sub": operator.sub,
    "neg": operator.neg,
    "div": operator.truediv,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "pow": operator.pow,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
    "not": operator.not_,
    "exp": math.exp,
    "log": math.log,
    "log2": math.log2,
    "sqrt": math.sqrt,
    "abs": abs,
    "min": min,
    "max": max,
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "logsigmoid": lambda x: -math.log1p(math.exp(-x)),
    "softplus": lambda x: math.log1p(math.exp(x)),
    "tanh": math.tanh,
    "elu": lambda x: x if x > 0 else math.expm1(x),
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "sin": math.sin,
    "cos": math.cos,
}


class Scalar:
    """Evaluates one op on one set of arguments."""

    def __init__(self, op: Op, arguments: Mapping[str, Argument]) -> None:
        self.op = op
        self.sizes = axis_sizes(op, arguments)
        self.decls = {decl.name: decl for decl in op.params}
        self.arguments = {name: x.tolist() if isinstance(x, Tensor) else x for name, x in arguments.items()}
        self.shapes = {name: x.shape for name, x in arguments.items() if isinstance(x, Tensor)}
        self.known: dict[tuple[object, ...], Number] = {}

    def at(self, node: Expr, place: Place) -> Number:
        """The element of an expression at a place."""
        key = (node, *(place[name] for name in (*node.axes, *sorted(node.positions))))
        if key not in self.known:
            self.known[key] = self._at(node, place)
        return self.known[key]

    def _at(self, node: Expr, place: Place) -> Number:
        length = self.sizes["time"]
        match node:
            case Const(value=value):
                return value
            case Size(axis=axis):
                return self.sizes[axis]
            case Param():
                return self._argument(node, place)
            case Position(name=name):
                return place[name]
            case At(x=x, position=position):
                return self.at(x, {**place, "time": place[position]})
            case Apply():
                return self._apply(node, place)
            case Reduce(fn=fn, x=x, axis=axis):
                terms = [self.at(x, {**place, axis: n}) for n in range(self._size(axis))]
                if fn == "softmax":
                    return math.exp(self.at(x, place)) / sum(math.exp(term) for term in terms)
                return sum(terms) / len(terms) if fn == "mean" else sum(terms)
            case Rename(x=x, old=old, new=new):
                return self.at(x, {**place, old: place[new]})
            case Lag(table=table, index=index):
                lag = self.at(index, place)
                return self.at(table, {**place, "lag": int(lag)}) if 0 <= lag < self.sizes["lag"] else 0
            case Rope(x=x, angle=angle):
                mode, odd = divmod(place["key"], 2)
                if mode >= self.sizes["mode"]:
                    return self.at(x, place)
                turn = self.at(angle, {**place, "mode": mode})
                first, second = (self.at(x, {**place, "key": 2 * mode + side}) for side in (0, 1))
                if odd:
                    return first * math.sin(turn) + second * math.cos(turn)
                return first * math.cos(turn) - second * math.sin(turn)
            case PathSum(gate=gate, start=start, end=end, start_closed=first_in, end_closed=last_in):
                inside = range(place[start] + (not first_in), place[end] + last_in)
                return sum(self.at(gate, {**place, "t": t}) for t in inside)
            case Levels(weights=weights, row=row):
                i, j = place[row], place["j" if row == "i" else "i"]
                level = (i ^ j).bit_length()
                if j > i or level >= self.sizes["level"]:
                    return 0
                return self.at(weights, {**place, "time": i, "level": level})
            case MaskProduct(left=left, right=right):
                middle = range(length)
                return sum(self.at(left, {**place, "j": m}) * self.at(right, {**place, "i": m}) for m in middle)
            case MaskTimes(mask=mask, x=x):
                pairs = ({**place, "i": place["time"], "j": j} for j in range(length))
                return sum(self._selected(mask, lambda at: self.at(x, {**at, "time": at["j"]}), pair) for pair in pairs)
            case Attend():
                return self._attend(node, place)
            case Solve():
                return self._solve(node, place)
        raise TypeError(type(node).__name__)

    def _size(self, axis: str) -> int:
        return self.sizes[axis.split("'")[0]]

    def _argument(self, node: Param, place: Place) -> Number:
        found = self.arguments[node.name]
        if node.number:
            return found
        decl = self.decls[node.name]
        for axis, size in zip(decl.dims, self.shapes[node.name], strict=True):
            index = place[axis]
            if axis == "head":
                index //= self.sizes["head"] // size
            found = found[min(index, size - 1) if axis == "batch" else index]
        return found

    def _apply(self, node: Apply, place: Place) -> Number:
        fn, args = node.fn, node.args
        if fn == "where":
            return self.at(args[1] if self.at(args[0], place) else args[2], place)
        if fn == "and":
            return all(self.at(arg, place) for arg in args)
        if fn == "or":
            return any(self.at(arg, place) for arg in args)
        if fn == "mul":
            first, second = sorted(args, key=lambda arg: arg.kind is not Kind.BOOL)
            if first.kind is Kind.BOOL:
                return self.at(second, place) if self.at(first, place) else 0
            return self.at(first, place) * self.at(second, place)
        return FUNCTIONS[fn](*(self.at(arg, place) for arg in args))

    def _selected(self, mask: Expr, factor: Callable[[Place], Number], place: Place) -> Number:
        weight = self.at(mask, place)
        return weight * factor(place) if weight else 0

    def _attend(self, node: Attend, place: Place) -> Number:
        keys = range(self.sizes["key"]) if "key" in (*node.mask.axes, *node.q.axes, *node.k.axes) else (0,)
        row = {**place, "i": place["time"]}
        scale = self.at(node.scale, place)
        total, weights = 0.0, 0.0
        for j in range(self.sizes["time"]):
            products = [
                self.at(node.q, {**row, "key": n}) * self.at(node.k, {**row, "time": j, "key": n}) for n in keys
            ]
            masks = [self.at(node.mask, {**row, "j": j, "key": n}) for n in keys]
            if node.normalize == "softmax":
                weight = masks[0] * math.exp(scale * sum(products)) if masks[0] else 0.0
            elif node.activation != "none":
                weight = masks[0] * FUNCTIONS[node.activation](scale * sum(products)) if masks[0] else 0.0
            else:
                weight = scale * sum(map(operator.mul, masks, products))
            weights += weight
            total += weight * self.at(node.v, {**row, "time": j})
        if node.normalize == "none":
            return total
        divisor = max(abs(weights), 1) if node.normalize == "max1" else weights
        return total / divisor if divisor else 0

    def _solve(self, node: Solve, place: Place) -> Number:
        keys = range(self.sizes["key"]) if "key" in (*node.mask.axes, *node.a.axes, *node.b.axes) else (0,)
        found = self.at(node.u, place)
        for j in range(place["time"]):
            row = {**place, "i": place["time"], "j": j}
            terms = (
                self.at(node.mask, {**row, "key": n})
                * self.at(node.a, {**row, "key": n})
                * self.at(node.b, {**row, "time": j, "key": n})
                for n in keys
            )
            found -= sum(terms) * self.at(node, {**place, "time": j})
        return found


def evaluate(op: Op, arguments: Mapping[str, Argument]) -> list[object]:
    """The op's result as nested lists, dimensions in the order of `op.result.axes`."""
    scalar = Scalar(op, arguments)

    def fill(axes: tuple[str, ...], place: Place) -> object:
        if not axes:
            return float(scalar.at(op.result, place))
        return [fill(axes[1:], {**place, axes[0]: n}) for n in range(scalar.sizes[axes[0]])]

    found = fill(op.result.axes, {})
    assert isinstance(found, list)
    return found
