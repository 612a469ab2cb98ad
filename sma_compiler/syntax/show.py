"""Prints a tree as text that parses back to it: `parse(show(x)) == x`."""

from __future__ import annotations

from sma_compiler.syntax import tree

OR, AND, NOT, COMPARE, SUM, PRODUCT, UNARY, POWER, POSTFIX = range(9)
"""How tightly each form binds, loosest first."""


def show(node: tree.File) -> str:
    """The text of a file, its items apart by an empty line."""
    return "\n".join(_item(item) for item in node.items)


def show_expr(node: tree.Expr) -> str:
    """An expression on one line, with the brackets that it needs."""
    done: dict[int, tuple[str, int]] = {}
    for part in reversed(list(tree.walk(node))):
        done[id(part)] = _form(part, done)
    return done[id(node)][0]


def _item(item: tree.Op | tree.Define) -> str:
    if isinstance(item, tree.Define):
        params = "" if item.params is None else f"({', '.join(param.id for param in item.params)})"
        return f"def {item.name}{params} = {show_expr(item.value)}\n"
    lines = [f"# {line}".rstrip() for line in item.doc.split("\n")] if item.doc else []
    lines.append(f"op {item.name}({', '.join(_param(param) for param in item.params)}):")
    for statement in item.body:
        start = f"{statement.name} =" if isinstance(statement, tree.Bind) else "return"
        lines.append(f"    {start} {show_expr(statement.value)}")
    return "\n".join(lines) + "\n"


def _param(param: tree.Param) -> str:
    kind = param.kind or ""
    axes = "" if param.axes is None else f"[{', '.join(axis.name for axis in param.axes)}]"
    return f"{param.name}: {kind}{axes}" if kind or axes else param.name


def _form(node: tree.Node, done: dict[int, tuple[str, int]]) -> tuple[str, int]:
    """The text of a node whose parts are done, and how tightly it binds."""

    def part(child: tree.Node, least: int) -> str:
        text, level = done[id(child)]
        return text if level >= least else f"({text})"

    def chain(first: tree.Expr, rest: tuple[tuple[str, tree.Expr], ...], least: int) -> str:
        return " ".join([part(first, least), *(f"{op} {part(operand, least)}" for op, operand in rest)])

    match node:
        case tree.Name(id=name):
            return name, POSTFIX
        case tree.Number(value=value):
            return repr(value), POSTFIX
        case tree.Negative(x=x):
            return f"-{part(x, UNARY)}", UNARY
        case tree.Not(x=x):
            return f"not {part(x, NOT)}", NOT
        case tree.Chain(first=first, rest=rest):
            level = SUM if rest[0][0] in "+-" else PRODUCT
            return chain(first, rest, level + 1), level
        case tree.Compare(first=first, rest=rest):
            return chain(first, rest, SUM), COMPARE
        case tree.Logic(op=op, args=args):
            level = OR if op == "or" else AND
            return f" {op} ".join(part(arg, level + 1) for arg in args), level
        case tree.Power(base=base, exponent=exponent):
            return f"{part(base, POSTFIX)} ** {part(exponent, UNARY)}", POWER
        case tree.Index(x=x, index=index):
            return f"{part(x, POSTFIX)}[{part(index, OR)}]", POSTFIX
        case tree.Option(name=name, value=value):
            return f"{name}={part(value, OR)}", OR
        case tree.Call(fn=fn, args=args, options=options):
            return f"{fn}({', '.join(part(arg, OR) for arg in (*args, *options))})", POSTFIX
    raise AssertionError(f"{type(node).__name__} is no expression")
