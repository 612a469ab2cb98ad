"""`sma verify`: every legal plan against the fp64 reference, outputs and gradients."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
import typer
from rich.table import Table

from sma_compiler.cli.common import (
    File,
    Json,
    OpName,
    Shape,
    console,
    find_all,
    find_dtype,
    parse_shape,
    plans_of,
    print_json,
    progress,
)
from sma_compiler.runtime.kernels import has_triton, interpreted
from sma_compiler.runtime.op import CompiledOp
from sma_compiler.verify.cases import make_case
from sma_compiler.verify.check import check_plan, compare_backends
from sma_compiler.verify.contract import Check, Report
from sma_compiler.verify.errors import SEEDS
from sma_compiler.verify.samples import default_sizes

app = typer.Typer()

SIZES = {"batch": 2, "time": 200, "head": 2, "key": 16, "value": 16}
"""What `--shape` changes: several blocks of 64 positions and a ragged last one."""
QUICK_TIME = 65


@app.callback()
def _verify() -> None:
    """The commands of this module."""


@app.command()
def verify(
    file: File,
    op_name: OpName = None,
    shape: Shape = None,
    dtypes: Annotated[
        list[str] | None, typer.Option("--dtype", help="fp32, bf16, fp16 or fp64; may be repeated. All but fp64.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Short sequences, and fp32 alone by default.")] = False,
    as_json: Json = False,
) -> None:
    """Compare every legal plan with the fp64 reference, outputs and gradients; on a GPU its Triton kernels, too."""
    chosen = dtypes or (["fp32"] if quick else ["fp32", "bf16", "fp16"])
    kinds = [find_dtype(name) for name in chosen]
    given = {**SIZES, **({"time": QUICK_TIME} if quick else {}), **parse_shape(shape)}
    ops = find_all(file, op_name)
    steps = sum(1 + len(plans_of(op)) + len(kernels(op)) for op in ops)
    with progress("verifying", steps * len(chosen)) as (bar, task):
        report = Report(())
        for op in ops:
            for dtype in kinds:
                report += verify_op(op, given, dtype, lambda: bar.advance(task))
    if as_json:
        print_json(json.loads(report.to_json()))
    else:
        console().print(table(report.checks))
        typer.echo(_verdict(report))
    if not report.ok:
        raise typer.Exit(1)


def verify_op(
    op: CompiledOp, sizes: dict[str, int], dtype: torch.dtype, tick: Callable[[], None] = lambda: None
) -> Report:
    """Every legal plan of an op on every backend at one size and dtype, `SEEDS` draws pooled; ticks once for the
    reference and once a plan."""
    full = default_sizes(op.ir, **sizes)
    cases = [make_case(op.ir, full, dtype, seed) for seed in range(SEEDS)]
    tick()
    report = Report(())
    for plan in plans_of(op):
        report += check_plan(cases, lambda name, arguments: op(**arguments, plan=name, backend="torch"), plan)
        tick()
    fitting = kernels(op) if dtype != torch.float64 else ()
    on_gpu = [make_case(op.ir, full, dtype, seed, _device()) for seed in range(SEEDS)] if fitting else []
    for name in fitting:
        report += compare_backends(
            on_gpu,
            lambda plan, arguments: op(**arguments, plan=plan, backend="triton"),
            lambda plan, arguments: op(**arguments, plan=plan, backend="torch"),
            name,
        )
        tick()
    return report


def kernels(op: CompiledOp) -> tuple[str, ...]:
    """The plans of an op that have Triton kernels, where something runs them."""
    if not has_triton() or not (torch.cuda.is_available() or interpreted()):
        return ()
    return tuple(plan.name for plan in op.plans if not op.program.kernels.refusal(plan.name, {}))


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def table(checks: Sequence[Check]) -> Table:
    """The worst check of each output and gradient, its error relative to the exact values' root mean square."""
    worst: dict[tuple[str, str, str, str, str], Check] = {}
    for check in checks:
        key = (check.op, check.dtype, check.plan, check.backend, check.what)
        if key not in worst or check.ratio > worst[key].ratio:
            worst[key] = check
    found = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("op", "dtype", "plan", "backend", "what"):
        found.add_column(name)
    for name in ("error", "bound", "error / bound"):
        found.add_column(name, justify="right")
    found.add_column("worst at")
    for title, check in worst.items():
        scale = check.scale or 1.0
        style = "" if check.ok else "bold red"
        figures = (f"{check.measured / scale:.2e}", f"{check.bound / scale:.2e}", f"{check.ratio:.2f}")
        found.add_row(*title, *figures, check.where + ("" if check.ok else "  FAIL"), style=style)
    return found


def _verdict(report: Report) -> str:
    failed = len(report.failures)
    if failed:
        return f"{failed} of {len(report.checks)} checks failed"
    return f"all {len(report.checks)} checks are within their bounds"
