"""The rules of `attend` and `solve`: their operands, axes and options."""

from __future__ import annotations

from collections.abc import Mapping

from sma_compiler.ir.graph import FUNCTIONS
from sma_compiler.ir.nodes import Expr
from sma_compiler.ir.report import Scope, nearest, quote
from sma_compiler.ir.rules import Rules, Term
from sma_compiler.mistakes import ActivationWithSoftmax, BadOptionValue, MaskPerKey, OperandAxis
from sma_compiler.syntax import tree

WORDS: Mapping[str, tuple[str, ...]] = {
    "normalize": ("none", "sum", "softmax", "max1"),
    "activation": ("none", *sorted(FUNCTIONS - {"min", "max"})),
}
"""The options that take a word, and the words they take; the first is the default."""

_MASK_AXES = frozenset({"batch", "head", "key", "value"})
_KEY_AXES = frozenset({"batch", "time", "head", "key"})
_VALUE_AXES = frozenset({"batch", "time", "head", "value"})
_SCALE_AXES = frozenset({"batch", "head"})
_HINTS = {
    "lag": "index it: `c[i - j]`",
    "level": "give it to `levels`: `levels(w)`",
    "time": "the scale is the same at every position: multiply `q` or `k` instead",
    "key": "`key` is contracted between the second and the third argument",
    "value": "`value` belongs to the last argument; multiply the result by it instead",
}


def word(rules: Rules, scope: Scope, option: tree.Option) -> str | None:
    """The word that an option is given."""
    words = WORDS[option.name]
    value = option.value
    if isinstance(value, tree.Name) and value.id in words:
        return value.id
    text = quote(value)
    near = nearest(text, words)
    guess = f"; did you mean `{near}`?" if near else ""
    listed = ", ".join(f"`{known}`" for known in words)
    rules.report.say(BadOptionValue, scope, value, name=option.name, value=text, words=listed, guess=guess)
    return None


def attend(
    rules: Rules, scope: Scope, node: tree.Call, terms: list[Term], words: dict[str, str], scale: Term | None
) -> Expr | None:
    """`attend(L, q, k, v)` with checked options."""
    mask, q, k, v = terms
    normalize, activation = words.get("normalize", "none"), words.get("activation", "none")
    fits = rules.mask(scope, "the first argument of `attend`", mask)
    fits &= _axes(rules, scope, "the mask of `attend`", mask, _MASK_AXES)
    for term, which, axes in ((q, "second", _KEY_AXES), (k, "third", _KEY_AXES), (v, "fourth", _VALUE_AXES)):
        where = f"the {which} argument of `attend`"
        fits &= rules.tensor(scope, where, term) and _axes(rules, scope, where, term, axes)
    if scale:
        fits &= rules.tensor(scope, "`scale`", scale) and _axes(rules, scope, "`scale`", scale, _SCALE_AXES)
    if normalize == "softmax" and activation != "none":
        rules.report.say(ActivationWithSoftmax, scope, _option(node, "activation"))
        fits = False
    elif "key" in mask.expr.axes and (normalize == "softmax" or activation != "none"):
        option = "normalize=softmax" if normalize == "softmax" else f"activation={activation}"
        rules.report.say(MaskPerKey, scope, mask.source, option=option)
        fits = False
    if not fits:
        return None
    exprs = (mask.expr, q.expr, k.expr, v.expr)
    return rules.graph.attend(*exprs, normalize, activation, scale.expr if scale else None, scope.place(node))


def solve(rules: Rules, scope: Scope, node: tree.Call, terms: list[Term]) -> Expr | None:
    """`solve(L, a, b, u)`; that L is strictly lower is proven later."""
    mask, a, b, u = terms
    fits = rules.mask(scope, "the first argument of `solve`", mask)
    fits &= _axes(rules, scope, "the mask of `solve`", mask, _MASK_AXES)
    for term, which, axes in ((a, "second", _KEY_AXES), (b, "third", _KEY_AXES), (u, "fourth", _VALUE_AXES)):
        where = f"the {which} argument of `solve`"
        fits &= rules.tensor(scope, where, term) and _axes(rules, scope, where, term, axes)
    return rules.graph.solve(mask.expr, a.expr, b.expr, u.expr, scope.place(node)) if fits else None


def _axes(rules: Rules, scope: Scope, where: str, term: Term, allowed: frozenset[str]) -> bool:
    if term.expr.positions and "time" in term.expr.axes:
        return False
    for axis in term.expr.axes:
        if axis not in allowed and not (axis == "time" and where.startswith("the mask")):
            hint = _HINTS.get(axis, f"contract it first: `sum(x, {axis})`")
            rules.report.say(OperandAxis, scope, term.source, where=where, axis=axis, hint=hint)
            return False
    return True


def _option(node: tree.Call, name: str) -> tree.Node:
    return next(option for option in node.options if option.name == name)
