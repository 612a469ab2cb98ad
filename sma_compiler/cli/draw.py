"""`sma draw`: a picture of a spec's masks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sma_compiler.cli.common import (
    Device,
    File,
    KernelDtype,
    Numbers,
    OpName,
    Shape,
    find_one,
    find_rows,
    lower_one,
    parse_numbers,
    parse_shape,
    progress,
)
from sma_compiler.draw.crossover import Curves, save_curves
from sma_compiler.draw.gather import LENGTH, gather
from sma_compiler.draw.render import check_target, save
from sma_compiler.errors import SmaError
from sma_compiler.runtime.forecast import SHORTEST, Case, forecast, outlook

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
    crossover: Annotated[
        bool, typer.Option("--crossover", help="Predicted times of the plans over the length instead.")
    ] = False,
    device: Device = None,
    dtype: KernelDtype = "bfloat16",
) -> None:
    """Draw a spec's masks, their ranks and the tiles of its plans."""
    check_target(out)
    if crossover:
        row, target = find_rows(device)[-1]
        found = find_one(file, op_name)
        if not found.plans:
            raise NothingToDraw(found.name)
        case = Case(found.program, parse_shape(shape), parse_numbers(found.ir, numbers), dtype, row, target)
        save_curves(_curves(found.name, case), out)
        typer.echo(f"{out}: predicted times of {found.name} on {row.name}")
        return
    lowered = lower_one(file, op_name, "plans")
    op, plans = lowered.op, lowered.plans
    assert op is not None
    assert plans is not None
    if not plans.choices:
        raise NothingToDraw(op.name)
    sizes = {"time": LENGTH, **parse_shape(shape)}
    with progress("drawing", 2) as (bar, task):
        picture = gather(op, plans, sizes, parse_numbers(op, numbers), seed)
        bar.advance(task)
        save(picture, out)
        bar.advance(task)
    typer.echo(f"{out}: {len(picture.masks)} mask{'s' if len(picture.masks) != 1 else ''} of {op.name}")


class NothingToDraw(SmaError):
    """An op that has no contraction, so no mask and no plans."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} has no contraction: there is no mask and no plan to draw")


LENGTHS = tuple(SHORTEST * 2**n for n in range(14))
"""At which times are drawn."""


def _curves(name: str, case: Case) -> Curves:
    """Predicted times of every plan over the length."""
    seen = outlook(case)
    points: dict[str, list[float]] = {f"{one.backend} {one.plan}": [] for one in seen.plans}
    for time in LENGTHS:
        for one in forecast(seen.case.at_length(time)):
            points[f"{one.backend} {one.plan}"].append(one.forward)
    shown = " ".join(f"{axis}={n}" for axis, n in seen.case.sizes.items() if axis not in ("time", "lag"))
    wins = tuple((one.time, f"{one.backend} {one.plan}") for one in seen.crossovers)
    curves = {plan: tuple(found) for plan, found in points.items()}
    return Curves(f"{name}, {shown}, {case.dtype}, {case.device.name}: the cost model", LENGTHS, curves, wins)
