"""The canonical text of an op, one line a node, and its hash: equal exactly when two ops compute the same thing.

Names of locals, comments, layout and the op's own name leave no trace; parameter names and their order do.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields

from sma_compiler.ir.nodes import AXES, Expr, Op, postorder

VERSION = 1
"""Raised whenever the meaning of the text, or of a state, changes: states of older versions are then refused."""

_OMITTED = frozenset({"span", "kind", "axes", "positions"})  # implied by the operands, but for parameters


def canonical_text(op: Op) -> str:
    """The op as text: parameters, then every node once, operands before users; the last line is the result."""
    numbers: dict[Expr, str] = {}
    fresh: dict[str, str] = {}

    def axis(name: str) -> str:
        return name if name in AXES else fresh.setdefault(name, f"{name.split(chr(39))[0]}'{len(fresh) + 1}")

    def shown(name: str, value: object) -> str:
        if isinstance(value, Expr):
            return numbers[value]
        if isinstance(value, tuple):
            return " ".join(shown(name, item) for item in value)
        return axis(str(value)) if name in ("axis", "old", "new") else repr(value)

    lines = [f"sma {VERSION}"]
    for decl in op.params:
        what = "number" if decl.number else "tensor " + " ".join(decl.dims)
        lines.append(f"param {decl.name} {decl.kind.name} {what}")
    for node in postorder((op.result,)):
        numbers[node] = f"%{len(numbers)}"
        parts = [shown(item.name, getattr(node, item.name)) for item in fields(node) if item.name not in _OMITTED]
        lines.append(f"{numbers[node]} = {type(node).__name__} {' '.join(parts)}")
    return "\n".join(lines) + "\n"


def spec_hash(op: Op) -> str:
    """SHA-256 of the canonical text, in hexadecimal."""
    return hashlib.sha256(canonical_text(op).encode()).hexdigest()
