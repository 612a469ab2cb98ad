"""Sizes given by name: axes in full, or by the letters that shapes are written with."""

from __future__ import annotations

from collections.abc import Mapping

from sma_compiler.call_errors import UnknownSize, WrongSize
from sma_compiler.ir.nodes import AXES

LETTERS = {"B": "batch", "T": "time", "H": "head", "K": "key", "V": "value", "G": "group"}
"""The axis of each letter; `group` is the number of heads of grouped keys and values."""


def named_sizes(op: str, given: Mapping[str, int], numbers: tuple[str, ...] = ()) -> dict[str, int]:
    """Sizes by axis name, from axis names, letters, `G`, and the names of an op's number parameters.

    Axes that the op lacks are fine; numbers may be of any sign.

    Raises:
        UnknownSize: a name that is none of these.
        WrongSize: a size that is no integer of at least 1.
    """
    known = (*AXES, *LETTERS, *numbers)
    found: dict[str, int] = {}
    for name, size in given.items():
        if name not in (*known, "group"):
            raise UnknownSize(op, name, known)
        if name not in numbers and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise WrongSize(op, name, size)
        found[name if name in numbers else LETTERS.get(name, name)] = size
    return found
