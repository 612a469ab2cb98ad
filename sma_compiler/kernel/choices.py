"""Numbers of configurations that were chosen in place of the defaults of `config`: data, that emission takes.

A role is a part of an emitted file that has a configuration: `forward`, `backward` (what its walks have in common),
a walk of gradients, or a kernel beside the walks. A plan together with choices is one line of text,

    chunked:forward.warps=8,dq.stages=2

which is how calls, graphs and records name what was tuned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from sma_compiler.kernel.config import Config, PairConfig, Recurrence

C = TypeVar("C", Config, PairConfig, Recurrence)

POWERS = {
    "chunk": (1, 256),
    "outer": (8, 512),
    "rows": (16, 256),
    "columns": (16, 256),
    "warps": (1, 16),
    "elements": (32, 65536),
}
"""Numbers that are powers of two, and between which."""
RANGES = {"stages": (1, 8), "programs": (0, 65536), "scores": (0, 1), "registers": (0, 255), "every": (1, 64)}
"""The other numbers, and between which."""
OWN = {"walk": ("warps", "stages", "rows", "columns")}
PAIRS = ("dq", "dkv")
"""Roles of the quadratic plan's gradients; their tiles have rows and columns."""
WALKS = ("again", "dq", "dk", "dv")
"""Roles that have a chunk and tiles in common, and of their own only what `OWN` says."""
ROLES = ("forward", "backward", *WALKS, "dkv", "states", "dstates", "recurrent", "step", "cached", "solve", "adjoint")
"""Every role; `states` is the walk that keeps those of every chunk, where heads share gradients (`dstates` the one from
the end), `cached` is what continues from a cache."""
FORWARD = ("forward", "recurrent", "step", "cached", "solve")
"""Those of kernels that make no gradients."""
FIXED = ("assembly",)
"""What follows from the target and is never chosen."""


class BadChoice(ValueError):
    """Choices that no configuration can have, or text that is none."""


@dataclass(frozen=True)
class Choices:
    """numbers: role, field, value; sorted, each field of a role once. None of them: the defaults."""

    numbers: tuple[tuple[str, str, int], ...] = ()

    def __post_init__(self) -> None:
        for role, field, value in self.numbers:
            _check(role, field, value)
        if list(self.numbers) != sorted(self.numbers) or len({n[:2] for n in self.numbers}) != len(self.numbers):
            raise BadChoice("choices are sorted, each once")

    def __bool__(self) -> bool:
        return bool(self.numbers)

    def __str__(self) -> str:
        return ",".join(f"{role}.{field}={value}" for role, field, value in self.numbers)

    @classmethod
    def of(cls, numbers: Mapping[str, Mapping[str, int]]) -> Choices:
        """By role and field.

        Raises:
            BadChoice: an unknown role or field, or a number that is not possible.
        """
        found = []
        for role, own in numbers.items():
            if not isinstance(own, Mapping):
                raise BadChoice(f"{role}: numbers by field are wanted, not {own!r}")
            found += [(role, field, int(value) if isinstance(value, bool) else value) for field, value in own.items()]
        return cls(tuple(sorted(found)))

    @classmethod
    def read(cls, text: str) -> Choices:
        """What `str` wrote. Raises BadChoice."""
        found = []
        for part in filter(None, text.split(",")):
            name, _, value = part.partition("=")
            role, _, field = name.partition(".")
            if not value.isdecimal() or len(value) > 9:
                raise BadChoice(f"{part!r} is not role.field=number")
            found.append((role, field, int(value)))
        return cls(tuple(sorted(found)))

    def data(self) -> dict[str, dict[str, int]]:
        """By role and field."""
        found: dict[str, dict[str, int]] = {}
        for role, field, value in self.numbers:
            found.setdefault(role, {})[field] = value
        return found

    def roles(self) -> frozenset[str]:
        """Those that something is chosen for."""
        return frozenset(role for role, _, _ in self.numbers)

    def only(self, *, backward: bool) -> Choices:
        """Those of the backward pass, or those of all else."""
        return Choices(tuple(n for n in self.numbers if (n[0] not in FORWARD) == backward))

    def __or__(self, other: Choices) -> Choices:
        """Both; where both choose a number, that of the other."""
        merged = {n[:2]: n[2] for n in (*self.numbers, *other.numbers)}
        return Choices(tuple(sorted((*name, value) for name, value in merged.items())))

    def apply(self, role: str, default: C) -> C:
        """The configuration of a role: the default with what was chosen."""
        chosen = {field: value for own, field, value in self.numbers if own == role}
        if not chosen:
            return default
        known = {field.name: field for field in fields(default)}
        given: dict[str, Any] = {name: value for name, value in chosen.items() if name in known}
        if "scores" in given:
            given["scores"] = bool(given["scores"])
        return replace(default, **given)


DEFAULT = Choices()
"""Nothing but the defaults."""


def _check(role: str, field: str, value: object) -> None:
    if role not in ROLES:
        raise BadChoice(f"{role!r} is none of {', '.join(ROLES)}")
    if role in WALKS and field not in OWN["walk"]:
        raise BadChoice(f"{role} has {', '.join(OWN['walk'])} of its own, not {field!r}")
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadChoice(f"{role}.{field} is an integer, not {value!r}")
    low, high = POWERS.get(field) or RANGES.get(field) or (1, 0)
    if low > high:
        raise BadChoice(f"{role} has no {field!r}")
    if not low <= value <= high or (field in POWERS and value & (value - 1)):
        kind = "a power of two " if field in POWERS else ""
        raise BadChoice(f"{role}.{field} is {kind}between {low} and {high}, not {value}")


def plan_text(plan: str, choices: Choices) -> str:
    """A plan and choices as one line."""
    return f"{plan}:{choices}" if choices else plan


def read_plan(text: str) -> tuple[str, Choices]:
    """What `plan_text` joined. Raises BadChoice."""
    plan, _, chosen = text.partition(":")
    return plan, Choices.read(chosen)
