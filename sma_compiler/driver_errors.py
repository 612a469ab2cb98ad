"""Mistakes in asking for a spec: one class each."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from sma_compiler.errors import SpecError
from sma_compiler.ir.nodes import Op


class SeveralOps(SpecError):
    """A file of several ops, and no name to pick one."""

    def __init__(self, ops: Sequence[Op]) -> None:
        names = ", ".join(op.name for op in ops)
        super().__init__(f"the spec has several ops: {names}", ops[1].span, f"pick one: name={ops[0].name!r}")


class NoSuchOp(SpecError):
    """A name that no op of the file has."""

    def __init__(self, name: object, ops: Sequence[Op]) -> None:
        names = [op.name for op in ops]
        near = difflib.get_close_matches(name, names, n=1) if isinstance(name, str) else []
        hint = f"did you mean {near[0]!r}?" if near else ""
        super().__init__(f"the spec has no op {name!r}; its ops: {', '.join(names)}", ops[0].span, hint)


class NoSuchFile(SpecError):
    """A path that cannot be read as a spec."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}", None, "pass a path to a .sma file, or the text of a spec")
