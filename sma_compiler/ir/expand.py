"""Expressions of the tree to expressions of the IR, with defs expanded: names here, types in `rules.py`.

Every method that needs the value of a part yields the part and its scope and is sent the value; one loop drives them
all, so that no depth of defs within defs is a depth of the interpreter's stack. None stands for a value whose mistake
has been reported.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

from sma_compiler.ir import contract
from sma_compiler.ir.graph import FUNCTIONS
from sma_compiler.ir.names import POSITIONS, REDUCTIONS, SIGNATURES, SIZES, check_call, check_name
from sma_compiler.ir.nodes import AXES, Const, Expr
from sma_compiler.ir.report import Above, Scope, nearest, quote
from sma_compiler.ir.rules import Rules, Term
from sma_compiler.mistakes import (
    AxisAsNumber,
    AxisExpected,
    BadPath,
    NoSuchSize,
    PathPosition,
    RepeatedOption,
    UnknownOption,
)
from sma_compiler.syntax import tree

Steps = Generator[tuple[tree.Expr, Scope], Expr | None, Expr | None]

_OPERATORS = {
    "+": "add",
    "-": "sub",
    "*": "mul",
    "/": "div",
    "//": "floordiv",
    "%": "mod",
    "<": "lt",
    "<=": "le",
    ">": "gt",
    ">=": "ge",
    "==": "eq",
    "!=": "ne",
}


class Expander:
    """Expands the expressions of one op, whose tensors have the axes `declared`."""

    def __init__(self, rules: Rules, declared: frozenset[str]) -> None:
        self.rules = rules
        self.graph = rules.graph
        self.report = rules.report
        self.budget = rules.budget
        self.declared = declared

    def value(self, node: tree.Expr, scope: Scope) -> Expr | None:
        """What an expression means in a scope; None after a mistake. TooManyNodes beyond the limit."""
        stack = [self._steps(node, scope)]
        sent: Expr | None = None
        while stack:
            try:
                asked = stack[-1].send(sent)
            except StopIteration as done:
                stack.pop()
                sent = done.value
            else:
                stack.append(self._steps(*asked))
                sent = None
        return sent

    def _steps(self, node: tree.Expr, scope: Scope) -> Steps:
        chained = len(node.rest) if isinstance(node, tree.Chain | tree.Compare) else 1
        joined = len(node.args) - 1 if isinstance(node, tree.Logic) else 1
        self.budget.take(max(chained, joined), scope, node)
        return _FORMS[type(node)](self, node, scope)

    def _name(self, node: tree.Name, scope: Scope) -> Steps:
        name, span = node.id, scope.place(node)
        if name in scope.names:
            return scope.names[name]
        if name in POSITIONS:
            if name == "t" and not scope.path:
                self.report.say(PathPosition, scope, node)
                return None
            return self.graph.position(name, span)
        if name in AXES:
            if name not in SIZES:
                self.report.say(AxisAsNumber, scope, node, name=name)
            elif name not in self.declared:
                self.report.say(NoSuchSize, scope, node, name=name)
            else:
                return self.graph.size(name, span)
            return None
        define = scope.defs.get(name)
        if (define and define.broken) or not check_name(node, scope, self.report):
            return None
        assert define is not None
        return (yield define.value, self._within(scope, node, {}, name))

    def _number(self, node: tree.Number, scope: Scope) -> Steps:
        return self.graph.const(node.value, scope.place(node))
        yield  # a generator like its peers

    def _negative(self, node: tree.Negative, scope: Scope) -> Steps:
        x = yield node.x, scope
        if x is None:
            return None
        if isinstance(x, Const) and isinstance(x.value, float):
            return self.graph.const(-x.value, scope.place(node))
        return self.rules.pointwise("neg", scope, node, scope.place(node), Term(x, node.x))

    def _not(self, node: tree.Not, scope: Scope) -> Steps:
        x = yield node.x, scope
        return None if x is None else self.rules.pointwise("not", scope, node, scope.place(node), Term(x, node.x))

    def _chain(self, node: tree.Chain, scope: Scope) -> Steps:
        left = yield node.first, scope
        for done, (op, operand) in enumerate(node.rest):
            right = yield operand, scope
            if left is None or right is None:
                left = None
                continue
            span = scope.site or node.first.span.to(operand.span)
            terms = Term(left, node, done), Term(right, operand)
            if op == "@":
                left = self.rules.times(scope, span, *terms)
            else:
                left = self.rules.pointwise(_OPERATORS[op], scope, node, span, *terms)
        return left

    def _compare(self, node: tree.Compare, scope: Scope) -> Steps:
        value = yield node.first, scope
        left = Term(value, node.first) if value else None
        holds: Expr | None = None
        fits = True
        for op, operand in node.rest:
            value = yield operand, scope
            right = Term(value, operand) if value else None
            pair = None
            if left and right:
                span = scope.site or left.node.span.to(operand.span)
                pair = self.rules.pointwise(_OPERATORS[op], scope, node, span, left, right)
            fits &= pair is not None
            if fits and pair:
                holds = self.graph.apply("and", holds, pair, span=scope.place(node)) if holds else pair
            left = right
        return self._all_mix(node, scope, holds) if fits and holds else None

    def _all_mix(self, node: tree.Compare, scope: Scope, holds: Expr) -> Expr | None:
        return holds if self.rules.mixes(scope, Term(holds, node)) else None

    def _logic(self, node: tree.Logic, scope: Scope) -> Steps:
        left: Expr | None = None
        fits = True
        for arg in node.args:
            value = yield arg, scope
            fits &= value is not None
            if value is None or not fits:
                continue
            if left is None:
                left = value
                continue
            terms = Term(left, node.args[0]), Term(value, arg)
            left = self.rules.pointwise(node.op, scope, node, scope.place(node), *terms)
            fits = left is not None
        return left if fits else None

    def _power(self, node: tree.Power, scope: Scope) -> Steps:
        base = yield node.base, scope
        exponent = yield node.exponent, scope
        if base is None or exponent is None:
            return None
        terms = Term(base, node.base), Term(exponent, node.exponent)
        return self.rules.pointwise("pow", scope, node, scope.place(node), *terms)

    def _index(self, node: tree.Index, scope: Scope) -> Steps:
        x = yield node.x, scope
        index = node.index
        if isinstance(index, tree.Name) and index.id in POSITIONS:
            if index.id == "t" and not scope.path:
                self.report.say(PathPosition, scope, index)
                return None
            return None if x is None else self.rules.at(scope, node, x, index.id)
        where = yield index, scope
        return None if x is None or where is None else self.rules.lag(scope, node, x, where)

    def _call(self, node: tree.Call, scope: Scope) -> Steps:
        if not check_call(node, scope, self.report) or not self._check_options(node, scope):
            for arg in node.args:
                if not (isinstance(arg, tree.Compare) or (isinstance(arg, tree.Name) and arg.id in AXES)):
                    yield arg, scope
            return None
        if node.fn in scope.defs:
            return (yield from self._use(node, scope))
        if node.fn in REDUCTIONS:
            return (yield from self._reduction(node, scope))
        return (yield from self._builtin(node, scope))

    def _check_options(self, node: tree.Call, scope: Scope) -> bool:
        known = SIGNATURES[node.fn].options if node.fn in SIGNATURES and node.fn not in scope.defs else ()
        given: set[str] = set()
        for option in node.options:
            if option.name in given:
                self.report.say(RepeatedOption, scope, option, name=option.name)
            elif option.name not in known:
                near = nearest(option.name, known)
                listed = ", ".join(f"`{name}`" for name in known)
                hint = f"its options are {listed}" if known else "it has no options; to compare write `==`"
                guess = f"; did you mean `{near}`?" if near else ""
                self.report.say(UnknownOption, scope, option, fn=node.fn, name=option.name, hint=hint + guess)
            given.add(option.name)
        return len(given) == len(node.options) and given <= set(known)

    def _use(self, node: tree.Call, scope: Scope) -> Steps:
        define = scope.defs[node.fn]
        values: list[Expr | None] = []
        for arg in node.args:
            values.append((yield arg, scope))
        if define.broken or None in values:
            return None
        names = dict(zip(define.params or (), values, strict=True))
        return (yield define.value, self._within(scope, node, names, quote(node)))

    def _within(self, scope: Scope, node: tree.Expr, names: dict[str, Expr | None], text: str) -> Scope:
        """The scope of a def's body: its arguments, the defs above it, and the place where it is used."""
        name = node.fn if isinstance(node, tree.Call) else text
        return Scope(
            names, Above(scope.defs, scope.defs[name].order), scope.path, scope.inside or text, scope.place(node)
        )

    def _reduction(self, node: tree.Call, scope: Scope) -> Steps:
        body, over = node.args
        if isinstance(over, tree.Compare) and node.fn == "sum":
            path = _path(over)
            if path is None:
                self.report.say(BadPath, scope, over)
            gate = yield body, replace(scope, path=True)
            if gate is None or path is None:
                return None
            return self.rules.path(scope, node, Term(gate, body), *path)
        x = yield body, scope
        if not isinstance(over, tree.Name) or over.id in scope.names or over.id not in AXES:
            text = quote(over)
            near = nearest(text, AXES)
            hint = f"did you mean `{near}`?" if near else f"write `{SIGNATURES[node.fn].example}`"
            path_too = ", or a path such as `j < t <= i`" if node.fn == "sum" else ""
            self.report.say(AxisExpected, scope, over, fn=node.fn, path=path_too, hint=hint)
            return None
        return None if x is None else self.rules.reduce(scope, node, Term(x, body), over.id)

    def _builtin(self, node: tree.Call, scope: Scope) -> Steps:
        terms: list[Term] = []
        for arg in node.args:
            value = yield arg, scope
            if value is not None:
                terms.append(Term(value, arg))
        words: dict[str, str] = {}
        scale: Term | None = None
        fits = len(terms) == len(node.args)
        for option in node.options:
            if option.name in contract.WORDS:
                word = contract.word(self.rules, scope, option)
                fits &= word is not None
                words[option.name] = word or ""
            else:
                value = yield option.value, scope
                fits &= value is not None
                scale = Term(value, option.value) if value is not None else None
        if not fits:
            return None
        span = scope.place(node)
        if node.fn in ("min", "max"):
            value = terms[0].expr
            for term in terms[1:]:
                if value is not None:
                    value = self.rules.pointwise(node.fn, scope, node, span, Term(value, node.args[0]), term)
            return value
        if node.fn in FUNCTIONS or node.fn == "where":
            return self.rules.pointwise(node.fn, scope, node, span, *terms)
        if node.fn == "attend":
            return contract.attend(self.rules, scope, node, terms, words, scale)
        if node.fn == "solve":
            return contract.solve(self.rules, scope, node, terms)
        rule: Callable[..., Expr | None] = getattr(self.rules, node.fn)
        return rule(scope, node, *terms)


def _path(node: tree.Compare) -> tuple[tuple[str, str], tuple[bool, bool]] | None:
    """The ends of `j < t <= i` or `i < t <= j`, start first, and whether each is closed."""
    names = [part.id if isinstance(part, tree.Name) else "" for part in (node.first, *(x for _, x in node.rest))]
    signs = [op for op, _ in node.rest]
    if names not in (["j", "t", "i"], ["i", "t", "j"]) or not set(signs) <= {"<", "<="}:
        return None
    return (names[0], names[2]), (signs[0] == "<=", signs[1] == "<=")


_FORMS: dict[type, Callable[[Expander, Any, Scope], Steps]] = {
    tree.Name: Expander._name,
    tree.Number: Expander._number,
    tree.Negative: Expander._negative,
    tree.Not: Expander._not,
    tree.Chain: Expander._chain,
    tree.Compare: Expander._compare,
    tree.Logic: Expander._logic,
    tree.Power: Expander._power,
    tree.Index: Expander._index,
    tree.Call: Expander._call,
}
