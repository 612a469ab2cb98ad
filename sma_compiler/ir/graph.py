"""Makes IR nodes: infers kind, axes and positions, interns, folds constants. It checks nothing: `check.py` does."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from typing import TypeVar

from sma_compiler.ir.nodes import (
    AXES,
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
    Param,
    PathSum,
    Position,
    Reduce,
    Rename,
    Rope,
    Size,
    Solve,
    children,
    postorder,
)
from sma_compiler.source import NOWHERE, Span

COMPARISONS = frozenset({"lt", "le", "gt", "ge", "eq", "ne"})
LOGIC = frozenset({"and", "or", "not"})
ARITHMETIC = frozenset({"add", "sub", "mul", "div", "floordiv", "mod", "pow", "neg"})
_UNARY = "exp log log2 sqrt abs relu silu sigmoid logsigmoid softplus tanh elu gelu sin cos"
FUNCTIONS = frozenset([*_UNARY.split(), "min", "max"])
_KEEPS_KIND = frozenset({"add", "sub", "mul", "floordiv", "mod", "neg", "abs", "min", "max"})
_RANK = {axis: rank for rank, axis in enumerate(AXES)}
_FOLD: dict[str, Callable[..., int]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "neg": operator.neg,
}

N = TypeVar("N", bound=Expr)


def sort_axes(axes: Iterable[str]) -> tuple[str, ...]:
    """Axes in the order of `AXES`, fresh names after them in alphabetical order, each once."""
    return tuple(sorted(set(axes), key=lambda axis: (_RANK.get(axis, len(AXES)), axis)))


def _union(args: Iterable[Expr]) -> tuple[tuple[str, ...], frozenset[str]]:
    args = tuple(args)
    axes = sort_axes(axis for arg in args for axis in arg.axes)
    return axes, frozenset().union(*(arg.positions for arg in args))


def _without(axes: Iterable[str], *gone: str) -> tuple[str, ...]:
    return tuple(axis for axis in axes if axis not in gone)


class Graph:
    """Interns the nodes of one spec. Every method takes the span that errors about the node will show."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[object, ...], Expr] = {}
        self._fresh = 0

    @classmethod
    def of(cls, root: Expr) -> Graph:
        """A graph that holds an expression made elsewhere, to go on building on it."""
        graph = cls()
        for node in postorder((root,)):
            graph._make(node)
            renamed = node.new.rpartition("'")[2] if isinstance(node, Rename) else ""
            graph._fresh = max(graph._fresh, int(renamed) if renamed.isdigit() else 0)
        return graph

    def _make(self, node: N) -> N:
        key = (type(node), *(v for k, v in vars(node).items() if k != "span"))
        if isinstance(node, Const):  # 1, 1.0 and True are equal to Python and differ here
            key = (*key, type(node.value), math.copysign(1, node.value))
        found = self._nodes.setdefault(key, node)
        assert isinstance(found, type(node))
        return found

    def fresh(self, axis: str) -> str:
        """An axis name that nothing else in this graph has."""
        self._fresh += 1
        return f"{axis}'{self._fresh}"

    def const(self, value: int | float | bool, span: Span = NOWHERE) -> Const:
        kind = Kind.BOOL if isinstance(value, bool) else Kind.INT if isinstance(value, int) else Kind.REAL
        return self._make(Const(kind, (), frozenset(), span, value))

    def param(self, name: str, kind: Kind, axes: Iterable[str], number: bool, span: Span = NOWHERE) -> Param:
        """A parameter; `axes` include `batch` wherever the caller's tensor has it."""
        return self._make(Param(kind, sort_axes(axes), frozenset(), span, name, number))

    def size(self, axis: str, span: Span = NOWHERE) -> Size:
        return self._make(Size(Kind.INT, (), frozenset(), span, axis))

    def position(self, name: str, span: Span = NOWHERE) -> Position:
        return self._make(Position(Kind.INT, (), frozenset({name}), span, name))

    def at(self, x: Expr, position: str, span: Span = NOWHERE) -> Expr:
        """x[position]; a static x is itself."""
        if "time" not in x.axes:
            return x
        return self._make(At(x.kind, _without(x.axes, "time"), frozenset({position}), span, x, position))

    def lag(self, table: Expr, index: Expr, span: Span = NOWHERE) -> Expr:
        axes = sort_axes((*_without(table.axes, "lag"), *index.axes))
        return self._make(Lag(table.kind, axes, index.positions | table.positions, span, table, index))

    def apply(self, fn: str, *args: Expr, span: Span = NOWHERE) -> Expr:
        """A pointwise operator or function; arithmetic on integer constants is folded."""
        axes, positions = _union(args)
        top = max(arg.kind for arg in args)
        if fn in COMPARISONS or fn in LOGIC:
            kind = Kind.BOOL
        elif fn == "where":
            kind = max(args[1].kind, args[2].kind)
        elif fn == "mul" and top is Kind.BOOL:
            kind = Kind.BOOL
        elif fn in _KEEPS_KIND:
            kind = max(top, Kind.INT)
        elif fn == "pow" and top <= Kind.INT and isinstance(args[1], Const) and args[1].value >= 0:
            kind = Kind.INT
        else:
            kind = Kind.REAL
        if fn in _FOLD and all(isinstance(arg, Const) and arg.kind is Kind.INT for arg in args):
            value: int = _FOLD[fn](*(arg.value for arg in args if isinstance(arg, Const)))
            if abs(value) < 2**62:
                return self.const(value, span)
        return self._make(Apply(kind, axes, positions, span, fn, args))

    def reduce(self, fn: str, x: Expr, axis: str, span: Span = NOWHERE) -> Expr:
        kind = max(x.kind, Kind.INT) if fn == "sum" else Kind.REAL
        axes = x.axes if fn == "softmax" else _without(x.axes, axis)
        return self._make(Reduce(kind, axes, x.positions, span, fn, x, axis))

    def rename(self, x: Expr, old: str, new: str) -> Expr:
        """x with axis `old` called `new`; x itself where it lacks the axis."""
        if old not in x.axes:
            return x
        axes = sort_axes(new if axis == old else axis for axis in x.axes)
        return self._make(Rename(x.kind, axes, x.positions, x.span, x, old, new))

    def rope(self, x: Expr, angle: Expr, span: Span = NOWHERE) -> Expr:
        axes = sort_axes((*x.axes, *_without(angle.axes, "mode")))
        return self._make(Rope(Kind.REAL, axes, x.positions | angle.positions, span, x, angle))

    def path_sum(
        self, gate: Expr, start: str, end: str, start_closed: bool, end_closed: bool, span: Span = NOWHERE
    ) -> Expr:
        kind = max(gate.kind, Kind.INT)
        positions = frozenset({start, end})
        return self._make(PathSum(kind, gate.axes, positions, span, gate, start, end, start_closed, end_closed))

    def levels(self, weights: Expr, row: str = "i", span: Span = NOWHERE) -> Expr:
        axes = _without(weights.axes, "time", "level")
        return self._make(Levels(weights.kind, axes, frozenset("ij"), span, weights, row))

    def mask_product(self, left: Expr, right: Expr, span: Span = NOWHERE) -> Expr:
        axes, _ = _union((left, right))
        kind = max(left.kind, right.kind, Kind.INT)
        return self._make(MaskProduct(kind, axes, frozenset("ij"), span, left, right))

    def mask_times(self, mask: Expr, x: Expr, span: Span = NOWHERE) -> Expr:
        axes = sort_axes((*mask.axes, *x.axes, "batch", "time"))
        return self._make(MaskTimes(max(mask.kind, x.kind, Kind.INT), axes, frozenset(), span, mask, x))

    def attend(
        self,
        mask: Expr,
        q: Expr,
        k: Expr,
        v: Expr,
        normalize: str = "none",
        activation: str = "none",
        scale: Expr | None = None,
        span: Span = NOWHERE,
    ) -> Expr:
        scale = scale if scale is not None else self.const(1)
        every = (mask, q, k, v, scale)
        axes = sort_axes(("batch", "time", *(axis for arg in every for axis in arg.axes if axis != "key")))
        return self._make(Attend(Kind.REAL, axes, frozenset(), span, mask, q, k, v, normalize, activation, scale))

    def solve(self, mask: Expr, a: Expr, b: Expr, u: Expr, span: Span = NOWHERE) -> Expr:
        every = (mask, a, b, u)
        axes = sort_axes(("batch", "time", *(axis for arg in every for axis in arg.axes if axis != "key")))
        return self._make(Solve(Kind.REAL, axes, frozenset(), span, mask, a, b, u))

    def replace(self, root: Expr, leaves: dict[Expr, Expr]) -> Expr:
        """`root` with some nodes of its own mask (not of contractions nested in its tensors) replaced."""
        done = dict(leaves)
        for node in postorder((root,)):
            if node not in done:
                done[node] = self.rebuild(node, done)
        return done[root]

    def reposition(self, mask: Expr, names: dict[str, str]) -> Expr:
        """The mask with its positions renamed: `{"i": "j"}` moves a row factor to the column."""
        done: dict[Expr, Expr] = {}
        for node in postorder((mask,)):
            match node:
                case _ if not node.positions & names.keys():
                    done[node] = node
                case Position(name=name):
                    done[node] = self.position(names.get(name, name), node.span)
                case At(x=x, position=position):
                    done[node] = self.at(x, names.get(position, position), node.span)
                case Levels(weights=weights, row=row):
                    done[node] = self.levels(weights, names.get(row, row), node.span)
                case PathSum(gate=gate, start=start, end=end, start_closed=first, end_closed=last):
                    ends = names.get(start, start), names.get(end, end)
                    done[node] = self.path_sum(gate, *ends, first, last, node.span)
                case _:
                    done[node] = self.rebuild(node, done)
        return done[mask]

    def transpose(self, mask: Expr) -> Expr:
        """The mask with i and j swapped; (L @ M)^T = M^T @ L^T."""
        flipped = self.reposition(mask, {"i": "j", "j": "i"})
        done: dict[Expr, Expr] = {}
        for node in postorder((flipped,)):
            if isinstance(node, MaskProduct):
                done[node] = self.mask_product(done[node.right], done[node.left], node.span)
            else:
                done[node] = self.rebuild(node, done)
        return done[flipped]

    def rebuild(self, node: Expr, done: dict[Expr, Expr]) -> Expr:
        """The node over new operands; contractions, whose masks have positions of their own, stay as they are."""
        if isinstance(node, Attend | MaskTimes | Solve) or all(done[child] is child for child in children(node)):
            return node
        new = {k: done[v] for k, v in vars(node).items() if isinstance(v, Expr)}
        match node:
            case Apply(fn=fn, args=args):
                return self.apply(fn, *(done[arg] for arg in args), span=node.span)
            case At(position=position):
                return self.at(new["x"], position, node.span)
            case Lag():
                return self.lag(new["table"], new["index"], node.span)
            case Reduce(fn=fn, axis=axis):
                return self.reduce(fn, new["x"], axis, node.span)
            case Rename(old=old, new=name):
                return self.rename(new["x"], old, name)
            case Rope():
                return self.rope(new["x"], new["angle"], node.span)
            case PathSum(start=start, end=end, start_closed=first, end_closed=last):
                return self.path_sum(new["gate"], start, end, first, last, node.span)
            case Levels(row=row):
                return self.levels(new["weights"], row, node.span)
            case MaskProduct():
                return self.mask_product(new["left"], new["right"], node.span)
        raise AssertionError(f"{type(node).__name__} has no mask inside")
