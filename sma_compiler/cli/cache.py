"""`sma cache`: the tuning records on this machine, and records that travel."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from sma_compiler.cli.common import Json, console, print_json
from sma_compiler.errors import SmaError
from sma_compiler.runtime import records
from sma_compiler.runtime.records import BadRecord, Record

app = typer.Typer()
cache = typer.Typer(no_args_is_help=True, help="List, show, export, import and clear tuning records.")
app.add_typer(cache, name="cache")

OpOption = Annotated[str | None, typer.Option("--op", metavar="NAME", help="Only records of this op.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="Only records whose device has this in its name.")]

WRAPPED = ("sizes", "device", "plan", "date")
"""Columns that give way where a terminal is narrow: the names of records stay whole."""


class NoSuchRecord(SmaError):
    """A record's name that no record has, or several."""

    def __init__(self, name: str, count: int) -> None:
        what = "there is no such record" if count == 0 else f"{count} records begin so"
        super().__init__(f"{name}: {what}; `sma cache list` names them")


class UnreadableRecords(SmaError):
    """A file to be imported that holds no records."""

    def __init__(self, name: str, why: object) -> None:
        super().__init__(f"{name}: {why}; nothing was imported")


class SayWhich(SmaError):
    """`sma cache clear` without saying what."""

    def __init__(self) -> None:
        super().__init__("sma cache clear: say which records: --op NAME, --device NAME, or --all")


def _wanted(op: str | None, device: str | None) -> Callable[[Record], bool]:
    return lambda record: (op is None or record.op == op) and (device is None or device in record.key.device)


@cache.command("list")
def list_records(op: OpOption = None, device: DeviceOption = None, as_json: Json = False) -> None:
    """List the records, the newest first."""
    found = list(filter(_wanted(op, device), records.every()))
    if as_json:
        print_json([{"id": record.id, **record.data()} for record in found])
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("record", "op", "sizes", "dtype", "device", "for", "backend", "plan", "time", "date", ""):
        table.add_column(name, no_wrap=name not in WRAPPED, overflow="fold")
    for record in found:
        seconds = record.forward + (record.backward or 0.0)
        table.add_row(
            record.id,
            record.op,
            " ".join(f"{axis}={n}" for axis, n in record.sizes.items()),
            record.key.dtype,
            record.key.device,
            "training" if record.key.training else "forward",
            record.backend,
            record.pick,
            f"{1e3 * seconds:.4g} ms",
            record.date,
            "" if record.verified else "not verified here",
        )
    console().print(table if found else f"no records in {records.records_file()}")


@cache.command()
def show(
    name: Annotated[str, typer.Argument(metavar="RECORD", help="The name of a record, or how it begins.")],
    as_json: Json = False,
) -> None:
    """Show everything that a record says."""
    found = [record for record in records.every() if record.id.startswith(name)]
    if len(found) != 1:
        raise NoSuchRecord(name, len(found))
    data = {"id": found[0].id, **found[0].data()}
    if as_json:
        print_json(data)
        return
    flat = {**{f"key.{part}": value for part, value in data.pop("key").items()}, **data}
    width = max(map(len, flat))
    typer.echo("\n".join(f"{part.ljust(width)}  {value}" for part, value in flat.items()))


@cache.command()
def export(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to write; stdout when left out.")] = None,
    op: OpOption = None,
    device: DeviceOption = None,
) -> None:
    """Write records as JSON, to be imported on another machine."""
    text = records.export_text(list(filter(_wanted(op, device), records.every())))
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")


@cache.command("import")
def import_records(
    file: Annotated[str, typer.Argument(metavar="FILE", help="What `sma cache export` wrote; - for stdin.")],
) -> None:
    """Take records over; each is verified here when it is first used."""
    text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8", errors="replace")
    try:
        count = records.import_text(text)
    except BadRecord as error:
        raise UnreadableRecords(file, error) from None
    typer.echo(f"{count} record{'s' if count != 1 else ''} imported, to be verified on first use")


@cache.command()
def clear(
    op: OpOption = None,
    device: DeviceOption = None,
    everything: Annotated[bool, typer.Option("--all", help="All records.")] = False,
) -> None:
    """Forget records."""
    if op is None and device is None and not everything:
        raise SayWhich
    count = records.clear(_wanted(op, device))
    typer.echo(f"{count} record{'s' if count != 1 else ''} forgotten")
