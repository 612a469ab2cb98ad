"""The tables of `sma bench --peers`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from rich.table import Table

from sma_compiler.bench.peer_rows import ROWS
from sma_compiler.bench.peer_run import (
    NoDevice,
    Result,
    Single,
    measure_decode,
    measure_host,
    measure_row,
    measure_step,
)
from sma_compiler.cli.common import console, print_json, progress
from sma_compiler.errors import SmaError

SINGLES: dict[str, Callable[[str], Single]] = {"step": measure_step, "decode": measure_decode, "host": measure_host}
NAMES = (*(row.name for row in ROWS), *SINGLES)
"""What `--rows` may name."""
WHAT = {"forward": "forward", "both": "forward + backward"}


class UnknownRow(SmaError):
    """`--rows` names none."""

    def __init__(self, name: str) -> None:
        super().__init__(f"--rows {name}: there are {', '.join(NAMES)}")


def run_peers(names: list[str] | None, out: Path | None, as_json: bool, device: str = "cuda") -> None:
    """Measure the rows, all where no names are given; print them, and keep them as `peers.json` in a folder."""
    for name in names or ():
        if name not in NAMES:
            raise UnknownRow(name)
    if device == "cuda" and not torch.cuda.is_available():
        raise NoDevice
    wanted = names or list(NAMES)
    rows: list[Result] = []
    singles: list[Single] = []
    with progress("measuring", len(wanted)) as (bar, task):
        for row in ROWS:
            if row.name in wanted:
                rows.append(measure_row(row, device))
                _keep(_report(device, rows, singles), out)
                bar.update(task, advance=1, description=row.name)
        for name, measure in SINGLES.items():
            if name in wanted:
                singles.append(measure(device))
                bar.update(task, advance=1, description=name)
    report = _report(device, rows, singles)
    _keep(report, out)
    if as_json:
        print_json(report)
    else:
        console().print(tables(rows, singles))


def _report(device: str, rows: list[Result], singles: list[Single]) -> dict[str, Any]:
    return {"device": _device(device), "rows": [x.to_json() for x in rows], "singles": [x.to_json() for x in singles]}


def _keep(report: dict[str, Any], out: Path | None) -> None:
    """Write the report, whole after every row: a run may be cut off."""
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "peers.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _device(device: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device == "cuda" else device
    return {"name": name, "torch": torch.__version__}


def tables(rows: list[Result], singles: list[Single]) -> Group:
    """Times with goals; then memory, errors, and why something is missing."""
    times = _table(
        "Medians in ms, bf16; ratio: the peer's time over ours", "", "ours", "peer", "ratio", "must", "aim", ""
    )
    more = _table(
        "Every side: ms forward and forward + backward; extra memory of training; errors against fp64, relative rms",
        "",
        "forward",
        "both",
        "MiB",
        "error",
        "gradients",
        "",
    )
    for row in rows:
        for what, words in WHAT.items():
            best, ratio, goal = row.best(what), row.ratio(what), row.goals[what]
            times.add_row(
                f"{row.name}, {words}\n  {row.shape}",
                _number(getattr(row.ours, what), ".3f"),
                f"{_number(getattr(best, what), '.3f')} {best.name}" if best else "-",
                _number(ratio, ".2f"),
                f"{goal.must:g}",
                f"{goal.aim:g}",
                verdict(ratio, goal.must, goal.aim),
            )
        for side in (row.ours, *row.peers, *row.beside):
            forms = {"forward": ".3f", "both": ".3f", "extra": ".0f", "error": ".1e", "gradient": ".1e"}
            numbers = (_number(getattr(side, what), form) for what, form in forms.items())
            more.add_row(f"{row.name}, {side.name}", *numbers, side.reason)
    for single in singles:
        value = None if single.value is None else -single.value if single.less else single.value
        sign = -1 if single.less else 1
        times.add_row(
            f"{single.name}, {single.what}\n  {single.shape}",
            _number(single.value, ".3g"),
            "",
            "",
            f"{single.goal.must:g}",
            f"{single.goal.aim:g}",
            verdict(value, sign * single.goal.must, sign * single.goal.aim),
        )
        if single.reason or single.details:
            details = ", ".join(f"{name} {x:.4g}" for name, x in single.details.items())
            more.add_row(single.name, "", "", "", "", "", single.reason or details)
    return Group(times, "", more)


def verdict(value: float | None, must: float, aim: float) -> str:
    """Whether a number reaches its goals; larger is better."""
    if value is None:
        return "not measured"
    return "aim" if value >= aim else "must" if value >= must else "missed"


def _table(title: str, *columns: str) -> Table:
    found = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    found.add_column("")
    for column in columns:
        found.add_column(column, justify="right")
    found.add_column("")
    return found


def _number(x: float | None, form: str) -> str:
    return "-" if x is None else format(x, form)
