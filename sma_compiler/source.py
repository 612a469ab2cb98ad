"""Spec text with places in it: `Source` is a file's text, `Span` a range of it that can draw its own caret."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

_WIDTH = 160
"""Characters of a source line that an error shows."""


@dataclass(frozen=True)
class Source:
    """The text of one spec and the name it is reported under (a path, or `<spec>`)."""

    text: str
    name: str = "<spec>"

    def line(self, number: int) -> str:
        """The line with this 1-based number, without its newline; empty past the end."""
        return self._lines[number - 1] if 1 <= number <= len(self._lines) else ""

    @cached_property
    def _lines(self) -> list[str]:
        return [line.removesuffix("\r") for line in self.text.split("\n")]


@dataclass(frozen=True)
class Span:
    """A range of a source: 1-based lines and columns, the end exclusive."""

    source: Source = field(repr=False)
    line: int
    column: int
    end_line: int
    end_column: int

    def to(self, other: Span) -> Span:
        """The range from the start of this span to the end of the other."""
        return Span(self.source, self.line, self.column, other.end_line, other.end_column)

    def __contains__(self, other: Span) -> bool:
        """Whether all of the other range lies in this one."""
        starts = (self.line, self.column) <= (other.line, other.column)
        return starts and (other.end_line, other.end_column) <= (self.end_line, self.end_column)

    @property
    def text(self) -> str:
        """The source text of a span within one line; the rest of its first line otherwise."""
        line = self.source.line(self.line)
        stop = self.end_column - 1 if self.end_line == self.line else len(line)
        return line[self.column - 1 : stop]

    def render(self) -> str:
        """The source line with a caret line under the span; of a line that is too long, the part around the span."""
        line = self.source.line(self.line)
        stop = self.end_column if self.end_line == self.line else len(line) + 1
        start, stop = self.column - 1, min(max(stop - 1, self.column), max(len(line), self.column))
        if len(line) > _WIDTH:
            first = max(0, min(start - _WIDTH // 4, len(line) - _WIDTH))
            before, after = "..." if first else "", "..." if first + _WIDTH < len(line) else ""
            line = before + line[first : first + _WIDTH] + after
            start, stop = (x - first + (3 if first else 0) for x in (start, min(stop, first + _WIDTH)))
        return f"{line}\n{' ' * start}{'^' * max(1, stop - start)}"


NOWHERE = Span(Source("", "<generated>"), 1, 1, 1, 1)
"""The span of expressions that the compiler made itself."""
