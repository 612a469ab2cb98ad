"""The functions of the package: `compile` and `library`."""

from __future__ import annotations

import os
from functools import cache
from typing import overload

from sma_compiler.call_errors import UnknownLibraryOp
from sma_compiler.driver import compile_once
from sma_compiler.driver_errors import NoSuchFile
from sma_compiler.runtime.op import CompiledOp
from sma_compiler.source import Source
from sma_compiler.syntax.layout import MAX_BYTES
from sma_compiler.syntax.locate import library_names, library_source


def compile(text_or_path: str | os.PathLike[str], name: str | None = None) -> CompiledOp:
    """Compile a spec.

    Args:
        text_or_path: the text of a spec, or the path of a `.sma` file. A string is a path when it is one line that
            ends with `.sma`.
        name: which op, where the spec holds several.

    Raises:
        SpecError: with every mistake of the spec: file, line, column, and what to write instead; or the spec has
            several ops and no name picks one; or the file cannot be read.
    """
    return compile_once(read_spec(text_or_path), name)


@overload
def library() -> tuple[str, ...]: ...
@overload
def library(name: str) -> CompiledOp: ...
def library(name: str | None = None) -> tuple[str, ...] | CompiledOp:
    """A spec that ships with the compiler, compiled (once: the same op every time); without a name, all names.

    Raises:
        CallError: the library has no such name.
    """
    if name is None:
        return library_names()
    return _library_op(name)


@cache
def _library_op(name: str) -> CompiledOp:
    if name not in library_names():
        raise UnknownLibraryOp(name, library_names())
    return compile_once(library_source(name))


def read_spec(text_or_path: str | os.PathLike[str]) -> Source:
    """The spec that is given by its text or the path of its file. NoSuchFile where that cannot be read."""
    if isinstance(text_or_path, str) and not _is_path(text_or_path):
        return Source(text_or_path)
    path = os.fspath(text_or_path)
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)  # a longer file is refused by its length, never read whole
    except OSError as error:
        raise NoSuchFile(path, error.strerror or str(error)) from None
    try:
        return Source(content.decode("utf-8", "strict" if len(content) <= MAX_BYTES else "replace"), path)
    except UnicodeDecodeError as error:
        raise NoSuchFile(path, f"not UTF-8 text (byte {error.start})") from None


def _is_path(text: str) -> bool:
    return "\n" not in text and text.strip().endswith(".sma")
