"""An op's picture as data: mask values from the reference, ranks and plans from the compiler."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from sma_compiler.draw.blocks import partition
from sma_compiler.draw.picture import MaskView, Picture, PlanView
from sma_compiler.draw.tiles import within_band
from sma_compiler.errors import SmaError
from sma_compiler.facts.facts import MaskFacts
from sma_compiler.facts.sizes import Count, SizeExpr, to_sympy
from sma_compiler.ir.nodes import Attend, Expr, Op
from sma_compiler.plan.choose import Choice, Plans
from sma_compiler.reference import Argument, mask_matrix, mask_support
from sma_compiler.verify.samples import default_sizes, samples

LENGTH = 64
"""Positions of a picture unless a shape says otherwise: single entries can still be seen."""

SHORTEST, LONGEST = 8, 512
"""The lengths that can be drawn: a tile is at least one position, and single entries stay visible."""

SHOWN_LINES = 9
"""Lines of the spec above the panels; longer specs end in an ellipsis."""

_COSTS = {
    "quadratic": "T²(K + V)",
    "recurrent": "T·K·V, in order",
    "chunked": "T(C(K + V) + KV)",
    "toeplitz": "T log T",
    "hierarchical": "T log T",
    "global": "T·K·V",
}


class BadPictureLength(SmaError):
    """A picture of too few or too many positions."""

    def __init__(self, length: int) -> None:
        super().__init__(f"T = {length}: a picture shows from {SHORTEST} to {LONGEST} positions")


def gather(op: Op, plans: Plans, sizes: Mapping[str, int], numbers: Mapping[str, float], seed: int = 0) -> Picture:
    """The picture of an op on sample inputs: its first batch row, head and channel. Raises BadPictureLength.

    sizes: by axis name, on top of T = `LENGTH` and one batch row and head. numbers: values of the op's int and real
    parameters by name; an int that is not given is a fifth of T.
    """
    length = sizes.get("time", LENGTH)
    if not SHORTEST <= length <= LONGEST:
        raise BadPictureLength(length)
    full = default_sizes(op, **{"time": LENGTH, "batch": 1, "head": 1, **sizes})
    arguments = samples(op, full, torch.float64, seed)
    for decl in op.params:
        if decl.number and (decl.name in numbers or decl.kind.name == "INT"):
            arguments[decl.name] = numbers.get(decl.name, max(1, full["time"] // 5))
    shown = {decl.name: arguments[decl.name] for decl in op.params if decl.number}
    note = ", ".join([f"T = {full['time']}", *(f"{name} = {value:.4g}" for name, value in shown.items())])
    masks: dict[Expr, list[Choice]] = {}
    for choice in plans.choices:
        masks.setdefault(choice.site.node.mask, []).append(choice)
    titles = _titles(plans.choices)
    views = tuple(_view(op, tuple(choices), titles, arguments, full) for choices in masks.values())
    return Picture(op.name, _equation(op.text), f"one head of a random sample, {note}", views)


def _equation(text: str) -> tuple[str, ...]:
    lines = [line.rstrip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return (*lines[: SHOWN_LINES - 1], "    …") if len(lines) > SHOWN_LINES else tuple(lines)


def _view(
    op: Op,
    choices: tuple[Choice, ...],
    titles: Mapping[str, str],
    arguments: Mapping[str, Argument],
    sizes: Mapping[str, int],
) -> MaskView:
    mask = choices[0].site.node.mask
    known = {**sizes, **{name: value for name, value in arguments.items() if isinstance(value, int)}}
    values = _slice(mask_matrix(op, mask, arguments).data.double())
    band, near = _bands(choices[0], known)
    facts = choices[0].site.facts
    plans = [name for name in _COSTS if any(name in choice.legal for choice in choices)]
    return MaskView(
        title=", ".join(titles[choice.site.name] for choice in choices),
        values=values.numpy(),
        live=_slice(mask_support(op, mask, arguments).data).numpy() & band,
        visited=band,
        near=near,
        blocks=tuple(partition(values)),
        lower=_bound(facts.lower_rank, known),
        upper=_bound(facts.upper_rank, known),
        causal=facts.causal,
        facts=describe(facts),
        plans=tuple(PlanView(name, _COSTS[name]) for name in plans),
    )


def _slice(values: torch.Tensor) -> torch.Tensor:
    """The first entry of every axis before `i` and `j`."""
    return values.detach().flatten(0, -3)[0] if values.dim() > 2 else values.detach()


def _titles(choices: tuple[Choice, ...]) -> dict[str, str]:
    """What each contraction is called, by its name: numbered where there are several of a kind, with its normaliser."""
    kinds = [choice.site.name.rstrip("0123456789") for choice in choices]
    found = {}
    for kind, choice in zip(kinds, choices, strict=True):
        node = choice.site.node
        normaliser = f" ({node.normalize})" if isinstance(node, Attend) and node.normalize != "none" else ""
        found[choice.site.name] = (choice.site.name if kinds.count(kind) > 1 else kind) + normaliser
    return found


def _bands(choice: Choice, sizes: Mapping[str, int]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The pairs within the mask's band, and those within its near parts' bands."""
    found, length = choice.site.decomposition, sizes["time"]
    near = np.zeros((length, length), bool)
    for part in found.near:
        near |= within_band(length, _at(part.lo, sizes), _at(part.hi, sizes))
    return within_band(length, _at(found.lo, sizes), _at(found.hi, sizes)), near


def _at(bound: Expr | None, sizes: Mapping[str, int]) -> int | None:
    if bound is None:
        return None
    expr = to_sympy(bound)
    return int(expr.subs({symbol: sizes[str(symbol)] for symbol in expr.free_symbols}))


def _bound(rank: Count, sizes: Mapping[str, int]) -> str:
    return str(rank.at(**sizes) if isinstance(rank, SizeExpr) else rank)


def describe(facts: MaskFacts) -> str:
    """The facts of a mask on one line."""
    low, high = facts.band
    parts = [
        "causal" if facts.causal else "not causal",
        "Toeplitz" if facts.toeplitz else "",
        f"{low} ≤ i − j ≤ {high}".replace(" - ", " − ") if low and high else "",
        "document runs" if facts.segments else "",
        "symmetric" if facts.symmetric else "",
        f"{facts.gate.replace('_', ' and ')} gate" if facts.gate != "none" else "",
        "entries ≥ 0" if facts.nonnegative else "",
        f"state of {_letters(facts.state_size)}" if facts.causal else "",
    ]
    return "  ·  ".join(part for part in parts if part)


def _letters(number: Count) -> str:
    """A count with the letters of sizes that users know: `key*value` is K·V."""
    text = str(number).replace("*", "·").replace(" - ", " − ")
    for axis, letter in (("time", "T"), ("head", "H"), ("key", "K"), ("value", "V")):
        text = re.sub(rf"\b{axis}\b", letter, text)
    return text
