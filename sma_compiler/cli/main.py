"""`sma`: the command line. Each command's module is imported when the command is run, so `sma --help` is quick."""

from __future__ import annotations

from importlib import import_module
from typing import Any, TypeAlias

import typer
from typer.core import TyperGroup

from sma_compiler.errors import SmaError

COMMANDS = {
    "list": ("specs", "List the specs that ship with the compiler."),
    "check": ("specs", "Check spec files and report every mistake."),
    "explain": ("explain", "Say what a spec's masks are, why, and which plans are legal."),
    "inspect": ("explain", "Print one stage of the compiler for a spec."),
    "verify": (
        "verify",
        "Compare every legal plan with the fp64 reference, outputs and gradients; on a GPU its Triton kernels, too.",
    ),
    "draw": ("draw", "Draw a spec's masks, their ranks and the tiles of its plans."),
    "bench": ("bench", "Time a spec's plans side by side, or run the standing measurements."),
    "emit": ("kernels", "Write the kernel of a spec as a Triton file."),
    "tune": ("tune", "Measure the plans of a spec on this device and record the best."),
    "cache": ("cache", "List, show, export, import and clear tuning records."),
    "doctor": ("doctor", "Report versions, devices, compilers and the cache."),
}
"""The module that holds each command, and its line of help."""
Context: TypeAlias = Any
"""click's class in some releases of typer, typer's own in others."""
Command: TypeAlias = Any
"""Likewise."""


class LazyGroup(TyperGroup):
    """Knows each command by its line of help, and imports a command's module only to run it.

    Anything that the package refuses ends with its message on stderr and status 2, without a traceback.
    """

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Command, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None:
            loaded: typer.Typer = import_module(f"sma_compiler.cli.{COMMANDS[name][0]}").app
            group = typer.main.get_group(loaded)
            command = group.commands[name]
        return name, command, rest

    def invoke(self, ctx: Context) -> object:
        try:
            return super().invoke(ctx)
        except SmaError as error:
            typer.echo(f"{error}", err=True)
        except BrokenPipeError:
            raise
        except OSError as error:
            typer.echo(f"{error.filename or 'sma'}: {error.strerror or error}", err=True)
        raise typer.Exit(2)


app = typer.Typer(
    name="sma",
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A compiler for structured masked attention. FILE is a .sma file, or the name of a spec from `sma list`.",
    epilog="Exit status: 0 fine, 1 a check failed, 2 bad usage or a bad spec.",
)


@app.callback()
def _sma() -> None:
    """The callback of the whole program, which has no options of its own."""


def _unloaded() -> None:
    """Stands for a command until its module is imported."""


for _name, (_, _line) in COMMANDS.items():
    app.command(_name, help=_line)(_unloaded)
