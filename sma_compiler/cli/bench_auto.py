"""The table of `sma bench --suite auto`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import wrap

import torch
import typer
from rich.table import Table

from sma_compiler.bench.auto import Found, read, run_rows
from sma_compiler.bench.auto_peers import peer_row, run_peers
from sma_compiler.bench.auto_rows import AUTO_ROWS, AutoRow
from sma_compiler.bench.verdict import SHARE, WITHIN, WORST, Summary, Verdict, rival, summary, verdicts
from sma_compiler.cli.common import console, print_json, progress
from sma_compiler.errors import SmaError

DEFAULT_FILE = Path("sma-bench-auto.json")


class UnknownAutoRow(SmaError):
    """`--rows` names none."""

    def __init__(self, name: str) -> None:
        super().__init__(f"--rows {name}: there are {', '.join(row.name for row in AUTO_ROWS)}")


def run_auto(
    names: list[str] | None, out: Path | None, seconds: float | None, as_json: bool, *, report: bool, peers: bool
) -> bool:
    """Measure rows (all, or those whose names begin so), print the table; whether what is promised holds.

    report: nothing is measured; the table is of what the file holds. peers: other implementations are measured, too;
    with `report` the table is of them.
    """
    rows = [row for row in AUTO_ROWS if not names or any(row.name.startswith(name) for name in names)]
    for name in names or ():
        if not any(row.name.startswith(name) for row in AUTO_ROWS):
            raise UnknownAutoRow(name)
    file = out or DEFAULT_FILE
    if report:
        found = read(file)
        if peers and not as_json:
            typer.echo(peers_text(rows, found))
            return True
    else:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with progress("measuring", len(rows)) as (bar, task):
            found = run_rows(rows, file, device, seconds, lambda what: bar.update(task, advance=1, description=what))
        if peers and device == "cuda":
            with progress("measuring peers", len(rows)) as (bar, task):
                run_peers(rows, file, device, lambda what: bar.update(task, advance=1, description=what))
            found = read(file)
    judged = verdicts(rows, found)
    seen = summary(rows, judged)
    if as_json:
        print_json({"rows": [{**asdict(one), "ratios": one.ratios} for one in judged], **asdict(seen)})
    else:
        console().print(_table(judged))
        console().print(_words(seen))
    return seen.kept


def peers_text(rows: Sequence[AutoRow], found: Mapping[str, Found]) -> str:
    """Ours beside other implementations, which device that was, when, and why numbers are missing."""
    kept = [found[row.name] for row in rows if row.name in found]
    rivals = [(one.name, own) for one in kept if (own := rival(one)).name]
    devices = sorted({f"{one.device}, torch {one.torch}, Triton {one.triton}" for one in kept})
    dates = sorted({own.date[:10] for _, own in rivals if own.date})
    table = [("", "", "forward", "", "", "both", "", ""), ("shape", "peer", *2 * ("peer", "ours", "ratio"))]
    for name, own in rivals:
        forward, both = own.ratios
        forwards = _milliseconds(own.forward), _milliseconds(own.our_forward), _ratio(forward)
        table.append((name, own.name, *forwards, _milliseconds(own.both), _milliseconds(own.our_both), _ratio(both)))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            x.ljust(n) if i < 2 else x.rjust(n) for i, (x, n) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]
    ratios = [ratio for _, own in rivals for ratio in own.ratios if ratio is not None]
    slower = sum(ratio < 1 for ratio in ratios)
    reasons = [f"{name}: {own.reason}" for name, own in rivals if own.reason]
    told = {name for name, _ in rivals}
    without = [row.name for row in rows if peer_row(row) is None]
    waiting = [row.name for row in rows if row.name not in {*told, *without}]
    words = [
        f"Milliseconds; ratio: the peer's over ours. {'; '.join(devices)}; peers {', '.join(dates)}",
        *lines,
        f"{len(ratios)} ratios, {slower} below 1",
        *(["no number of a peer:", *(f"  {reason}" for reason in reasons)] if reasons else []),
        *_wrapped("not measured", waiting),
        *_wrapped("no peer", without),
    ]
    return "\n".join(words)


def _wrapped(what: str, names: Sequence[str]) -> list[str]:
    words = f"{what}: {', '.join(names)}"
    return wrap(words, 120, subsequent_indent="  ", break_on_hyphens=False) if names else []


def _ratio(x: float | None) -> str:
    return "-" if x is None else f"{x:.2f}"


def _table(found: list[Verdict]) -> Table:
    table = Table(
        title="Milliseconds without and with gradients; ratios: auto over the best",
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="bold",
    )
    for name in ("shape", "auto", "forward", "best", "ratio", "training", "best", "ratio", ""):
        table.add_column(name, no_wrap=name in ("shape", "auto"))
    for one in found:
        ratios = [f"{x:.2f}" for x in one.ratios] + ["-", "-"]
        forwards = _milliseconds(one.forward), _milliseconds(one.best_forward), ratios[0]
        trainings = _milliseconds(one.training), _milliseconds(one.best_training), ratios[1]
        table.add_row(one.name, one.auto, *forwards, *trainings, one.error)
    return table


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.3f}"


def _words(seen: Summary) -> str:
    near = (
        f"auto is within {WITHIN - 1:.0%} of the best in {seen.share:.0%} of the measurements (promised: {SHARE:.0%})"
    )
    worst = f"at worst {seen.worst:.2f} times it (promised: {WORST})"
    missing = f", {seen.missing} not measured" if seen.missing else ""
    beside = "" if seen.least is None else f"; peers take at least {seen.least:.2f} times as long as the best"
    return f"{near}, {worst}; {seen.shapes} shapes{missing}{beside}"
