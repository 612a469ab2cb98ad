"""Says what is wrong where the parser stops: from the token it met, the one before it and those it would accept."""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING

from sma_compiler.source import Span
from sma_compiler.syntax.layout import Item
from sma_compiler.syntax.mistakes import (
    BadAnnotation,
    BadCharacter,
    BadSyntax,
    BodyOnHeaderLine,
    KeywordAsName,
    MissingBody,
    MissingColon,
    MissingDefinition,
    MissingName,
    MissingOperand,
    MissingOperator,
    MissingParameters,
    MissingReturnValue,
    NotAnItem,
    NotAStatement,
    SingleEquals,
)

if TYPE_CHECKING:
    from lark import Token

    from sma_compiler.errors import SpecError

_TOKEN = re.compile(r"[A-Za-z_0-9.]+|<=|>=|==|!=|\*\*|//|[^\s]")
_COMMENT = re.compile(r"#[^\n]*")
_KEYWORDS = frozenset({"op", "def", "return", "and", "or", "not"})
_INSTEAD = {
    "\ufeff": "save the file without a byte order mark",
    "^": "powers are written `**`",
    "&": "write `and`",
    "|": "write `or`",
    "!": "write `not`, or `!=`",
    "~": "write `not`",
    ";": "start a new line",
    "'": "there is no text in the language: options are bare words",
    '"': "there is no text in the language: options are bare words",
    "{": "brackets are `(` and `[`",
    "}": "brackets are `)` and `]`",
    "≤": "write `<=`",
    "≥": "write `>=`",
    "≠": "write `!=`",
    "−": "write `-`, the ASCII minus",
    "×": "write `*`",
    "·": "write `*`",
    "∘": "write `*`",
    ".": "numbers are written `0.5`; there are no attributes",
}
_READABLE = {
    "_NL": "a new line",
    "NAME": "a name",
    "NUMBER": "a number",
    "LPAR": "`(`",
    "RPAR": "`)`",
    "LSQB": "`[`",
    "RSQB": "`]`",
    "COLON": "`:`",
    "COMMA": "`,`",
    "ASSIGN": "`=`",
    "RETURN": "`return`",
}


def explain_character(item: Item, line: int, column: int, offset: int) -> SpecError:
    """A character that starts no token."""
    at = item.span(line, column, line, column + 1)
    found = item.text[offset]
    printable = found.isprintable() and not found.isspace()
    what = f"`{found}`" if printable else f"the character U+{ord(found):04X}"
    hint = _INSTEAD.get(found, "names and numbers are ASCII" if ord(found) > 127 else "")
    return BadCharacter(at, what=what, hint=hint)


def explain_token(item: Item, token: Token, accepts: frozenset[str]) -> SpecError:
    """A token that no rule has a place for here; `accepts` are the types that one would have."""
    text = _COMMENT.sub(lambda comment: " " * len(comment[0]), item.text)
    stop = len(text) if token.start_pos is None or token.type == "$END" else token.start_pos
    last = next(iter(deque(_TOKEN.finditer(text, 0, stop), 1)), None)
    ends = token.type in ("_NL", "$END", "_INDENT", "_DEDENT")
    if last is None:
        return NotAnItem(_span(item, text, stop, stop + len(token)))
    before = last[0]
    here = _span(item, text, last.end(), last.end()) if ends else _span(item, text, stop, stop + len(token))
    start = _span(item, text, *last.span())
    seen = "the end of the line" if ends else str(token)
    head = _TOKEN.match(text)
    assert head is not None
    named = _TOKEN.match(text, min(len(text), head.end() + 1))
    name = named[0] if named and named[0].isidentifier() else "name"

    if "_INDENT" in accepts:
        return MissingBody(start, name=name)
    if accepts == {"_NL"} and before == ":":
        return BodyOnHeaderLine(here)
    if before in ("op", "def"):
        keyword = str(token) in _KEYWORDS
        return KeywordAsName(here, word=token) if keyword else _missing_name(here, before)
    if accepts == {"LPAR"} and head[0] == "op":
        return MissingParameters(here, name=name)
    if accepts == {"COLON"}:
        return MissingColon(here, name=name)
    if before == "return" and ends:
        return MissingReturnValue(start)
    if head[0] == "def" and "ASSIGN" in accepts and ends:
        return MissingDefinition(here)
    if "RETURN" in accepts or accepts == {"ASSIGN"}:
        if str(token) in ("op", "def", "and", "or", "not"):
            return KeywordAsName(here, word=token)
        return NotAStatement(_statement(item, text, last.end() if ends else stop))
    if {"LPAR", "NUMBER"} <= accepts:
        if str(token) in ("op", "def", "return"):
            return KeywordAsName(here, word=token)
        hint = "`*args` and `**options` do not exist" if before in ("(", ",") and str(token) in ("*", "**") else ""
        return MissingOperand(here, after=before, hint=hint or _operand_hint(before, str(token)))
    if "PLUS" in accepts:
        if token.type == "ASSIGN":
            return SingleEquals(here)
        if token.type in ("NAME", "NUMBER", "LPAR", "NOT"):
            return MissingOperator(here, before=before, token=token)
        if token.type == "COLON":
            return BadSyntax(here, token=":", hint="there are no slices: a time axis is indexed by `i`, `j` or `t`")
    if "NAME" in accepts and str(token) in _KEYWORDS:
        return KeywordAsName(here, word=token)
    if accepts >= {"NAME", "LSQB"}:
        return BadAnnotation(here)
    if head[0] == "op" and before in ("(", ",") and "NAME" in accepts:
        return MissingName(here, after=f"`{before}`", hint="a parameter is `q`, `x: [time, head]` or `w: int`")
    expected = sorted(_READABLE[kind] for kind in accepts if kind in _READABLE)
    hint = f"after `{before}` comes {' or '.join(expected)}" if expected else ""
    return BadSyntax(here, token=seen, hint=hint)


def _missing_name(at: Span, word: str) -> SpecError:
    hint = "write `op name(q, k, v):`" if word == "op" else "write `def name = expression`"
    return MissingName(at, after=f"`{word}`", hint=hint)


def _operand_hint(before: str, token: str) -> str:
    if token == "+":
        return "there is no `+` before an expression"
    if token == "not":
        return "put it in brackets: `(not x)`"
    if before == "[":
        return "a time axis is indexed by `i`, `j` or `t`"
    return "write the expression, or remove what asks for it"


def _span(item: Item, text: str, start: int, stop: int) -> Span:
    """The place of text[start:stop], which lies in one line."""
    line = text.count("\n", 0, start) + 1
    column = start - (text.rfind("\n", 0, start) + 1) + 1
    return item.span(line, column, line, column + max(1, stop - start))


def _statement(item: Item, text: str, offset: int) -> Span:
    """The line around the offset, without its indentation."""
    start = text.rfind("\n", 0, offset) + 1
    stop = text.find("\n", offset)
    line = text[start : stop if stop >= 0 else len(text)]
    return _span(item, text, start + len(line) - len(line.lstrip(" ")), start + len(line.rstrip()))
