"""The rules of types: which operands each form takes. A rule makes the node, or reports a mistake and gives None."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sma_compiler.ir.constants import value_of
from sma_compiler.ir.graph import COMPARISONS, LOGIC, Graph
from sma_compiler.ir.nodes import Const, Expr, Kind, MaskProduct, postorder
from sma_compiler.ir.report import Budget, Report, Scope, quote, quote_tight
from sma_compiler.mistakes import (
    BadLagIndex,
    BadTimeIndex,
    BatchReduced,
    BooleanCompared,
    LevelsNeedsAxes,
    MaskIndexed,
    MaskNeeded,
    NoSuchAxis,
    NotBoolean,
    NotFinite,
    NothingToIndex,
    PathMentions,
    RopeNeedsAxis,
    TensorNeeded,
    TimeNotIndexed,
    TimeReduced,
)
from sma_compiler.source import Span
from sma_compiler.syntax import tree

_MASK = frozenset("ij")
_PAIRED = "a mask mentions `i` and `j`; for every pair of positions write `full`"


@dataclass(frozen=True)
class Term:
    """An operand: its value and the text it comes from, which for a chain may be the first operands alone."""

    expr: Expr
    node: tree.Expr
    upto: int | None = None

    @property
    def source(self) -> tree.Expr:
        """The text as a node of its own."""
        if self.upto is None:
            return self.node
        assert isinstance(self.node, tree.Chain)
        if self.upto == 0:
            return self.node.first
        rest = self.node.rest[: self.upto]
        return tree.Chain(self.node.first, rest, span=self.node.first.span.to(rest[-1][1].span))


def has(expr: Expr) -> str:
    """The axes of a value in words."""
    return f"the axes {', '.join(expr.axes)}" if expr.axes else "no axes"


class Rules:
    """Makes nodes of one op from operands that fit."""

    def __init__(self, graph: Graph, report: Report, budget: Budget) -> None:
        self.graph = graph
        self.report = report
        self.budget = budget
        self._constants: dict[Expr, float] = {}

    def pointwise(self, fn: str, scope: Scope, node: tree.Expr, span: Span, *terms: Term) -> Expr | None:
        """An operator or function of values that broadcast by axis name: all of positions, or all over time."""
        if not self.mixes(scope, *terms):
            return None
        tested = terms if fn in LOGIC else terms[:1] if fn == "where" else ()
        where = "the condition of `where`" if fn == "where" else "what `and`, `or` and `not` take"
        if not all(self._boolean(scope, where, term) for term in tested):
            return None
        if fn in COMPARISONS - {"eq", "ne"}:
            for term in terms:
                if term.expr.kind is Kind.BOOL:
                    self.report.say(BooleanCompared, scope, term.source, text=quote(term.source))
                    return None
        made = self.graph.apply(fn, *(term.expr for term in terms), span=span)
        return self._finite(made, fn, scope, node, terms)

    def _finite(self, made: Expr, fn: str, scope: Scope, node: tree.Expr, terms: Sequence[Term]) -> Expr | None:
        if isinstance(made, Const):
            return made
        values: list[float] = []
        for term in terms:
            expr = term.expr
            value = float(expr.value) if isinstance(expr, Const) else self._constants.get(expr)
            if value is None:
                return made
            values.append(value)
        result = value_of(fn, tuple(values))
        if result is None:
            self.report.say(NotFinite, scope, node, text=quote(node))
            return None
        self._constants[made] = result
        return made

    def mixes(self, scope: Scope, *terms: Term) -> bool:
        """Whether no operand has a time axis where another mentions a position."""
        if not any(term.expr.positions for term in terms):
            return True
        over_time = [term for term in terms if "time" in term.expr.axes]
        for term in over_time:
            self.report.say(TimeNotIndexed, scope, term.source, text=quote_tight(term.source))
        return not over_time

    def _boolean(self, scope: Scope, where: str, term: Term) -> bool:
        if term.expr.kind is Kind.BOOL:
            return True
        self.report.say(NotBoolean, scope, term.source, where=where, text=quote(term.source))
        return False

    def at(self, scope: Scope, node: tree.Index, x: Expr, position: str) -> Expr | None:
        """`x[position]`. Inside a def, a static x is itself at every position."""
        text = quote_tight(node.x)
        if x.positions:
            self.report.say(MaskIndexed, scope, node, text=quote(node.x))
        elif "time" in x.axes:
            return self.graph.at(x, position, scope.place(node))
        elif "lag" in x.axes:
            return self.lag(scope, node, x, self.graph.position(position, scope.place(node.index)))
        elif scope.inside:
            return x
        else:
            self.report.say(NothingToIndex, scope, node, text=text)
        return None

    def lag(self, scope: Scope, node: tree.Index, x: Expr, index: Expr) -> Expr | None:
        """`x[index]`: x's lag axis looked up."""
        if x.positions and "lag" not in x.axes:
            self.report.say(MaskIndexed, scope, node, text=quote(node.x))
        elif "lag" not in x.axes:
            kind = BadTimeIndex if "time" in x.axes else NothingToIndex
            self.report.say(kind, scope, node, text=quote_tight(node.x))
        elif "time" in x.axes:
            self.report.say(TimeNotIndexed, scope, node.x, text=quote_tight(node.x))
        elif index.kind is not Kind.INT or not index.positions or not index.positions <= _MASK:
            self.report.say(BadLagIndex, scope, node.index, text=quote_tight(node.x))
        else:
            return self.graph.lag(x, index, scope.place(node))
        return None

    def path(
        self, scope: Scope, node: tree.Call, gate: Term, ends: tuple[str, str], closed: tuple[bool, bool]
    ) -> Expr | None:
        """`sum(gate, start < t <= end)`; a gate that does not mention `t` counts once a position."""
        if "time" in gate.expr.axes:
            self.report.say(TimeNotIndexed, scope, gate.source, text=quote_tight(gate.source))
            return None
        if gate.expr.positions & _MASK:
            self.report.say(PathMentions, scope, _mentions(gate.node))
            return None
        return self.graph.path_sum(gate.expr, *ends, *closed, scope.place(node))

    def reduce(self, scope: Scope, node: tree.Call, x: Term, axis: str) -> Expr | None:
        """`sum`, `mean` or `softmax` over an axis other than time and batch."""
        fn = node.fn
        if axis == "time":
            hint = (
                "softmax over positions is `attend(L, q, k, v, normalize=softmax)`"
                if fn == "softmax"
                else "the sum of the past is `cumsum(x)`, of all positions `full @ x`"
            )
            self.report.say(TimeReduced, scope, node.args[1], fn=fn, hint=hint)
        elif axis == "batch":
            self.report.say(BatchReduced, scope, node.args[1], fn=fn)
        elif axis not in x.expr.axes:
            self.report.say(
                NoSuchAxis,
                scope,
                node.args[1],
                text=quote(x.source),
                axis=axis,
                has=f"it has {has(x.expr)}",
                hint=f"reduce over one of them, or leave `{fn}` out",
            )
        else:
            return self.graph.reduce(fn, x.expr, axis, scope.place(node))
        return None

    def rope(self, scope: Scope, node: tree.Call, x: Term, angle: Term) -> Expr | None:
        """`rope(x, angle)`: `key` on x, `mode` on angle."""
        fits = self.mixes(scope, x, angle)
        for term, what, axis, never in (
            (x, "the first argument", "key", "mode"),
            (angle, "the second argument", "mode", "key"),
        ):
            if axis not in term.expr.axes or never in term.expr.axes:
                words = {"what": what, "axis": axis, "text": quote(term.source), "has": has(term.expr)}
                self.report.say(RopeNeedsAxis, scope, term.source, **words)
                fits = False
        return self.graph.rope(x.expr, angle.expr, scope.place(node)) if fits else None

    def levels(self, scope: Scope, node: tree.Call, weights: Term) -> Expr | None:
        """`levels(w)` of a tensor over time and level."""
        if weights.expr.positions or not {"time", "level"} <= set(weights.expr.axes):
            source = weights.source
            self.report.say(LevelsNeedsAxes, scope, source, text=quote(source), has=has(weights.expr))
            return None
        return self.graph.levels(weights.expr, span=scope.place(node))

    def transpose(self, scope: Scope, node: tree.Call, mask: Term) -> Expr | None:
        """`transpose(L)` of a mask, which is written anew and counted so."""
        if not self.mask(scope, "the argument of `transpose`", mask):
            return None
        self.budget.take(sum(1 for _ in postorder((mask.expr,))), scope, node)
        return self.graph.transpose(mask.expr)

    def times(self, scope: Scope, span: Span, left: Term, right: Term) -> Expr | None:
        """`L @ M` or `L @ x`; `(L @ M) @ x` is `L @ (M @ x)`."""
        if not self.mask(scope, "what stands before `@`", left):
            return None
        if right.expr.positions:
            if not self.mask(scope, "what stands after `@`", right):
                return None
            return self.graph.mask_product(left.expr, right.expr, span)
        if not self.tensor(scope, "what stands after `@`", right, over_time=True):
            return None
        made = right.expr
        factors = [left.expr]
        while factors:
            mask = factors.pop()
            if isinstance(mask, MaskProduct):
                factors.extend((mask.left, mask.right))
            else:
                self.budget.take(1, scope, right.node)
                made = self.graph.mask_times(mask, made, span)
        return made

    def mask(self, scope: Scope, where: str, term: Term) -> bool:
        """Whether the operand is a mask."""
        expr, hint = term.expr, _PAIRED
        if "time" in expr.axes:
            what = "a tensor over time"
        elif not expr.positions:
            what = "the same for every pair of positions"
        elif not expr.positions <= _MASK:
            what, hint = "an expression of `t`", "`t` stands for a position inside a path sum only"
        else:
            return True
        self.report.say(MaskNeeded, scope, term.source, where=where, text=quote(term.source), what=what, hint=hint)
        return False

    def tensor(self, scope: Scope, where: str, term: Term, over_time: bool = False) -> bool:
        """Whether the operand is a tensor, not a mask; `over_time`: and has a time axis."""
        expr = term.expr
        if expr.positions:
            what, hint = "an expression of positions", "a mask becomes a tensor where it is applied to one: `L @ x`"
        elif over_time and "time" not in expr.axes:
            what, hint = "the same at every position", "give it a time axis"
        else:
            return True
        over = " over time" if over_time else ""
        source = term.source
        self.report.say(TensorNeeded, scope, source, where=where, over=over, text=quote(source), what=what, hint=hint)
        return False


def _mentions(body: tree.Expr) -> tree.Expr:
    """The first `i` or `j` in the terms of a path sum; all of them where a name stands for it."""
    found = (node for node in tree.walk(body) if isinstance(node, tree.Name) and node.id in _MASK)
    return next(found, body)
