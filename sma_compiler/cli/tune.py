"""`sma tune`: measure a spec's plans and configurations on this machine, and keep the best."""

from __future__ import annotations

from typing import Annotated

import typer

from sma_compiler.cli.common import (
    DTYPES,
    File,
    Json,
    Numbers,
    OpName,
    find_dtype,
    find_one,
    parse_numbers,
    parse_shape,
    print_json,
)
from sma_compiler.tune.entry import SECONDS, tune_all
from sma_compiler.tune.report import Tuning
from sma_compiler.tune.search import LIMIT

app = typer.Typer()


@app.callback()
def _tune() -> None:
    """The commands of this module."""


@app.command()
def tune(
    file: File,
    shapes: Annotated[
        list[str], typer.Option("--shape", metavar="B=1,T=4096,…", help="Sizes of the op's axes; may be repeated.")
    ],
    op_name: OpName = None,
    numbers: Numbers = None,
    dtype: Annotated[str, typer.Option(help=f"One of {', '.join(DTYPES)}.")] = "bf16",
    device: Annotated[str | None, typer.Option(help="cpu or cuda; the GPU where there is one.")] = None,
    forward: Annotated[bool, typer.Option("--forward", help="The forward pass alone, without gradients.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Configurations for each shape, at most.")] = LIMIT,
    seconds: Annotated[float, typer.Option(min=0.0, help="For each shape; then no other is begun.")] = SECONDS,
    as_json: Json = False,
) -> None:
    """Measure the plans of a spec on this device and record the best."""
    op = find_one(file, op_name)
    integers = {name: n for name, n in parse_numbers(op.ir, numbers).items() if isinstance(n, int)}
    wanted = [{**parse_shape(shape), **integers} for shape in shapes]
    found = tune_all(
        op.program,
        wanted,
        {},
        dtype=find_dtype(dtype),
        device=device,
        training=not forward,
        limit=limit,
        seconds=seconds,
    )
    if as_json:
        print_json([_data(one) for one in found])
    else:
        typer.echo("\n\n".join(map(str, found)))
    if any(one.forward is None for one in found):
        raise typer.Exit(1)


def _data(one: Tuning) -> dict[str, object]:
    """A table, for programs."""
    rows = [
        {
            "backend": row.candidate.backend,
            "plan": row.candidate.plan,
            "choices": row.candidate.choices.data(),
            "predicted": row.candidate.predicted,
            "forward": row.forward,
            "training": row.training,
            "error": row.error,
            "refused": row.refused,
        }
        for row in one.rows
    ]
    kept = {
        what: record.data() if record else None
        for what, record in (("forward", one.forward), ("training", one.training))
    }
    return {"setting": one.title, "seconds": one.seconds, "rows": rows, **kept}
