"""`sma doctor`: what this machine has that the compiler uses."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import typer
from rich.table import Table

import sma_compiler as sma
from sma_compiler.cli.common import Json, console, print_json

app = typer.Typer()

PACKAGES = ("sma-compiler", "torch", "triton", "numpy", "lark", "sympy", "rich", "typer", "matplotlib")
COMPILERS = ("c++", "g++", "clang++", "nvcc", "ptxas")


@app.callback()
def _doctor() -> None:
    """The commands of this module."""


@app.command("doctor")
def doctor(as_json: Json = False) -> None:
    """Report versions, devices, compilers and the cache."""
    report: dict[str, dict[str, Any]] = {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "devices": _devices(),
        "compilers": {name: _compiler(name) for name in COMPILERS},
        "cache": _cache(),
    }
    if as_json:
        print_json(report)
        return
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    for section, entries in report.items():
        for number, (name, value) in enumerate(entries.items()):
            table.add_row(f"[bold]{section}[/]" if number == 0 else "", name, str(value or "not found"))
    console().print(table)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> dict[str, str]:
    found = {"cpu": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"}
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = (
            f"{device.name}, sm_{device.major}{device.minor}, {device.total_memory / 2**30:.0f} GiB"
        )
    if torch.backends.mps.is_available():
        found["mps"] = "Apple GPU"
    return found


def _compiler(name: str) -> str | None:
    """The path of a compiler and the first line of what it says of itself."""
    path = shutil.which(name)
    if path is None:
        return None
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    return f"{path}: {said.splitlines()[0]}" if said else path


def _cache() -> dict[str, str | int | bool]:
    folder = sma.cache_dir()
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    return {
        "folder": str(folder),
        "exists": folder.is_dir(),
        "writable": os.access(folder if folder.is_dir() else folder.parent, os.W_OK),
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
    }
