"""An emitted file: the header (spec, facts, plan, hash), the leaf helpers it needs, kernels and launchers."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

from sma_compiler.emit.triton import function
from sma_compiler.kernel.nodes import Function

LIBRARIES = (
    "library.py",
    "library_channels.py",
    "library_stabilised.py",
    "library_host.py",
    "library_pairs.py",
    "library_solve.py",
)
"""The files of leaf helpers."""


@cache
def library() -> dict[str, str]:
    """The source of every leaf helper by name; read as text, so that no Triton is needed here."""
    found: dict[str, str] = {}
    for name in LIBRARIES:
        text = files("sma_compiler.kernel").joinpath(name).read_text(encoding="utf-8")
        lines = text.splitlines()
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef):
                first = min((item.lineno for item in node.decorator_list), default=node.lineno)
                found[node.name] = "\n".join(lines[first - 1 : node.end_lineno])
    return found


@cache
def helper_uses() -> dict[str, tuple[str, ...]]:
    """The helpers that each helper calls."""
    known = library()
    found: dict[str, tuple[str, ...]] = {}
    for name, text in known.items():
        called = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
        found[name] = tuple(other for other in known if other in called and other != name)
    return found


def with_uses(helpers: Iterable[str]) -> tuple[str, ...]:
    """Helpers and those that they call, in the order of the library."""
    needed: set[str] = set()
    stack = list(helpers)
    while stack:
        name = stack.pop()
        if name not in needed:
            needed.add(name)
            stack.extend(helper_uses()[name])
    return tuple(name for name in library() if name in needed)


def module(header: Iterable[str], helpers: Iterable[str], functions: Iterable[Function]) -> str:
    """The text of a file; the header becomes comments."""
    parts = [library()[name] for name in with_uses(helpers)]
    parts += ["\n".join(function(made)) for made in functions]
    top = [comment(line) for line in header]
    lines = [*top, "", "import torch", "import triton", "import triton.language as tl"]
    return "\n".join(lines) + "\n" + "".join(f"\n\n{part}\n" for part in parts)


def comment(line: str) -> str:
    """A line of any text as a comment: nothing in it ends the line."""
    safe = "".join(sign if sign.isprintable() else "?" for sign in line)
    return f"# {safe}".rstrip()
