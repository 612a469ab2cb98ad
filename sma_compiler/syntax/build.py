"""Lark's tree to ours, bottom up and without recursion; bounds literals and depth."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sma_compiler.source import Span
from sma_compiler.syntax import tree
from sma_compiler.syntax.layout import MAX_DEPTH, Item
from sma_compiler.syntax.mistakes import NestedTooDeep, NumberTooLarge, OptionBeforeArgument

if TYPE_CHECKING:
    from lark import Token, Tree

_DEEPER = frozenset({"group", "call", "index", "negative", "not_", "power"})
"""What nests: brackets, prefix operators and `**`. A chain of operators is flat."""


class Build:
    """Builds the nodes of one item. `node` raises the first mistake it meets."""

    def __init__(self, item: Item) -> None:
        self.item = item
        self._depth: dict[int, int] = {}

    def node(self, root: Tree[Token]) -> tree.Op | tree.Define:
        """The op or def of this lark tree."""
        done: dict[int, Any] = {}
        stack: list[tuple[Any, bool]] = [(root, False)]
        while stack:
            part, ready = stack.pop()
            if not hasattr(part, "data"):
                done[id(part)] = part
            elif ready:
                done[id(part)] = self._make(part, [done[id(child)] for child in part.children])
            else:
                stack.append((part, True))
                stack.extend((child, False) for child in part.children)
        made = done[id(root)]
        assert isinstance(made, tree.Op | tree.Define)
        return made

    def _make(self, part: Tree[Token], values: list[Any]) -> object:
        rule = str(part.data)
        meta = part.meta
        places = (1, 1, 1, 1) if meta.empty else (meta.line, meta.column, meta.end_line, meta.end_column)
        span = self.item.span(*places)
        made = _RULES[rule](self, span, values)
        depth = max((self._depth.get(id(value), 0) for value in values), default=0)
        if rule in _DEEPER:
            depth += 1
            if depth > MAX_DEPTH:
                raise NestedTooDeep(_start(span), limit=MAX_DEPTH)
        self._depth[id(made)] = depth
        return made

    def at(self, token: Token) -> Span:
        """The place of a token."""
        line, column = token.line or 1, token.column or 1
        return self.item.span(line, column, line, column + len(token))

    def number(self, span: Span, values: list[Token]) -> tree.Number:
        text = str(values[0])
        value: int | float
        if text.isdigit():
            value = int(text) if len(text) <= 4096 else 2**64
            fits = value <= 2**53
        else:
            value = float(text)
            fits = math.isfinite(value)
        if not fits:
            raise NumberTooLarge(span, text=text if len(text) <= 40 else text[:40] + "...")
        return tree.Number(value, span=span)

    def call(self, span: Span, values: list[Any]) -> tree.Call:
        given = values[1] or []
        options = tuple(value for value in given if isinstance(value, tree.Option))
        for value, after in itertools.pairwise(given):
            if isinstance(value, tree.Option) and not isinstance(after, tree.Option):
                raise OptionBeforeArgument(after.span, option=value.name)
        args = tuple(value for value in given if not isinstance(value, tree.Option))
        return tree.Call(str(values[0]), args, options, span=span, fn_span=self.at(values[0]))

    def param(self, span: Span, values: list[Any], kind: Token | None, axes: list[Token] | None) -> tree.Param:
        names = None if axes is None else tuple(tree.Axis(str(token), span=self.at(token)) for token in axes)
        return tree.Param(str(values[0]), None if kind is None else str(kind), names, span=span)

    def op(self, span: Span, values: list[Any]) -> tree.Op:
        name, params, *body = values
        lines = self.item.text.rstrip("\n").split("\n")
        span = self.item.span(1, 1, len(lines), len(lines[-1]) + 1)
        return tree.Op(
            str(name), tuple(params or ()), tuple(body), self.item.doc, (), span=span, name_span=self.at(name)
        )

    def bind(self, span: Span, values: list[Any]) -> tree.Bind:
        name, value = values
        at = self.at(name)
        return tree.Bind(str(name), value, span=at.to(value.span), name_span=at)

    def return_(self, span: Span, values: list[Any]) -> tree.Return:
        at = Span(span.source, span.line, span.column, span.line, span.column + len("return"))
        return tree.Return(values[0], span=at.to(values[0].span))

    def define(self, span: Span, values: list[Any]) -> tree.Define:
        name, *names, value = values
        span = Span(span.source, span.line, span.column, value.span.end_line, value.span.end_column)
        params = tuple(tree.Name(str(token), span=self.at(token)) for token in names[0]) if names else None
        return tree.Define(str(name), params, value, span=span, name_span=self.at(name))


def _start(span: Span) -> Span:
    return Span(span.source, span.line, span.column, span.line, span.column + 1)


def _pairs(values: list[Any]) -> tuple[tuple[str, tree.Expr], ...]:
    return tuple((str(op), operand) for op, operand in zip(values[1::2], values[2::2], strict=True))


_RULES: dict[str, Callable[[Build, Any, list[Any]], object]] = {
    "op": Build.op,
    "params": lambda build, span, values: values,
    "bare": lambda build, span, values: build.param(span, values, None, None),
    "number": lambda build, span, values: build.param(span, values, values[1], None),
    "tensor": lambda build, span, values: build.param(span, values, None, values[1]),
    "tensor_of_kind": lambda build, span, values: build.param(span, values, values[1], values[2]),
    "axes": lambda build, span, values: values,
    "define": Build.define,
    "names": lambda build, span, values: values,
    "bind": Build.bind,
    "return_": Build.return_,
    "or_": lambda build, span, values: tree.Logic("or", tuple(values), span=span),
    "and_": lambda build, span, values: tree.Logic("and", tuple(values), span=span),
    "not_": lambda build, span, values: tree.Not(values[0], span=span),
    "compare": lambda build, span, values: tree.Compare(values[0], _pairs(values), span=span),
    "chain": lambda build, span, values: tree.Chain(values[0], _pairs(values), span=span),
    "negative": lambda build, span, values: tree.Negative(values[0], span=span),
    "power": lambda build, span, values: tree.Power(values[0], values[1], span=span),
    "name": lambda build, span, values: tree.Name(str(values[0]), span=span),
    "literal": Build.number,
    "group": lambda build, span, values: values[0],
    "index": lambda build, span, values: tree.Index(values[0], values[1], span=span),
    "call": Build.call,
    "arguments": lambda build, span, values: values,
    "option": lambda build, span, values: tree.Option(str(values[0]), values[1], span=span),
}
