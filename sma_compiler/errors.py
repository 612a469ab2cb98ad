"""The root of every error this package raises on purpose.

`SpecError` is a mistake in a spec (one subclass a mistake, in `mistakes.py`); `CallError` a mistake in a call of a
compiled op (one subclass a mistake, in `call_errors.py`). Both say what is wrong, where, and what to write instead.
"""

from __future__ import annotations

from sma_compiler.source import Span


class SmaError(Exception):
    """Anything that sma_compiler refuses."""


class SpecError(SmaError):
    """A spec that cannot be compiled. `errors` holds every mistake found, each with its own `span`."""

    def __init__(self, message: str, span: Span | None = None, hint: str = "") -> None:
        self.message = message
        self.span = span
        self.hint = hint
        super().__init__(self.render())

    @property
    def errors(self) -> tuple[SpecError, ...]:
        """Every mistake of the file, in the order of the text."""
        return (self,)

    def render(self) -> str:
        """`file:line:column: message`, the source line with a caret, and what to write instead."""
        hint = f"\n  {self.hint}" if self.hint else ""
        if self.span is None:
            return self.message + hint
        where = f"{self.span.source.name}:{self.span.line}:{self.span.column}"
        excerpt = "\n".join("  " + line for line in self.span.render().split("\n"))
        return f"{where}: {self.message}\n{excerpt}{hint}"


class SpecErrors(SpecError):
    """Several mistakes of one file, reported together."""

    def __init__(self, errors: tuple[SpecError, ...]) -> None:
        self._errors = errors
        super().__init__("\n".join(error.render() for error in errors), None)
        self.span = errors[0].span

    @property
    def errors(self) -> tuple[SpecError, ...]:
        return self._errors

    def render(self) -> str:
        return self.message


class CallError(SmaError):
    """A call of a compiled op that cannot be carried out; raised before any work is done."""
