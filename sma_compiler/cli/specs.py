"""`sma list` and `sma check`: what ships, and whether a file is a good spec."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from sma_compiler.cli.common import Json, console, find_source, print_json
from sma_compiler.driver import mistakes_of, sound_ops
from sma_compiler.errors import SpecError
from sma_compiler.ir.check import check_file
from sma_compiler.ir.nodes import ParamDecl
from sma_compiler.plan.choose import plan
from sma_compiler.syntax.locate import library_names, library_source
from sma_compiler.syntax.parse import raise_all

app = typer.Typer()


@app.command("list")
def list_specs(as_json: Json = False) -> None:
    """List the specs that ship with the compiler."""
    rows = []
    for name in library_names():
        for op in check_file(library_source(name)):
            plans = [legal.name for legal in plan(op).legal]
            rows.append(
                {"name": name, "parameters": [_declaration(p) for p in op.params], "doc": op.doc, "plans": plans}
            )
    if as_json:
        print_json(rows)
        return
    table = Table("name", "what it is", "plans", box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for row in rows:
        table.add_row(str(row["name"]), " ".join(str(row["doc"]).split()), " ".join(row["plans"]))
    console().print(table)


@app.command()
def check(
    files: Annotated[list[str], typer.Argument(metavar="FILE…", help="Spec files, library names, or - for stdin.")],
    as_json: Json = False,
) -> None:
    """Check spec files and report every mistake."""
    results = [_check(file) for file in files]
    if as_json:
        print_json([{key: value for key, value in result.items() if key != "raised"} for result in results])
    for result in results:
        if result["raised"] is not None and not as_json:
            typer.echo(f"{result['raised']}", err=True)
        elif not as_json:
            typer.echo(f"{result['file']}: {', '.join(result['ops'])}: fine")
    if not all(result["ok"] for result in results):
        raise typer.Exit(2)


def _check(file: str) -> dict[str, Any]:
    """Whether a file compiles, its ops, and every mistake with its place."""
    found: dict[str, Any] = {"file": file, "ok": True, "ops": [], "errors": [], "raised": None}
    try:
        ops = sound_ops(find_source(file))
        found["ops"] = [op.name for op in ops]
        raise_all(mistakes_of(ops))
    except SpecError as error:
        found |= {"ok": False, "errors": [describe(mistake) for mistake in error.errors], "raised": error}
    return found


def describe(mistake: SpecError) -> dict[str, Any]:
    """A mistake for programs: its class, message, hint and place (1-based, the end exclusive)."""
    span = mistake.span
    place = {} if span is None else {name: getattr(span, name) for name in ("line", "column", "end_line", "end_column")}
    return {"kind": type(mistake).__name__, "message": mistake.message, "hint": mistake.hint, **place}


def _declaration(decl: ParamDecl) -> str:
    if decl.number:
        return f"{decl.name}: {decl.kind.name.lower()}"
    kind = "" if decl.kind.name == "REAL" else decl.kind.name.lower()
    return f"{decl.name}: {kind}[{', '.join(decl.dims)}]"
