"""Text to tree: cut into items (`layout`), parsed by lark one by one, rebuilt as our nodes (`build`)."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, ClassVar

from sma_compiler.errors import SpecError, SpecErrors
from sma_compiler.source import Source, Span
from sma_compiler.syntax import tree
from sma_compiler.syntax.build import Build
from sma_compiler.syntax.explain import explain_character, explain_token
from sma_compiler.syntax.layout import MAX_MISTAKES, Item, split
from sma_compiler.syntax.locate import grammar_text

if TYPE_CHECKING:
    from lark import Lark

_BOUND = re.compile(r"\A\s*([A-Za-z_][A-Za-z0-9_]*)")
"""What a statement binds; `return` for the result."""

_LOCK = threading.Lock()


@dataclass(frozen=True)
class Parsed:
    """The items that parse, in part perhaps (`Op.lost`), every mistake, and the defs that do not parse."""

    file: tree.File
    errors: tuple[SpecError, ...]
    lost: Mapping[str, Span]


def parse(source: Source) -> tree.File:
    """The tree of a file. SpecError with every mistake in how it is written."""
    parsed = parse_items(source)
    raise_all(parsed.errors)
    return parsed.file


def parse_items(source: Source) -> Parsed:
    """The items of a file, each parsed by itself so that one mistake hides no other."""
    found, stray = split(source)
    items: list[tree.Op | tree.Define] = []
    errors = list(stray)
    lost: dict[str, Span] = {}
    for item in found:
        if len(errors) >= MAX_MISTAKES:
            break
        try:
            raise_all(item.errors)
            items.append(_parse_item(item))
        except SpecError as error:
            if item.starts and item.text.startswith("op"):
                partial, several = _parse_lines(item)
                items.extend(partial)
                errors.extend(several or error.errors)
            else:
                errors.extend(error.errors)
            if item.defines:
                lost[item.defines] = item.span(1, 1, 1, 1)
    return Parsed(tree.File(tuple(items)), tuple(errors), lost)


def _parse_lines(item: Item) -> tuple[list[tree.Op], list[SpecError]]:
    """An op with mistakes, its header and each of its statements by itself: what parses of it, and every mistake."""
    lines = item.text.rstrip("\n").split("\n")
    errors = list(item.errors)
    wrong = {error.span.line - item.line + 1 for error in errors if error.span}
    stops = (*item.starts, len(lines) + 1)
    header: tree.Op | None = None
    body: list[tree.Bind | tree.Return] = []
    lost: list[str] = []
    for start, stop in zip((1, *item.starts), stops, strict=True):
        text = "\n".join(lines[start - 1 : stop - 1]) + "\n"
        if start == 1:
            part = Item(item.source, item.line, f"{text}    return 0\n", item.doc)
        else:
            part = Item(item.source, item.line + start - 2, f"op f():\n{text}")
        try:
            if wrong.isdisjoint(range(start, stop)):
                op = _parse_item(part)
                assert isinstance(op, tree.Op)
                if start == 1:
                    header = op
                else:
                    body.extend(op.body)
                continue
        except SpecError as error:
            errors.extend(error.errors)
        lost.extend(_BOUND.findall(text)[:1])
        if len(errors) >= MAX_MISTAKES:
            break
    if header is None:
        return [], errors
    span = item.span(1, 1, len(lines), len(lines[-1]) + 1)
    return [replace(header, body=tuple(body), lost=tuple(lost), span=span)], errors


def raise_all(errors: tuple[SpecError, ...]) -> None:
    """Raises the one mistake, or all of them together in the order of the text; nothing where there is none."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise SpecErrors(tuple(sorted(errors, key=_place)))


def _place(error: SpecError) -> tuple[int, int]:
    return (error.span.line, error.span.column) if error.span else (0, 0)


def _parse_item(item: Item) -> tree.Op | tree.Define:
    from lark import UnexpectedCharacters, UnexpectedToken

    try:
        with _LOCK:  # lark's Indenter keeps the state of the parse in itself
            found = lark_parser().parse(item.text)
    except UnexpectedCharacters as error:
        raise explain_character(item, error.line, error.column, error.pos_in_stream or 0) from None
    except UnexpectedToken as error:
        raise explain_token(item, error.token, frozenset(error.accepts or ())) from None
    (root,) = found.children
    assert not isinstance(root, str)
    return Build(item).node(root)


@cache
def lark_parser(strict: bool = False) -> Lark:
    """The LALR(1) parser of `grammar/sma.lark`; `strict` also refuses conflicts and terminals that collide."""
    from lark import Lark
    from lark.indenter import Indenter

    class Layout(Indenter):
        NL_type = "_NL"
        OPEN_PAREN_types: ClassVar[list[str]] = ["LPAR", "LSQB"]
        CLOSE_PAREN_types: ClassVar[list[str]] = ["RPAR", "RSQB"]
        INDENT_type = "_INDENT"
        DEDENT_type = "_DEDENT"
        tab_len = 8

    return Lark(
        grammar_text(),
        parser="lalr",
        lexer="basic",
        start="file",
        postlex=Layout(),
        propagate_positions=True,
        maybe_placeholders=True,
        strict=strict,
    )
