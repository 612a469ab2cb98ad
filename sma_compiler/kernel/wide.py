"""Products of fp32 operands in fp64, where a GPU has tensor cores for it that are as fast as its fp32 units.

Triton sums fp32 products one after another; those of a row that are later subtracted from each other, or are all that a
row has, would then be off by more than what torch sums in parts. So would gradients of strong log gates, where one row
times a state is most of the sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sma_compiler.kernel.nodes import (
    Assign,
    Attribute,
    Binary,
    Call,
    Choose,
    Do,
    Expr,
    For,
    Function,
    If,
    Name,
    Sequence,
    Statement,
    Subscript,
    Unary,
)

_DOT = Attribute(None, Name(None, "tl"), "dot")


def widened(function: Function) -> Function:
    """A kernel with its products by `wide_dot`, and those of a row and a state by `wide_row`."""
    return replace(function, body=tuple(_statement(x) for x in function.body))


def _statement(statement: Statement) -> Statement:
    match statement:
        case Assign(value=value) | Do(value=value):
            return replace(statement, value=_expr(value))
        case For(body=body):
            return replace(statement, body=tuple(map(_statement, body)))
        case If(body=body, orelse=orelse):
            return replace(statement, body=tuple(map(_statement, body)), orelse=tuple(map(_statement, orelse)))
    return statement


def _expr(expr: Expr) -> Expr:
    expr = _over(expr, _expr)
    match expr:
        case Call(tile=tile, fn=fn, args=(a, b, *total), keywords=keywords) if fn == _DOT:
            made = Call(tile, Name(None, "wide_dot"), (a, b, *(value for _, value in keywords)))
            return Binary(tile, "+", total[0], made) if total else made
        case Call(fn=Name(name="sum_first"), args=(Binary(op="*", left=row, right=state),)):
            return replace(expr, fn=Name(None, "wide_row"), args=(row, state))
        case Binary(op="-", right=Call(fn=Name(name="wide_dot"), args=(a, Unary(op="-", x=b), *more)) as made):
            return replace(expr, op="+", right=replace(made, args=(a, b, *more)))
    return expr


def _over(expr: Expr, change: Callable[[Expr], Expr]) -> Expr:
    """The expression with its operands changed."""
    match expr:
        case Unary(x=x) | Attribute(x=x):
            return replace(expr, x=change(x))
        case Binary(left=left, right=right):
            return replace(expr, left=change(left), right=change(right))
        case Call(args=args, keywords=keywords):
            changed = tuple((name, change(value)) for name, value in keywords)
            return replace(expr, args=tuple(map(change, args)), keywords=changed)
        case Subscript(x=x, index=index):
            return replace(expr, x=change(x), index=tuple(None if item is None else change(item) for item in index))
        case Sequence(items=items):
            return replace(expr, items=tuple(map(change, items)))
        case Choose(condition=condition, yes=yes, no=no):
            return replace(expr, condition=change(condition), yes=change(yes), no=change(no))
    return expr
