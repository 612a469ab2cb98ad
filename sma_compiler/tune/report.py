"""What the tuner found: a row for each configuration, the winners, and what was rejected and why."""

from __future__ import annotations

from dataclasses import dataclass

from sma_compiler.kernel.choices import DEFAULT, Choices, plan_text
from sma_compiler.runtime.records import Record


@dataclass(frozen=True)
class Candidate:
    """What may be chosen. predicted, predicted_backward: seconds, by the cost model; None: it does not say."""

    backend: str
    plan: str
    choices: Choices = DEFAULT
    predicted: float | None = None
    predicted_backward: float | None = None

    @property
    def pick(self) -> str:
        """The plan with its choices."""
        return plan_text(self.plan, self.choices)

    def __str__(self) -> str:
        return f"{self.backend} {self.pick}"


@dataclass(frozen=True)
class Row:
    """A candidate's measurements, in seconds; why it may not win, where it may not.

    forward: without gradients. recorded: the forward pass that gradients follow. error: the largest over its bound.
    """

    candidate: Candidate
    forward: float | None = None
    recorded: float | None = None
    backward: float | None = None
    error: float | None = None
    refused: str = ""

    @property
    def training(self) -> float | None:
        """Forward and backward."""
        return None if self.recorded is None or self.backward is None else self.recorded + self.backward


@dataclass(frozen=True)
class Tuning:
    """The result for one setting. Printing it shows the table.

    forward, training: the records that were kept, without and with gradients; None: nothing could win.
    """

    title: str
    rows: tuple[Row, ...]
    forward: Record | None
    training: Record | None
    seconds: float

    @property
    def rejected(self) -> tuple[Row, ...]:
        """What may not win."""
        return tuple(row for row in self.rows if row.refused)

    def __str__(self) -> str:
        head = ("", "forward", "forward + backward", "error / bound", "")
        lines = [head, *(_line(row) for row in self.rows)]
        widths = [max(len(line[n]) for line in lines) for n in range(4)]
        shown = [
            "  ".join(x.ljust(w) if n == 0 else x.rjust(w) for n, (x, w) in enumerate(zip(line, widths, strict=False)))
            + (f"  {line[4]}" if line[4] else "")
            for line in lines
        ]
        best = [
            f"{what}: {record.backend} {record.pick}" if record else f"{what}: nothing could win"
            for what, record in (("forward", self.forward), ("training", self.training))
            if record or what == "forward"
        ]
        return "\n".join([f"{self.title}, {self.seconds:.1f} s", *(line.rstrip() for line in shown), *best])


def _line(row: Row) -> tuple[str, str, str, str, str]:
    error = "-" if row.error is None else f"{row.error:.2f}"
    return str(row.candidate), _milliseconds(row.forward), _milliseconds(row.training), error, row.refused


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.4g} ms"
