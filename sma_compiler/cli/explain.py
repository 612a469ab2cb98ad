"""`sma explain` and `sma inspect`: what the compiler found out about a spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer

from sma_compiler.cli.common import (
    Device,
    File,
    Json,
    KernelDtype,
    Numbers,
    OpName,
    Shape,
    find_all,
    find_one,
    find_rows,
    lower_one,
    parse_numbers,
    parse_shape,
    print_json,
)
from sma_compiler.cli.stages import KERNEL_STAGES, STAGES, at_shape, facts_data, plans_data
from sma_compiler.emit.tile_counts import tile_counts
from sma_compiler.errors import SmaError
from sma_compiler.runtime.forecast import Case, outlook
from sma_compiler.runtime.op import CompiledOp
from sma_compiler.runtime.sizes import named_sizes
from sma_compiler.target.stages import kernel_stage
from sma_compiler.tune.roofline import needs

app = typer.Typer()


class UnknownStage(SmaError):
    """`--stage` names no stage of the compiler."""

    def __init__(self, stage: str) -> None:
        super().__init__(f"--stage {stage}: the stages are {', '.join((*STAGES, *KERNEL_STAGES))}")


@app.command()
def explain(
    file: File,
    op_name: OpName = None,
    shape: Shape = None,
    numbers: Numbers = None,
    device: Device = None,
    dtype: KernelDtype = "bfloat16",
    as_json: Json = False,
) -> None:
    """Say what a spec's masks are, why, and which plans are legal."""
    sizes = parse_shape(shape)
    reports = []
    for number, op in enumerate(find_all(file, op_name)):
        given = parse_numbers(op.ir, numbers)
        known = {**sizes, **{k: v for k, v in given.items() if isinstance(v, int)}}
        seen = [outlook(Case(op.program, sizes, given, dtype, *row)) for row in find_rows(device)] if sizes else []
        reports.append({**_data(op, known), "predicted": [one.data() for one in seen]})
        if not as_json:
            typer.echo(("\n" if number else "") + str(op.explain()))
            if sizes:
                typer.echo("\n" + _shape_text(reports[-1]["at_shape"], shape or ""))
                typer.echo("\n".join(map(str, seen)))
                tiles = tile_counts(op.ir, op.program.plans, known, "bfloat16", "sm_90")
                if tiles is not None:
                    typer.echo(f"  {tiles}")
    if as_json:
        print_json(reports)


def _data(op: CompiledOp, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Everything `explain` says, for programs."""
    return {
        "op": op.name,
        "doc": op.doc,
        "causal": op.causal,
        "facts": [facts_data(mask) for mask in op.facts.masks],
        "plans": plans_data(op.program.plans),
        "at_shape": at_shape(op.program.plans, sizes) if sizes else None,
        "tiles": tiles_data(op, sizes),
    }


def tiles_data(op: CompiledOp, sizes: Mapping[str, int]) -> dict[str, Any] | None:
    """How many tiles of its mask the quadratic kernel goes over, and the work that leaves."""
    found = tile_counts(op.ir, op.program.plans, sizes, "bfloat16", "sm_90")
    return None if found is None else asdict(found)


def _shape_text(found: list[dict[str, Any]], shape: str) -> str:
    lines = [f"at {shape}"]
    for entry in found:
        estimates = ", ".join(f"{name} {1e3 * value:.2g} ms" for name, value in entry["seconds"].items())
        lines.append(f"  {entry['contraction']}: auto takes {entry['auto']} by torch on a CPU, of {estimates}")
        ranks = f"rank {entry['lower_rank']} below the diagonal, {entry['upper_rank']} above"
        lines.append(f"    {ranks}; state {entry['state_size']} elements a batch row and head")
    return "\n".join(lines)


@app.command()
def inspect(
    file: File,
    stage: Annotated[str, typer.Option(help=f"One of {', '.join((*STAGES, *KERNEL_STAGES))}.")],
    op_name: OpName = None,
    target: Annotated[str, typer.Option(help="The GPU that kernel stages are for.")] = "sm_90",
    shape: Shape = None,
    plan: Annotated[str, typer.Option(help="The plan that kernel stages are of.")] = "auto",
    dtype: Annotated[str, typer.Option(help="The dtype of q, k and v in kernel stages.")] = "bfloat16",
    as_json: Json = False,
) -> None:
    """Print one stage of the compiler for a spec."""
    if stage in KERNEL_STAGES:
        op = find_one(file, op_name)
        sizes = named_sizes(op.name, parse_shape(shape))
        if stage == "resources":
            needed = needs(op.program, op.emitted(plan, sizes, dtype, target), sizes, dtype, target)
            print_json(needed.data()) if as_json else typer.echo(str(needed))
            return
        found = kernel_stage(op.ir, op.emitted(plan, sizes, dtype, target), stage, sizes, dtype, target)
        if as_json:
            print_json(found)
        else:
            typer.echo("\n".join(f"// {name}\n{text}" if name else text for name, text in found.items()))
        return
    if stage not in STAGES:
        raise UnknownStage(stage)
    shown = STAGES[stage]
    lowered = lower_one(file, op_name, shown.stop_after)
    if as_json:
        print_json(shown.data(lowered))
    else:
        typer.echo(shown.text(lowered))
