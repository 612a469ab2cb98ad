"""Prints an expression of the IR in the words of the language, with what defs and names stood for written out."""

from __future__ import annotations

from sma_compiler.ir.nodes import (
    Apply,
    At,
    Attend,
    Const,
    Expr,
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
from sma_compiler.syntax.show import AND, COMPARE, NOT, OR, POSTFIX, POWER, PRODUCT, SUM, UNARY

_BINARY = {
    "add": ("+", SUM),
    "sub": ("-", SUM),
    "mul": ("*", PRODUCT),
    "div": ("/", PRODUCT),
    "floordiv": ("//", PRODUCT),
    "mod": ("%", PRODUCT),
    "and": ("and", AND),
    "or": ("or", OR),
}
_COMPARE = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_RISING = frozenset({"lt", "le"})

Texts = dict[Expr, tuple[str, int]]


def show_expr(expr: Expr, limit: int = 2000) -> str:
    """The expression on one line; a part whose text has more than `limit` characters is `...`.

    It parses back to the same expression where nothing is cut and no axis is renamed.
    """
    done: Texts = {}
    for node in postorder((expr,)):
        text, level = _form(node, done)
        done[node] = (text, level) if len(text) <= limit or node is expr else ("...", POSTFIX)
    return done[expr][0]


def _form(node: Expr, done: Texts) -> tuple[str, int]:
    """The text of a node whose operands are done, and how tightly it binds."""

    def part(x: Expr, least: int = OR) -> str:
        text, level = done[x]
        return text if level >= least else f"({text})"

    def call(fn: str, *args: str) -> tuple[str, int]:
        return f"{fn}({', '.join(args)})", POSTFIX

    match node:
        case Const(value=value):
            return _number(value)
        case Param(name=name) | Position(name=name):
            return name, POSTFIX
        case Size(axis=axis):
            return axis, POSTFIX
        case At(x=x, position=position):
            return f"{part(x, POSTFIX)}[{position}]", POSTFIX
        case Lag(table=table, index=index):
            return f"{part(table, POSTFIX)}[{part(index)}]", POSTFIX
        case Apply(fn=fn, args=args):
            return _apply(fn, args, done)
        case Reduce(fn=fn, x=x, axis=axis):
            return call(fn, part(x), axis)
        case Rename(x=x, old=old, new=new):
            return call("rename", part(x), old, new)
        case PathSum(gate=gate, start=start, end=end, start_closed=first, end_closed=last):
            path = f"{start} {'<=' if first else '<'} t {'<=' if last else '<'} {end}"
            return call("sum", part(gate), path)
        case Levels(weights=weights, row=row):
            text, level = call("levels", part(weights))
            return (text, level) if row == "i" else call("transpose", text)
        case MaskProduct() | MaskTimes():
            left, right = children(node)
            return f"{part(left, PRODUCT)} @ {part(right, UNARY)}", PRODUCT
        case Attend(normalize=normalize, activation=activation, scale=scale):
            options = [("normalize", normalize), ("activation", activation)]
            given = [f"{name}={value}" for name, value in options if value != "none"]
            if part(scale) != "1":
                given.append(f"scale={part(scale)}")
            return call("attend", *(part(x) for x in (node.mask, node.q, node.k, node.v)), *given)
        case Solve() | Rope():
            return call(type(node).__name__.lower(), *(part(x) for x in children(node)))
    raise AssertionError(f"{type(node).__name__} has no text")


def _apply(fn: str, args: tuple[Expr, ...], done: Texts) -> tuple[str, int]:
    def part(x: Expr, least: int) -> str:
        text, level = done[x]
        return text if level >= least else f"({text})"

    if fn == "and" and _is_chain(*args):
        return f"{done[args[0]][0]} {_tail(args[1], done)}", COMPARE
    if fn in _BINARY:
        sign, level = _BINARY[fn]
        return f"{part(args[0], level)} {sign} {part(args[1], level + 1)}", level
    if fn in _COMPARE:
        return f"{part(args[0], SUM)} {_COMPARE[fn]} {part(args[1], SUM)}", COMPARE
    if fn == "neg":
        return f"-{part(args[0], UNARY)}", UNARY
    if fn == "not":
        return f"not {part(args[0], NOT)}", NOT
    if fn == "pow":
        return f"{part(args[0], POSTFIX)} ** {part(args[1], UNARY)}", POWER
    return f"{fn}({', '.join(done[arg][0] for arg in args)})", POSTFIX


def _is_chain(left: Expr, right: Expr) -> bool:
    """Whether two conditions read as one, `a <= b < c`."""
    if not (isinstance(left, Apply) and isinstance(right, Apply)):
        return False
    return {left.fn, right.fn} <= _RISING and left.args[1] is right.args[0]


def _tail(node: Expr, done: Texts) -> str:
    assert isinstance(node, Apply)
    text, level = done[node.args[1]]
    return f"{_COMPARE[node.fn]} {text if level >= SUM else f'({text})'}"


def _number(value: int | float | bool) -> tuple[str, int]:
    if isinstance(value, bool):
        return ("0 == 0" if value else "0 == 1"), COMPARE
    return repr(value), UNARY if repr(value).startswith("-") else POSTFIX
