"""`sma bench`: a spec's plans side by side, other implementations beside the op, or the standing measurements."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Group
from rich.table import Table

from sma_compiler.bench.plans import PlanTime, time_plans
from sma_compiler.bench.suite import Suite, run_suite, suite_steps
from sma_compiler.cli.bench_auto import run_auto
from sma_compiler.cli.bench_peers import run_peers
from sma_compiler.cli.common import (
    DTYPES,
    Json,
    Numbers,
    OpName,
    Shape,
    console,
    find_dtype,
    find_one,
    parse_numbers,
    parse_shape,
    plans_of,
    print_json,
    progress,
)
from sma_compiler.errors import SmaError

app = typer.Typer()

SIZES = {"batch": 1, "time": 1024, "head": 4, "key": 64, "value": 64}
"""What `--shape` changes."""


class NothingToMeasure(SmaError):
    """Neither a spec nor a suite was named."""

    def __init__(self) -> None:
        super().__init__(
            "name a FILE to time its plans, or --suite cpu or --suite auto for the standing measurements, or --peers"
        )


class UnknownSuite(SmaError):
    """`--suite` names none."""

    def __init__(self, name: str) -> None:
        super().__init__(f"--suite {name}: there are the suites cpu and auto")


@app.callback()
def _bench() -> None:
    """The commands of this module."""


@app.command()
def bench(
    file: Annotated[str | None, typer.Argument(metavar="[FILE]", help="A .sma file or a library name.")] = None,
    op_name: OpName = None,
    shape: Shape = None,
    numbers: Numbers = None,
    plans: Annotated[list[str] | None, typer.Option("--plan", help="A plan to time; may be repeated. All.")] = None,
    dtype: Annotated[str, typer.Option(help=f"One of {', '.join(DTYPES)}.")] = "fp32",
    repeats: Annotated[int, typer.Option(min=1, help="Rounds that the medians are taken of.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads torch may use; as many as it likes.")] = None,
    suite: Annotated[str | None, typer.Option(help="`cpu`: speed, memory, import. `auto`: auto beside tuning.")] = None,
    peers: Annotated[
        bool,
        typer.Option(
            "--peers", help="On a GPU, beside mamba_ssm and fla where installed; with --suite auto at its shapes."
        ),
    ] = False,
    rows: Annotated[
        list[str] | None, typer.Option(help="Of --peers and --suite auto: a row; may be repeated. All.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Of --peers a folder for the numbers, of --suite auto their file.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Of --suite auto: then no further row is begun.")] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Of --suite auto: tell what its file holds, or with --peers of them.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Time a spec's plans side by side, or run the standing measurements."""
    if threads is not None:
        torch.set_num_threads(threads)
    if peers and suite is None:
        run_peers(rows, out, as_json)
        return
    if suite == "auto":
        if not run_auto(rows, out, seconds, as_json, report=report, peers=peers):
            raise typer.Exit(1)
        return
    if suite is not None:
        _suite(suite, repeats, as_json)
        return
    if file is None:
        raise NothingToMeasure
    op = find_one(file, op_name)
    names = plans or plans_of(op)
    for name in names:
        op.program.check_plan(name)
    sizes = {**SIZES, **parse_shape(shape)}
    given = parse_numbers(op.ir, numbers)
    with progress(f"timing {op.name}", 2 * (repeats + 1) * len(names)) as (bar, task):
        found = time_plans(op, names, sizes, given, find_dtype(dtype), repeats, lambda: bar.advance(task))
    if as_json:
        table = {"op": op.name, "sizes": sizes, "dtype": dtype, "threads": torch.get_num_threads()}
        print_json({**table, "plans": [asdict(row) for row in found]})
    else:
        console().print(_plans_table(f"{op.name}, {_words(sizes)}, {dtype}", found))


def _words(sizes: dict[str, int]) -> str:
    letters = {"batch": "B", "time": "T", "head": "H", "key": "K", "value": "V", "group": "G"}
    return " ".join(f"{letters.get(axis, axis)}={size}" for axis, size in sizes.items())


def _plain(title: str, *columns: str) -> Table:
    found = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for number, column in enumerate(columns):
        found.add_column(column, justify="right" if number else "left")
    return found


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.4g} ms"


def _plans_table(title: str, rows: tuple[PlanTime, ...]) -> Table:
    """Medians, and how many times the fastest plan each takes."""
    found = _plain(title, "plan", "forward", "× best", "forward + backward", "× best")
    best = min(row.forward for row in rows), min(row.both for row in rows)
    for row in rows:
        forward, both = f"{row.forward / best[0]:.2f}", f"{row.both / best[1]:.2f}"
        found.add_row(row.plan, _milliseconds(row.forward), forward, _milliseconds(row.both), both)
    return found


def _suite(name: str, repeats: int, as_json: bool) -> None:
    if name != "cpu":
        raise UnknownSuite(name)
    with progress("measuring", suite_steps(repeats)) as (bar, task):
        found = run_suite(repeats, lambda what: bar.update(task, advance=1, description=what))
    if as_json:
        print_json(found.to_json())
    else:
        console().print(_suite_tables(found))


def _suite_tables(found: Suite) -> Group:
    speed = _plain(
        f"Mamba-2 layer, B1 T4096 H8 K64 V64 fp32, {found.threads} threads",
        "",
        "chunked plan",
        "einsum program",
        "einsum / chunked",
    )
    for row in found.speed:
        speed.add_row(row.what, _milliseconds(row.chunked), _milliseconds(row.einsum), f"{row.ratio:.2f}")
    memory = _plain("Peak memory of forward + backward, same layer", "T", "chunked plan", "einsum program")
    for part in found.memory:
        memory.add_row(str(part.length), f"{part.chunked:.0f} MiB", f"{part.einsum:.0f} MiB")
    facts = _plain("From text to facts, warm", "spec", "median")
    for spec in found.facts:
        facts.add_row(spec.spec, _milliseconds(spec.seconds))
    imported = f"import sma_compiler: {found.import_seconds:.3f} s beyond import torch, "
    imported += f"{found.loaded_seconds:.3f} s with the compiler, which its first use loads"
    return Group(speed, "", memory, "", imported, "", facts)
