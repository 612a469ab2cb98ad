"""The printer: kernel IR to the text of a Python file, laid out as `ruff format` lays it out."""

from __future__ import annotations

from collections.abc import Iterable

from sma_compiler.kernel.nodes import (
    Assign,
    Attribute,
    Binary,
    Call,
    Choose,
    Comment,
    Do,
    Expr,
    For,
    Function,
    If,
    Literal,
    Name,
    Parameter,
    Raise,
    Return,
    Section,
    Sequence,
    Statement,
    Subscript,
    Unary,
)

WIDTH = 88
_INDENT = "    "
_LEVEL = {
    "if": 0,
    "or": 1,
    "and": 2,
    "not": 3,
    "<": 4,
    "<=": 4,
    ">": 4,
    ">=": 4,
    "==": 4,
    "!=": 4,
    "in": 4,
    "is": 4,
    "is not": 4,
    "|": 5,
    "&": 7,
    "+": 9,
    "-": 9,
    "*": 10,
    "/": 10,
    "//": 10,
    "%": 10,
}
_PREFIX = 11
_POWER = 12
_POSTFIX = 13


def show(expr: Expr) -> str:
    """An expression on one line."""
    return _form(expr)[0]


def _form(expr: Expr) -> tuple[str, int]:
    """The text of an expression, and how tightly it binds."""
    match expr:
        case Name(name=name):
            return name, _POSTFIX
        case Literal(value=value):
            return literal(value), _POSTFIX
        case Unary(op="not", x=x):
            return f"not {_within(x, _LEVEL['not'])}", _LEVEL["not"]
        case Unary(op=op, x=x):
            return f"{op}{_within(x, _PREFIX)}", _PREFIX
        case Binary(op="**", left=left, right=right):
            simple = all(isinstance(x, Name | Literal) for x in (left, right))
            sign = "**" if simple else " ** "
            return f"{_within(left, _POSTFIX)}{sign}{_within(right, _PREFIX)}", _POWER
        case Binary(op=op, left=left, right=right):
            level = _LEVEL[op]
            below = level + 1 if level == _LEVEL["<"] else level
            return f"{_within(left, below)} {op} {_within(right, level + 1)}", level
        case Call(fn=fn):
            return f"{_within(fn, _POSTFIX)}({', '.join(_arguments(expr))})", _POSTFIX
        case Attribute(x=x, name=name):
            return f"{_within(x, _POSTFIX)}.{name}", _POSTFIX
        case Subscript(x=x, index=index):
            items = ", ".join(":" if item is None else show(item) for item in index)
            return f"{_within(x, _POSTFIX)}[{items}]", _POSTFIX
        case Sequence(items=items, bracket=bracket):
            comma = "," if bracket == "(" and len(items) == 1 else ""
            return f"{bracket}{', '.join(show(item) for item in items)}{comma}{_CLOSING[bracket]}", _POSTFIX
        case Choose(condition=condition, yes=yes, no=no):
            return f"{_within(yes, 1)} if {_within(condition, 1)} else {show(no)}", _LEVEL["if"]
    raise AssertionError(type(expr).__name__)


_CLOSING = {"(": ")", "[": "]"}


def literal(value: int | float | bool | str | None) -> str:
    """A constant as Python writes it; strings in double quotes."""
    if isinstance(value, str):
        assert value.isprintable()
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value).replace("e+", "e")


def _within(expr: Expr, level: int) -> str:
    text, own = _form(expr)
    return text if own >= level else f"({text})"


def _arguments(call: Call) -> list[str]:
    return [*(show(arg) for arg in call.args), *(f"{name}={show(value)}" for name, value in call.keywords)]


def _split(prefix: str, expr: Expr, suffix: str, indent: str) -> list[str]:
    """`prefix expr suffix` in as many lines as it takes."""
    flat = f"{indent}{prefix}{show(expr)}{suffix}"
    if len(flat) <= WIDTH:
        return [flat]
    inner = indent + _INDENT
    match expr:
        case Call(fn=Attribute(x=Binary() as x, name=name)):
            return _parenthesised(prefix, x, f".{name}({', '.join(_arguments(expr))}){suffix}", indent)
        case Call(fn=Attribute(x=Call() as x, name=name)) if len(f"{indent}{prefix}{show(expr.fn)}(") > WIDTH:
            return _split(prefix, x, f".{name}({', '.join(_arguments(expr))}){suffix}", indent)
        case Binary() if suffix == ",":
            *lines, last_line = _chain(prefix, expr, indent)
            return [*lines, f"{last_line},"]
        case Binary(op=op, left=Sequence(items=parts, bracket=bracket), right=right):
            body = [line for part in parts for line in _split("", part, ",", inner)]
            return [f"{indent}{prefix}{bracket}", *body, f"{indent}{_CLOSING[bracket]} {op} {show(right)}{suffix}"]
        case Binary() if _is_alone(expr, f"{indent}{prefix}"):
            before, last = _last(expr)
            if isinstance(last, Call):
                return _split(f"{prefix}{before}", last, suffix, indent)
            return _parenthesised(f"{prefix}{before}", last, suffix, indent)
        case Call(fn=fn):
            items = _items(expr)
            head, close = f"{indent}{prefix}{_within(fn, _POSTFIX)}(", f"{indent}){suffix}"
        case Sequence(items=parts, bracket=bracket):
            items = [("", part) for part in parts]
            head, close = f"{indent}{prefix}{bracket}", f"{indent}{_CLOSING[bracket]}{suffix}"
        case Binary() | Choose():
            return _parenthesised(prefix, expr, suffix, indent)
        case _:
            raise AssertionError(f"no way to wrap: {flat}")
    together = inner + ", ".join(f"{name}{show(item)}" for name, item in items)
    if len(together) <= WIDTH and isinstance(expr, Call):
        return [head, together, close]
    body = [line for name, item in items for line in _split(name, item, ",", inner)]
    return [head, *body, close]


def _is_alone(expr: Binary, before: str) -> bool:
    """Whether no other operator binds alike, and the line up to the bracket that the last operand opens fits."""
    if isinstance(expr.left, Binary) and _LEVEL[expr.left.op] == _LEVEL[expr.op]:
        return False
    own, last = _last(expr)
    opened = _within(last.fn, _POSTFIX) if isinstance(last, Call) else ""
    brackets = isinstance(last, Call) or (isinstance(last, Binary) and last.op in _LEVEL)
    return brackets and len(f"{before}{own}{opened}(") <= WIDTH


def _last(expr: Binary) -> tuple[str, Expr]:
    """The last operand of a chain of operators, and the text before it; a `Binary` there stands in brackets."""
    level = _LEVEL[expr.op]
    before, last = f"{_within(expr.left, level)} {expr.op} ", expr.right
    if isinstance(last, Binary) and last.op in _LEVEL and _LEVEL[last.op] > level:
        more, last = _last(last)
        before += more
    return before, last


def _items(call: Call) -> list[tuple[str, Expr]]:
    return [*(("", arg) for arg in call.args), *((f"{name}=", value) for name, value in call.keywords)]


def _parenthesised(prefix: str, expr: Expr, suffix: str, indent: str) -> list[str]:
    inner = indent + _INDENT
    flat = inner + show(expr)
    lines = [flat] if len(flat) <= WIDTH else _chain("", expr, inner)
    return [f"{indent}{prefix}(", *lines, f"{indent}){suffix}"]


def _chain(prefix: str, expr: Expr, indent: str) -> list[str]:
    """The operands of infix operators that bind alike, each on a line."""
    assert isinstance(expr, Binary), f"no way to wrap: {indent}{prefix}{show(expr)}"
    level = _LEVEL[expr.op]
    parts: list[tuple[str, Expr]] = []
    left: Expr = expr
    while isinstance(left, Binary) and _LEVEL[left.op] == level:
        parts.append((left.op, left.right))
        left = left.left
    lines = _operand(prefix, left, level, indent)
    for op, right in reversed(parts):
        lines += _operand(f"{op} ", right, level + 1, indent)
    return lines


def _operand(prefix: str, expr: Expr, level: int, indent: str) -> list[str]:
    """An operand of an operator of some level, in as many lines as it takes."""
    flat = f"{indent}{prefix}{_within(expr, level)}"
    if len(flat) <= WIDTH:
        return [flat]
    if _form(expr)[1] < level:
        return _parenthesised(prefix, expr, "", indent)
    return _chain(prefix, expr, indent) if isinstance(expr, Binary) else _split(prefix, expr, "", indent)


def statements(body: Iterable[Statement], indent: str) -> list[str]:
    """The lines of a block."""
    lines: list[str] = []
    for statement in body:
        if isinstance(statement, Section):
            if lines and lines[-1]:
                lines.append("")
            if statement.title:
                lines.append(f"{indent}# {statement.title}")
        else:
            lines += _statement(statement, indent)
    return lines


def _statement(statement: Statement, indent: str) -> list[str]:
    match statement:
        case Comment(text=text):
            return [f"{indent}# {text}"]
        case Assign(targets=targets, value=value, show=shown):
            lines = _assigned([target.name for target in targets], value, indent)
            note = f"  # {targets[0].tile}" if shown else ""
            if len(lines[-1]) + len(note) <= WIDTH:
                lines[-1] += note
            return lines
        case Do(value=value):
            return _split("", value, "", indent)
        case For(variable=variable, iterable=iterable, body=body):
            return [*_split(f"for {variable.name} in ", iterable, ":", indent), *statements(body, indent + _INDENT)]
        case If(condition=condition, body=body, orelse=orelse):
            lines = [*_split("if ", condition, ":", indent), *statements(body, indent + _INDENT)]
            if orelse:
                lines += [f"{indent}else:", *statements(orelse, indent + _INDENT)]
            return lines
        case Return(value=None):
            return [f"{indent}return"]
        case Return(value=value) if value is not None:
            return _split("return ", value, "", indent)
        case Raise(value=value):
            return _split("raise ", value, "", indent)
    raise AssertionError(type(statement).__name__)


def _assigned(targets: list[str], value: Expr, indent: str) -> list[str]:
    """Targets that leave no room for what the value begins with stand on lines of their own."""
    prefix = f"{', '.join(targets)} = "
    begins = show(value) if isinstance(value, Name) else f"{show(value.fn)}(" if isinstance(value, Call) else "("
    if len(targets) < 2 or len(f"{indent}{prefix}{begins}") <= WIDTH:
        return _split(prefix, value, "", indent)
    return [f"{indent}(", *(f"{indent}{_INDENT}{name}," for name in targets), *_split(") = ", value, "", indent)]


def function(made: Function) -> list[str]:
    """The lines of a function."""
    lines = ["@triton.jit"] if made.jit else []
    lines += _signature(made)
    lines += docstring(made.doc, _INDENT)
    lines += statements(made.body, _INDENT)
    return lines


def docstring(doc: tuple[str, ...], indent: str) -> list[str]:
    """A docstring of one line or several."""
    if len(doc) == 1:
        return [f'{indent}"""{doc[0]}"""']
    return [f'{indent}"""{doc[0]}', *(f"{indent}{line}".rstrip() for line in doc[1:]), f'{indent}"""']


def _signature(made: Function) -> list[str]:
    items: list[str] = []
    star = False
    for parameter in made.parameters:
        if parameter.keyword and not star:
            items.append("*")
            star = True
        items.append(_parameter(parameter))
    flat = f"def {made.name}({', '.join(items)}):"
    if len(flat) <= WIDTH:
        return [flat]
    together = _INDENT + ", ".join(items)
    if len(together) <= WIDTH:
        return [f"def {made.name}(", together, "):"]
    return [f"def {made.name}(", *(f"{_INDENT}{item}," for item in items), "):"]


def _parameter(parameter: Parameter) -> str:
    if parameter.default is None:
        return f"{parameter.name}: tl.constexpr" if parameter.constant else parameter.name
    value = show(parameter.default)
    return f"{parameter.name}: tl.constexpr = {value}" if parameter.constant else f"{parameter.name}={value}"
