"""Recognises the linear family: one contraction whose mask is a sum of streams that look one way.

    y = f(sum over streams of  row_i  col_j  exp(path from j to i)  (q_i . k_j)  v_j, ...)

Factors of q, k and v that lack the contracted axis (a step, the divisor of a norm, a scale) move into `row` and `col`.
Where the gate has channels there is one stream, and it is the other way round: its factors become part of q, k and v.
What the mask has on the diagonal alone is no pair of positions: it is added to the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from operator import eq, ge, gt, le, lt, ne

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
    Reduce,
    Rename,
    Rope,
    Size,
    postorder,
)
from sma_compiler.kernel.derive import unplaced
from sma_compiler.kernel.errors import NoTritonKernel
from sma_compiler.kernel.heads import are_channels, as_channels, is_column
from sma_compiler.mask.nodes import Decomposition, Gate, Near, Stream
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

STATE_ROWS = 4
"""The rows of a state of sums in units of an exponential: numerators, divisors, the unit's logarithm, and nothing."""

_COMPARISONS = {"lt": lt, "le": le, "gt": gt, "ge": ge, "eq": eq, "ne": ne}


@dataclass(frozen=True)
class Term:
    """One stream: its factors at the query and at the key, its path, and whether the diagonal is left out.

    exact: whether the kernel takes care that sums round as little as fp32 can: factors stay outside of exponents,
    exponents of pairs are no differences, and products are summed apart from what they are added to.
    axes: the channels that its gates differ by, "key", "value" or both.
    wide: whether log gates are summed in fp64.
    """

    row: tuple[Expr, ...]
    col: tuple[Expr, ...]
    gates: tuple[Gate, ...]
    strict: bool
    exact: bool = False
    axes: tuple[str, ...] = ()
    wide: bool = False


@dataclass(frozen=True)
class Linear:
    """An op of the family. `q`, `k` have the key axis, `v` the value axis; `attend` is where the result reads y.

    backward: whether queries see what comes after them, and not what came before. merged: whether its heads were made
    the channels of one, see `heads`. stabilised: whether it is a softmax whose score does not depend on the row: then k
    is the logarithm of what a column weighs, and q of how much more it weighs in its own row. handed: the parameters
    that are what earlier contractions gave: their gradients are handed on as they are summed, in fp32. careful: whether
    kernels see to what rounding adds to states: the whole op has a `solve`, and registers are left.
    """

    op: Op
    attend: Attend
    q: Expr
    k: Expr
    v: Expr
    terms: tuple[Term, ...]
    normalize: str
    backward: bool
    merged: bool = False
    stabilised: bool = False
    handed: frozenset[str] = frozenset()
    careful: bool = False

    @property
    def channels(self) -> tuple[str, ...]:
        """The axes of channels that its gates tell apart."""
        return self.terms[0].axes if self.terms else ()


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
    column = is_column(attend)
    if attend.normalize == "softmax" and not column:
        raise refuse("softmax weights have no chunked kernel")
    if column and not are_channels(nodes, attend):
        raise refuse("a softmax whose score does not depend on the row has kernels for heads without channels alone")
    mask = choice.site.decomposition
    graph = plans.graph
    merged = are_channels(nodes, attend)
    if merged:
        op, attend, mask = as_channels(graph, op, attend, mask)
        nodes = tuple(postorder((op.result,)))
    if column:
        return _stabilised(op, attend, graph, mask, exact, refuse)
    diagonal = _diagonal(graph, mask.near) if mask.near else None
    axes = channels_of(gate.log for stream in mask.streams for gate in stream.gates)
    pairs = plan == "recurrent" or len(axes) > 1
    why = _unfit(mask.streams, bool(mask.near) and diagonal is None) or foreign(nodes, pairs=pairs)
    why = why or axes_refused(op, attend, merged)
    if not why and (axes or diagonal is not None):
        why = _unfit_channels(mask.streams, attend, axes, plan)
    if merged and len(axes) < 2:
        why = why or "heads are channels of one only where gates differ by all channels"
    if why:
        raise refuse(why)
    backward = mask.streams[0].side == "upper"
    if diagonal is not None:
        op = replace(op, result=_with_diagonal(graph, op.result, attend, diagonal))
    if axes:
        (stream,) = mask.streams
        q, k = (_times(graph, x, factors) for x, factors in ((attend.q, stream.row), (attend.k, stream.col)))
        numbers = () if attend.scale is graph.const(1) else (attend.scale,)
        term = Term(numbers, (), stream.gates, stream.first == 1, exact, axes)
        return Linear(op, attend, q, k, attend.v, (term,), attend.normalize, backward, merged)
    q, rows = _peel(graph, attend.q, "key")
    k, cols = _peel(graph, attend.k, "key")
    v, more = _peel(graph, attend.v, "value")
    if attend.scale is not graph.const(1):
        rows = (attend.scale, *rows)
    terms = tuple(
        Term((*stream.row, *rows), (*stream.col, *cols, *more), stream.gates, stream.first == 1, exact)
        for stream in mask.streams
    )
    return Linear(op, attend, q, k, v, terms, attend.normalize, backward)


def _stabilised(
    op: Op,
    attend: Attend,
    graph: Graph,
    mask: Decomposition,
    exact: bool,
    refuse: Callable[[str], NoTritonKernel],
) -> Linear:
    """A softmax whose score does not depend on the row, by logarithms of weights: of columns, and of the diagonal."""
    nodes = tuple(postorder((op.result, attend.k, attend.v)))
    bare = tuple(replace(stream, row=(), col=()) for stream in mask.streams)
    why = _unfit(bare, near=False) or foreign(nodes)
    if why or any(isinstance(node, Reduce) and node.axis in ("head", "value") for node in nodes):
        raise refuse(why or "a sum over heads is no part of a tile of them")
    (stream, *others) = mask.streams
    gates = stream.gates or (Gate(graph.const(0.0), key_closed=False, query_closed=True),)
    alike = len({gate.query_closed for gate in gates}) == 1 and not any(gate.key_closed for gate in gates)
    if others or stream.row or stream.side == "upper" or not alike:
        raise refuse("beside a softmax of columns, masks have one path, and no factor of rows or of its key end")
    own = _diagonal(graph, mask.near) if mask.near else None
    if (own is None) is (stream.first == 1):
        raise refuse("beside a softmax of columns, i == j has a weight of its own, or that of the path")
    score = _times(graph, attend.k, (x for x in (attend.scale, attend.q) if x is not graph.const(1)))
    factors = (*stream.col, graph.const(1.0) if own is None else own)
    *columns, more = (_logarithm(graph, unplaced(graph, factor)) for factor in factors)
    for log in columns:
        score = graph.apply("add", score, log or graph.const(0.0))
    if more is None or None in columns:
        raise refuse("beside a softmax of columns, factors of masks are exponentials")
    term = Term((), (), gates, stream.first == 1, exact, ("value",))
    return Linear(op, attend, more, score, attend.v, (term,), "none", backward=False, merged=True, stabilised=True)


def _logarithm(graph: Graph, x: Expr) -> Expr | None:
    """log(x) without a logarithm; None: there is none such."""
    match x:
        case Const(value=value) if value > 0:
            return graph.const(math.log(value))
        case Apply(fn="exp", args=(a,)):
            return a
        case Apply(fn="sigmoid", args=(a,)):
            return graph.apply("logsigmoid", a)
        case Apply(fn="mul" | "div" as fn, args=(a, b)) if Kind.BOOL not in (a.kind, b.kind):
            first, second = _logarithm(graph, a), _logarithm(graph, b)
            if first is not None and second is not None:
                return graph.apply("add" if fn == "mul" else "sub", first, second)
    return None


def channels_of(exprs: Iterable[Expr]) -> tuple[str, ...]:
    """The axes of channels that some expressions have."""
    held = {axis for expr in exprs for axis in expr.axes}
    return tuple(axis for axis in ("key", "value") if axis in held)


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
        if channels_of((*stream.row, *stream.col)):
            return "the mask has a factor for each channel"
        if any(isinstance(node, Position) for node in postorder((*stream.row, *stream.col))):
            return "a factor of the mask counts positions: i or j stands alone in it"
    return ""


def _unfit_channels(streams: tuple[Stream, ...], attend: Attend, axes: tuple[str, ...], plan: str) -> str:
    """Why a mask with gates a channel, or with weights of the diagonal, has no kernel."""
    if len(streams) > 1:
        return "several streams, of which one has a gate for each channel or weights on the diagonal"
    if attend.normalize != "none":
        return "rows with a gate for each channel, or with weights on the diagonal, are not divided"
    ends = {(gate.query_closed, gate.key_closed) for gate in streams[0].gates}
    if axes and plan == "chunked" and len(ends) > 1:
        return "gates for each channel whose paths have different ends are passed position by position"
    if axes and streams[0].side == "upper":
        return "a gate for each channel is carried from the start alone"
    return ""


def _diagonal(graph: Graph, near: tuple[Near, ...]) -> Expr | None:
    """The weight of every position with itself, where a mask has nothing else beside its streams."""
    total: Expr | None = None
    for part in near:
        if not all(isinstance(end, Const) and end.value == 0 for end in (part.lo, part.hi)):
            return None
        found = _at_itself(graph, part.mask)
        if found is None:
            return None
        total = found if total is None else graph.apply("add", total, found)
    return total


def _at_itself(graph: Graph, mask: Expr) -> Expr | None:
    """A mask where i is j, of which the conditions speak of i - j alone; None: it is no such mask."""
    done: dict[Expr, Expr] = {}
    for node in postorder((mask,)):
        match node:
            case Apply(fn="sub", args=(Position(name="i"), Position(name="j"))):
                done[node] = graph.const(0)
            case Position():
                done[node] = node
            case At(x=x):
                done[node] = x
            case Apply(fn=fn, args=(a, b)) if fn in _COMPARISONS:
                left, right = done[a], done[b]
                done[node] = graph.apply(fn, left, right)
                if isinstance(left, Const) and isinstance(right, Const):
                    done[node] = graph.const(bool(_COMPARISONS[fn](left.value, right.value)))
            case Apply(fn="mul", args=(a, b)) if any(done[x] is graph.const(True) for x in (a, b)):
                done[node] = done[b] if done[a] is graph.const(True) else done[a]
            case _:
                done[node] = graph.rebuild(node, done)
    found = done[mask]
    return None if found.positions or found is graph.const(True) else found


def _with_diagonal(graph: Graph, result: Expr, attend: Attend, weight: Expr) -> Expr:
    """The result with what every position has with itself added to the contraction."""
    if "key" not in weight.axes:
        weight, inside = graph.apply("mul", weight, attend.v), graph.apply("mul", attend.q, attend.k)
    else:
        inside = graph.apply("mul", graph.apply("mul", attend.q, attend.k), weight)
        weight = attend.v
    if attend.scale is not graph.const(1):
        weight = graph.apply("mul", attend.scale, weight)
    own = graph.apply("mul", graph.reduce("sum", inside, "key"), weight)
    done: dict[Expr, Expr] = {}
    for node in postorder((result,)):
        done[node] = graph.apply("add", attend, own) if node is attend else graph.rebuild(node, done)
    return done[result]


def _times(graph: Graph, operand: Expr, factors: Iterable[Expr]) -> Expr:
    """An operand times factors of its own positions."""
    for factor in factors:
        operand = graph.apply("mul", unplaced(graph, factor), operand)
    return operand


def foreign(nodes: Iterable[Expr], *, pairs: bool = False) -> str:
    """Why the expressions around the contraction have no tile form. pairs: whether there are tiles of both channels."""
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
            case Param(axes=axes) if {"key", "value"} <= set(axes) and not pairs:
                return f"`{node.name}` has both a key and a value axis"
            case Reduce(x=x) if {"key", "value"} <= set(x.axes):
                return "a sum over one of two axes of channels has no tile form"
    return ""


def _in_mask(node: Expr) -> bool:
    """Whether an expression is a mask, which the decomposition has replaced."""
    return bool(node.positions & {"i", "j"})


def axes_refused(op: Op, attend: Attend, merged: bool = False) -> str:
    """Why the axes of the contraction are none that tiles have. merged: whether there are no heads."""
    if "key" not in attend.q.axes or "key" not in attend.k.axes:
        return "q or k has no key axis"
    if "value" not in attend.v.axes or "value" in (*attend.q.axes, *attend.k.axes) or "key" in attend.v.axes:
        return "v needs a value axis of its own"
    if {*op.result.axes, *(("head",) if merged else ())} != {"batch", "time", "head", "value"}:
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
