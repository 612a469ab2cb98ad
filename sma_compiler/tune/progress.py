"""What is told while the tuner works: nothing, or a bar with an estimate, on a terminal alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Tick = Callable[[int, str], None]
"""Called with how many steps are done now, and what is done next."""


def quiet(_steps: int, _what: str) -> None:
    """Tell nothing."""


@contextmanager
def bar(title: str, total: int) -> Iterator[Tick]:
    """A bar on stderr where that is a terminal, gone when the work is done."""
    if not sys.stderr.isatty():
        yield quiet
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(title, total=total)

        def tick(steps: int, what: str) -> None:
            shown.update(task, advance=steps, description=f"{title}: {what}")

        yield tick
