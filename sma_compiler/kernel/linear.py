"""Recognises the scalar-gated linear family: one contraction whose mask is a sum of causal streams, no gate a channel.

    y = f(sum over streams of  row_i  col_j  exp(path from j to i)  (q_i . k_j)  v_j, ...)

Factors of q, k and v that lack the contracted axis (a step, the divisor of a norm, a scale) move into `row` and `col`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sma_compiler.ir.graph import Graph
from sma_compiler.ir.nodes import (
    Apply,
    At,
    Attend,
    Const,
    Contraction,
    Expr,
    Kind,
    Lag,
    Levels,
    Op,
    Param,
    Position,
    Rename,
    Rope,
    Size,
    postorder,
)
from sma_compiler.kernel.errors import NoTritonKernel
from sma_compiler.mask.nodes import Gate, Stream
from sma_compiler.plan.choose import Plans

KNOWN_AXES = frozenset({"batch", "time", "head", "key", "value"})
FUNCTIONS = frozenset(
    [
        *("add", "sub", "mul", "div", "neg", "lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not", "where"),
        *("min", "max", "pow", "exp", "log", "log2", "sqrt", "abs", "relu", "silu", "sigmoid", "logsigmoid"),
        *("softplus", "tanh", "elu", "gelu"),
    ]
)
"""The pointwise functions that kernels compute. Phases (`sin`, `cos`) need fp64, `//` and `%` integers."""


@dataclass(frozen=True)
class Term:
    """One stream: its factors at the query and at the key, its path, and whether the diagonal is left out.

    exact: whether the kernel takes care that sums round as little as fp32 can: factors stay outside of exponents,
    exponents of pairs are no differences, and products are summed apart from what they are added to.
    """

    row: tuple[Expr, ...]
    col: tuple[Expr, ...]
    gates: tuple[Gate, ...]
    strict: bool
    exact: bool = False


@dataclass(frozen=True)
class Linear:
    """An op of the family. `q`, `k` have the key axis, `v` the value axis; `attend` is where the result reads y.

    backward: whether queries see what comes after them, and not what came before.
    """

    op: Op
    attend: Attend
    q: Expr
    k: Expr
    v: Expr
    terms: tuple[Term, ...]
    normalize: str
    backward: bool


def linear(op: Op, plans: Plans, plan: str, exact: bool = False) -> Linear:
    """The op as a member of the family. exact: see `Term`.

    Raises:
        NoTritonKernel: it is none.
    """

    def refuse(reason: str) -> NoTritonKernel:
        return NoTritonKernel(op.name, plan, reason)

    nodes = tuple(postorder((op.result,)))
    contractions = [node for node in nodes if isinstance(node, Contraction)]
    attend = contractions[0] if len(contractions) == 1 else None
    if not isinstance(attend, Attend):
        raise refuse("kernels exist for one `attend` without shifts, sums over time or `solve` around it")
    choice = plans.of(attend)
    if plan not in choice.legal:
        raise refuse(dict(choice.refused)[plan])
    if attend.normalize not in ("none", "sum", "max1"):
        raise refuse("softmax weights have no chunked kernel")
    mask = choice.site.decomposition
    why = _unfit(mask.streams, bool(mask.near)) or _foreign(nodes) or _axes(op, attend)
    if why:
        raise refuse(why)
    graph = plans.graph
    q, rows = _peel(graph, attend.q, "key")
    k, cols = _peel(graph, attend.k, "key")
    v, more = _peel(graph, attend.v, "value")
    if attend.scale is not graph.const(1):
        rows = (attend.scale, *rows)
    terms = tuple(
        Term((*stream.row, *rows), (*stream.col, *cols, *more), stream.gates, stream.first == 1, exact)
        for stream in mask.streams
    )
    return Linear(op, attend, q, k, v, terms, attend.normalize, mask.streams[0].side == "upper")


def _unfit(streams: tuple[Stream, ...], near: bool) -> str:
    if near or not streams:
        return "a band of the mask is no stream"
    for stream in streams:
        if stream.side == "full" or stream.side != streams[0].side:
            return "the mask looks both ways"
        if stream.segments:
            return "runs of equal ids have no kernel yet: pass the pack as cu_seqlens"
        if stream.degree or stream.turns:
            return "a kernel of the distance (a power, a cosine) has no tile form"
        if stream.contracted or stream.delay:
            return "the mask is itself a product or a sum over an axis"
        if not stream.first and any(not (gate.key_closed or gate.query_closed) for gate in stream.gates):
            return "a path open at both ends holds the diagonal: write i == j as a term of its own"
        every = (*stream.row, *stream.col, *(gate.log for gate in stream.gates))
        if any(axis in ("key", "value") for expr in every for axis in expr.axes):
            return "the mask has a gate or a factor for each channel"
    return ""


def _foreign(nodes: Iterable[Expr]) -> str:
    """Why the expressions around the contraction have no tile form."""
    for node in nodes:
        match node:
            case Apply(fn=fn) if fn not in FUNCTIONS and not _in_mask(node):
                return f"`{fn}` has no tile form"
            case Rope() | Lag() | Levels() | Rename():
                return f"`{type(node).__name__.lower()}` has no tile form"
            case Position() if not _in_mask(node):
                return "positions have no tile form"
            case Param(axes=axes) if not set(axes) <= KNOWN_AXES:
                return f"`{node.name}` has an axis that tiles lack"
            case Param(axes=axes) if {"key", "value"} <= set(axes):
                return f"`{node.name}` has both a key and a value axis"
    return ""


def _in_mask(node: Expr) -> bool:
    """Whether an expression is a mask, which the decomposition has replaced."""
    return bool(node.positions & {"i", "j"})


def _axes(op: Op, attend: Attend) -> str:
    if "key" not in attend.q.axes or "key" not in attend.k.axes:
        return "q or k has no key axis"
    if "value" not in attend.v.axes or "value" in (*attend.q.axes, *attend.k.axes) or "key" in attend.v.axes:
        return "v needs a value axis of its own"
    if set(op.result.axes) != {"batch", "time", "head", "value"}:
        return "the result is no [batch, time, head, value]"
    if any("time" not in x.axes for x in (attend.q, attend.k, attend.v)):
        return "q, k or v has no time axis"
    return ""


def _peel(graph: Graph, operand: Expr, axis: str) -> tuple[Expr, tuple[Expr, ...]]:
    """An operand as one expression with the axis, times factors without it."""
    inner: list[Expr] = []
    outer: list[Expr] = []
    one = graph.const(1)
    stack = [operand]
    while stack:
        node = stack.pop()
        match node:
            case Expr() if axis not in node.axes:
                outer.append(node)
            case Apply(fn="mul", args=args) if node.kind is Kind.REAL and all(x.kind is Kind.REAL for x in args):
                stack.extend(reversed(args))
            case Apply(fn="div", args=(above, below)) if axis not in below.axes:
                stack.append(above)
                outer.append(graph.apply("div", one, below))
            case Apply(fn="neg", args=(x,)):
                stack.append(x)
                outer.append(graph.const(-1.0))
            case _:
                inner.append(node)
    core = inner[0]
    for node in inner[1:]:
        core = graph.apply("mul", core, node)
    return core, tuple(outer)


def static_number(expr: Expr) -> bool:
    """Whether an expression is a number known when a kernel is launched: constants, sizes, number parameters."""
    return all(
        isinstance(node, Const | Size)
        or (isinstance(node, Param) and node.number)
        or (isinstance(node, Apply) and node.fn in ("add", "sub", "mul", "div", "neg", "sqrt"))
        for node in postorder((expr,))
    )


def plain(expr: Expr) -> Expr:
    """`x[i]` as x: inside a tile, rows are positions."""
    while isinstance(expr, At):
        expr = expr.x
    return expr


def is_tensor(expr: Expr) -> bool:
    """Whether an expression is a tensor parameter as the caller gave it, at any position."""
    expr = plain(expr)
    return isinstance(expr, Param) and not expr.number


def varies(expr: Expr) -> bool:
    """Whether an expression differs from position to position."""
    return "time" in expr.axes or bool(expr.positions)
