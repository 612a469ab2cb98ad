"""Finds what ships beside the code: the grammar, the prelude and the library's specs."""

from __future__ import annotations

import importlib.resources
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sma_compiler.source import Source

if TYPE_CHECKING:
    from importlib.abc import Traversable


@cache
def grammar_dir() -> Traversable:
    """The `grammar` folder: inside the package where it is installed, beside it in a checkout."""
    packaged = importlib.resources.files("sma_compiler") / "grammar"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / "grammar"


def grammar_text() -> str:
    """The text of `sma.lark`."""
    return (grammar_dir() / "sma.lark").read_text(encoding="utf-8")


def prelude_source() -> Source:
    """The definitions that every spec starts with."""
    return Source((grammar_dir() / "prelude.sma").read_text(encoding="utf-8"), "prelude.sma")


@cache
def library_names() -> tuple[str, ...]:
    """The specs that ship, in alphabetical order."""
    entries = (grammar_dir() / "library").iterdir()
    return tuple(sorted(entry.name.removesuffix(".sma") for entry in entries if entry.name.endswith(".sma")))


def library_source(name: str) -> Source:
    """The spec that ships under this name. KeyError when there is none."""
    if name not in library_names():
        raise KeyError(name)
    file = f"{name}.sma"
    return Source((grammar_dir() / "library" / file).read_text(encoding="utf-8"), file)
