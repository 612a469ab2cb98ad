"""Kernel IR as text: every statement on a line, every variable with its elements and shape."""

from __future__ import annotations

from collections.abc import Iterable

from sma_compiler.emit.triton import show
from sma_compiler.kernel.nodes import (
    Assign,
    Comment,
    Do,
    For,
    Function,
    If,
    Name,
    Raise,
    Return,
    Section,
    Statement,
)


def show_function(made: Function) -> str:
    """A kernel or a launcher."""
    head = "kernel" if made.jit else "launcher"
    names = ", ".join(parameter.name for parameter in made.parameters)
    return "\n".join([f"{head} {made.name}({names})", *_block(made.body, "  ")])


def _block(body: Iterable[Statement], indent: str) -> list[str]:
    lines: list[str] = []
    for statement in body:
        match statement:
            case Section(title=title):
                lines += [f"{indent}section: {title}"] if title else []
            case Comment(text=text):
                lines.append(f"{indent}comment: {text}")
            case Assign(targets=targets, value=value):
                lines.append(f"{indent}{', '.join(_typed(target) for target in targets)} = {show(value)}")
            case Do(value=value):
                lines.append(f"{indent}do {show(value)}")
            case For(variable=variable, iterable=iterable, body=inner):
                lines += [f"{indent}for {_typed(variable)} in {show(iterable)}", *_block(inner, indent + "  ")]
            case If(condition=condition, body=inner, orelse=orelse):
                lines += [f"{indent}if {show(condition)}", *_block(inner, indent + "  ")]
                lines += [f"{indent}else", *_block(orelse, indent + "  ")] if orelse else []
            case Return(value=result):
                lines.append(f"{indent}return {show(result) if result is not None else ''}".rstrip())
            case Raise(value=value):
                lines.append(f"{indent}raise {show(value)}")
    return lines


def _typed(name: Name) -> str:
    return f"{name.name}: {name.tile.dtype}{list(name.tile.shape) or ''}".replace("'", "") if name.tile else name.name
