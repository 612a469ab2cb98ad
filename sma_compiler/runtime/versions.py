"""What kernels and measurements depend on besides an op: the code that makes them, and Triton."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import TYPE_CHECKING

from sma_compiler.syntax.locate import grammar_dir

if TYPE_CHECKING:
    from importlib.abc import Traversable

MAKERS = ("ir", "mask", "facts", "plan", "kernel", "emit", "torch_plans")
"""The folders whose modules make plans and kernels: what was measured with others says nothing."""


@cache
def generator() -> str:
    """A hash of the modules that make plans and kernels."""
    return _hash(*(files("sma_compiler").joinpath(folder) for folder in MAKERS))


@cache
def compiler() -> str:
    """A hash of all that a spec is compiled by: these modules, those that read its text, and the grammar."""
    return _hash(files("sma_compiler"), files("sma_compiler").joinpath("syntax"), grammar_dir()) + generator()


def _hash(*folders: Traversable) -> str:
    digest = hashlib.sha256()
    for folder in folders:
        for file in sorted(folder.iterdir(), key=lambda found: found.name):
            if file.name.endswith((".py", ".lark", ".sma")):
                digest.update(f"{folder.name}/{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


@cache
def triton_version() -> str:
    """Of the package, or "none"."""
    try:
        return version("triton")
    except PackageNotFoundError:
        return "none"
