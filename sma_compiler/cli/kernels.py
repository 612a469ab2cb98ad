"""`sma emit`: a spec as a Triton file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sma_compiler.cli.common import File, OpName, Shape, find_one, parse_shape

app = typer.Typer()


@app.callback()
def _kernels() -> None:
    """The commands of this module."""


@app.command()
def emit(
    file: File,
    op_name: OpName = None,
    plan: Annotated[str, typer.Option(help="The plan to emit.")] = "auto",
    shape: Shape = None,
    dtype: Annotated[str, typer.Option(help="The dtype of q, k and v.")] = "bfloat16",
    target: Annotated[str, typer.Option(help="The GPU: sm_80, sm_90 or gfx942.")] = "sm_90",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to write; stdout when left out.")] = None,
) -> None:
    """Write the kernel of a spec as a Triton file."""
    op = find_one(file, op_name)
    text = op.source(plan=plan, shape=parse_shape(shape), dtype=dtype, target=target)
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")
