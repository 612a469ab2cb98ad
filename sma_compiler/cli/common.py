"""What the commands share: finding specs, reading shapes, printing tables, JSON and progress."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sma_compiler.driver import Lowered, compile_all, compile_source, lower
from sma_compiler.driver_errors import SeveralOps
from sma_compiler.errors import SmaError, SpecError
from sma_compiler.interface import read_spec
from sma_compiler.ir.nodes import Kind, Op
from sma_compiler.plan import devices
from sma_compiler.plan.devices import ROWS, TARGETS
from sma_compiler.runtime.kernels import target_of
from sma_compiler.runtime.op import CompiledOp
from sma_compiler.runtime.program import row_of
from sma_compiler.source import Source
from sma_compiler.syntax.locate import library_names, library_source

File = Annotated[str, typer.Argument(metavar="FILE", help="A .sma file, the name of a library spec, or - for stdin.")]
OpName = Annotated[str | None, typer.Option("--op", metavar="NAME", help="One op of a file that holds several.")]
Shape = Annotated[
    str | None,
    typer.Option("--shape", metavar="B=1,T=4096,…", help="Sizes: B T H K V, G (head groups), mode, lag, level."),
]
Numbers = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=NUMBER", help="The value of an int or real parameter; may be repeated."),
]
Device = Annotated[
    str | None,
    typer.Option(help="Whose constants the cost model takes: cpu, h100 or gpu; the GPU here, else cpu and h100."),
]
KernelDtype = Annotated[str, typer.Option("--dtype", help="The dtype of q, k and v: bfloat16, float16 or float32.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

AXIS_OF_LETTER = {"B": "batch", "T": "time", "H": "head", "K": "key", "V": "value", "G": "group"}
"""The axis each letter of `--shape` stands for; axes may also be written by name."""


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
"""The names that `--dtype` takes."""


class UnknownDtype(SmaError):
    """`--dtype` names none that ops take."""

    def __init__(self, name: str) -> None:
        super().__init__(f"--dtype {name}: choose from {', '.join(DTYPES)}")


class UnknownDevice(SmaError):
    """`--device` names no constants of the cost model."""

    def __init__(self, name: str) -> None:
        super().__init__(f"--device {name}: choose from {', '.join(ROWS)}")


class NoSuchSpec(SpecError):
    """FILE is neither a file nor a library name."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        close = get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "`sma list` names the specs of the library"
        super().__init__(f"{name}: no such file, and no such spec in the library", None, hint)


class ChooseOp(SmaError):
    """A command that works on one op was given a file with several."""

    def __init__(self, error: SeveralOps) -> None:
        super().__init__(f"{error.message}\n  pick one: --op NAME")


class BadNumber(SmaError):
    """`--set` is not NAME=NUMBER for a number that the op takes."""

    def __init__(self, op: Op, text: str) -> None:
        takes = ", ".join(f"{decl.name}: {decl.kind.name.lower()}" for decl in op.params if decl.number)
        super().__init__(f"--set {text}: {op.name} takes {takes or 'no numbers'}")


class BadShape(SmaError):
    """`--shape` is not a list of AXIS=SIZE."""

    def __init__(self, text: str, part: str) -> None:
        super().__init__(f"--shape {text}: `{part}` is not AXIS=SIZE with a size of at least 1, as in B=1,T=4096,H=8")


def find_source(file: str) -> Source:
    """The spec that FILE names: a file, a spec of the library, or `-` for stdin. Raises NoSuchSpec, NoSuchFile."""
    if file == "-":
        return Source(sys.stdin.read(), "<stdin>")
    path = Path(file)
    if path.is_file():
        return read_spec(path)
    if file in library_names():
        return library_source(file)
    raise NoSuchSpec(file, library_names())


def find_all(file: str, name: str | None) -> tuple[CompiledOp, ...]:
    """Every op of FILE, or the one called `name`. Raises SpecError, NoSuchSpec."""
    source = find_source(file)
    return compile_all(source) if name is None else (compile_source(source, name),)


def find_one(file: str, name: str | None) -> CompiledOp:
    """The only op of FILE, or the one called `name`. Raises SpecError, NoSuchSpec, ChooseOp."""
    compiled = lower_one(file, name, "compiled").compiled
    assert compiled is not None
    return compiled


def lower_one(file: str, name: str | None, stop_after: str) -> Lowered:
    """One op of FILE up to a stage of the driver. Raises as `find_one`."""
    try:
        return lower(find_source(file), name, stop_after)
    except SeveralOps as error:
        raise ChooseOp(error) from error


def plans_of(op: CompiledOp) -> tuple[str, ...]:
    """The legal plans; "auto" alone where there is no contraction to have any."""
    return tuple(plan.name for plan in op.plans) or ("auto",)


def parse_shape(text: str | None) -> dict[str, int]:
    """Sizes by axis name from `B=1,T=4096`; empty for None. Raises BadShape."""
    found: dict[str, int] = {}
    for part in (text or "").replace(" ", "").split(","):
        if not part:
            continue
        letter, _, size = part.partition("=")
        axis = AXIS_OF_LETTER.get(letter, letter)
        if axis not in {*AXIS_OF_LETTER.values(), "mode", "lag", "level"} or not size.isdecimal() or int(size) < 1:
            raise BadShape(text or "", part)
        found[axis] = int(size)
    return found


def parse_numbers(op: Op, settings: list[str] | None) -> dict[str, int | float]:
    """Values of the op's int and real parameters from `NAME=NUMBER` settings. Raises BadNumber."""
    kinds = {decl.name: int if decl.kind is Kind.INT else float for decl in op.params if decl.number}
    found: dict[str, int | float] = {}
    for setting in settings or ():
        name, _, value = setting.partition("=")
        try:
            found[name] = kinds[name](value)
        except (KeyError, ValueError) as error:
            raise BadNumber(op, setting) from error
    return found


def find_dtype(name: str) -> torch.dtype:
    """The dtype that a command's `--dtype` names. Raises UnknownDtype."""
    if name not in DTYPES:
        raise UnknownDtype(name)
    return DTYPES[name]


def find_rows(name: str | None) -> list[tuple[devices.Device, str]]:
    """The constants that `--device` names, and what kernels are emitted for there; "" for nothing.

    None: those of the GPU here; where there is none, of a CPU and of an H100.
    """
    if name is not None:
        if name not in ROWS:
            raise UnknownDevice(name)
        return [(ROWS[name], TARGETS.get(name, ""))]
    if torch.cuda.is_available():
        place = torch.device("cuda")
        return [(row_of(place), target_of(place))]
    return [(ROWS[known], TARGETS.get(known, "")) for known in ("cpu", "h100")]


def console() -> Console:
    """stdout: colour only on a terminal, full lines when piped."""
    terminal = sys.stdout.isatty()
    return Console(width=None if terminal else 160, highlight=False, soft_wrap=not terminal)


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


@contextmanager
def progress(description: str, total: int | None) -> Iterator[tuple[Progress, TaskID]]:
    """A progress bar on stderr, shown on a terminal only and gone when done."""
    terminal = sys.stderr.isatty()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not terminal) as bar:
        yield bar, bar.add_task(description, total=total)
