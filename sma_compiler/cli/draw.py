"""`sma draw`: a picture of a spec's masks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sma_compiler.cli.common import File, Numbers, OpName, Shape, lower_one, parse_numbers, parse_shape, progress
from sma_compiler.draw.gather import LENGTH, gather
from sma_compiler.draw.render import check_target, save

app = typer.Typer()


@app.callback()
def _draw() -> None:
    """The commands of this module."""


@app.command()
def draw(
    file: File,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write: a name ending in .png or .svg.")],
    op_name: OpName = None,
    shape: Shape = None,
    numbers: Numbers = None,
    seed: Annotated[int, typer.Option(help="Seed of the sample inputs.")] = 0,
) -> None:
    """Draw a spec's masks, their ranks and the tiles of its plans."""
    check_target(out)
    lowered = lower_one(file, op_name, "plans")
    op, plans = lowered.op, lowered.plans
    assert op is not None
    assert plans is not None
    sizes = {"time": LENGTH, **parse_shape(shape)}
    with progress("drawing", 2) as (bar, task):
        picture = gather(op, plans, sizes, parse_numbers(op, numbers), seed)
        bar.advance(task)
        save(picture, out)
        bar.advance(task)
    typer.echo(f"{out}: {len(picture.masks)} mask{'s' if len(picture.masks) != 1 else ''} of {op.name}")
