"""Cuts a text into its items by line, indentation and bracket, before any grammar sees it.

What could hurt a parser (size, depth, tabs, brackets that never close) is refused here, item by item, so that a
mistake in one op hides no mistake in another.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sma_compiler.errors import SpecError
from sma_compiler.source import Source, Span
from sma_compiler.syntax.mistakes import (
    BadCharacter,
    BadIndentation,
    NestedTooDeep,
    TabCharacter,
    TextTooLong,
    UnclosedBracket,
    UnexpectedIndent,
    UnmatchedBracket,
)

MAX_BYTES = 64 * 1024
MAX_DEPTH = 64
MAX_MISTAKES = 100
"""As many mistakes are told of one file."""
MAX_ERRORS = 8
"""As many mistakes of layout are told of one item."""

_CLOSING = {"(": ")", "[": "]"}
_BRACKET = re.compile(r"[()\[\]\t]")
_ITEM = re.compile(r"(op|def)\b")
_RETURN = re.compile(r" *return\b")
_DEF_NAME = re.compile(r"def +([A-Za-z_][A-Za-z0-9_]*)")


@dataclass(frozen=True)
class Item:
    """The lines of one `op` or `def`: `line` is the 1-based number of the first, `doc` the comment above it.

    `starts` are the lines where its statements start, counted from 1 within the item.
    """

    source: Source
    line: int
    text: str
    doc: str = ""
    starts: tuple[int, ...] = ()
    errors: tuple[SpecError, ...] = ()

    @property
    def defines(self) -> str | None:
        """The name that a `def` gives, also where the rest of it is wrong."""
        found = _DEF_NAME.match(self.text)
        return found[1] if found else None

    def span(self, line: int, column: int, end_line: int, end_column: int) -> Span:
        """A place by its line within the item."""
        first = self.line - 1
        return Span(self.source, line + first, column, end_line + first, end_column)


class _Open:
    """An item under construction."""

    def __init__(self, source: Source, lines: list[str], number: int) -> None:
        self.source = source
        self.lines = lines
        self.first = number
        self.last = number
        self.indent: int | None = None
        self.starts: list[int] = []
        self.joined = False
        self.brackets: list[tuple[str, Span]] = []
        self.errors: list[SpecError] = []

    def add(self, number: int, code: str) -> None:
        """Takes the code of the line with this number: its indentation first, then its brackets."""
        self.last = number
        if self.brackets and _RETURN.match(code):
            self._unclosed()
        if not self.brackets and number > self.first and not self.joined:
            self._check_indent(number, code)
            self.starts.append(number - self.first + 1)
        self.joined = code.endswith("\\")
        if self.joined and len(self.errors) < MAX_ERRORS:
            at = Span(self.source, number, len(code), number, len(code) + 1)
            hint = "an expression goes on over lines inside brackets"
            self.errors.append(BadCharacter(at, what="`\\`", hint=hint))
        for match in _BRACKET.finditer(code):
            if len(self.errors) < MAX_ERRORS:
                self._bracket(match[0], Span(self.source, number, match.start() + 1, number, match.end() + 1))

    def _check_indent(self, number: int, code: str) -> None:
        got = len(code) - len(code.lstrip(" "))
        at = Span(self.source, number, got + 1, number, len(code.rstrip()) + 1)
        if len(self.errors) >= MAX_ERRORS:
            return
        if self.lines[self.first - 1].startswith("def "):
            self.errors.append(UnexpectedIndent(at))
        elif self.indent is None:
            self.indent = got
        elif got != self.indent:
            self.errors.append(BadIndentation(at, got=got, expected=self.indent))

    def _bracket(self, bracket: str, at: Span) -> None:
        if bracket == "\t":
            self.errors.append(TabCharacter(at))
        elif bracket in _CLOSING:
            self.brackets.append((bracket, at))
            if len(self.brackets) == MAX_DEPTH + 1:
                self.errors.append(NestedTooDeep(at, limit=MAX_DEPTH))
        elif not self.brackets:
            hint = "remove it, or open it before"
            self.errors.append(UnmatchedBracket(at, bracket=bracket, what="no bracket", hint=hint))
        else:
            opening, where = self.brackets.pop()
            if _CLOSING[opening] != bracket:
                what = f"the `{opening}` of line {where.line}, column {where.column}"
                hint = f"write `{_CLOSING[opening]}`"
                self.errors.append(UnmatchedBracket(at, bracket=bracket, what=what, hint=hint))

    def close(self) -> Item:
        """The finished item."""
        if self.brackets:
            self._unclosed()
        text = "\n".join(self.lines[self.first - 1 : self.last]) + "\n"
        doc = _doc(self.lines, self.first)
        return Item(self.source, self.first, text, doc, tuple(self.starts), tuple(self.errors))

    def _unclosed(self) -> None:
        """A bracket still open where none can be is a mistake where it was opened."""
        opening, at = self.brackets[-1]
        if not any(error.span and error.span.line >= at.line for error in self.errors):
            self.errors.append(UnclosedBracket(at, bracket=opening, closing=_CLOSING[opening]))
        self.brackets.clear()


def split(source: Source) -> tuple[list[Item], list[SpecError]]:
    """The items of a file in order, and the mistakes that belong to none."""
    size = len(source.text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        return [], [TextTooLong(Span(source, 1, 1, 1, 1), size=size, limit=MAX_BYTES)]
    lines = [line.removesuffix("\r") for line in source.text.split("\n")]
    items: list[Item] = []
    errors: list[SpecError] = []
    wrong = 0
    current: _Open | None = None
    for number, line in enumerate(lines, 1):
        code = line.partition("#")[0].rstrip(" ")
        if not code:
            continue
        starts = (not code.startswith((" ", "\t")) and not (current and current.brackets)) or _ITEM.match(code)
        if starts:
            if current:
                items.append(current.close())
                wrong += bool(items[-1].errors)
            if wrong >= MAX_MISTAKES:
                return items, errors
            current = _Open(source, lines, number)
        if current:
            current.add(number, code)
        elif not errors:
            errors.append(
                UnexpectedIndent(Span(source, number, len(code) - len(code.lstrip()) + 1, number, len(code) + 1))
            )
    if current:
        items.append(current.close())
    return items, errors


def _doc(lines: list[str], first: int) -> str:
    """The comment that ends right above the line with this number."""
    found: list[str] = []
    number = first - 2
    while number >= 0 and lines[number].startswith("#"):
        found.append(lines[number][1:].removeprefix(" ").rstrip())
        number -= 1
    return "\n".join(reversed(found))
