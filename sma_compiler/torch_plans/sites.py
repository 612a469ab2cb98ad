"""The contractions of an op as the plans run them: what streams carry, what a cache holds, which columns are alive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sma_compiler.facts.facts import linear
from sma_compiler.ir.nodes import Attend, Const, Contraction, Expr, Kind, MaskTimes, Op, Solve, postorder
from sma_compiler.mask.nodes import Near, Stream
from sma_compiler.mask.streams import decompose
from sma_compiler.plan.choose import Choice, Plans
from sma_compiler.torch_plans.cache import Cache, held_by
from sma_compiler.torch_plans.dense import Band
from sma_compiler.torch_plans.elementary import Elementary, elementary
from sma_compiler.torch_plans.evaluate import Evaluator
from sma_compiler.torch_plans.traits import wide_nodes


@dataclass(frozen=True)
class Part:
    """A part of a mask that no stream carries, and where it lives."""

    mask: Expr
    band: Band


@dataclass(frozen=True)
class Site:
    """One contraction.

    name: what its states are called after. plan: how it runs. streams: what states of fixed size carry. near: the
    rest of the mask. band: where the whole of it lives. cache: what is remembered for the near parts; None: nothing.
    """

    node: Contraction
    name: str
    plan: str
    streams: tuple[Stream, ...]
    near: tuple[Part, ...]
    band: Band
    cache: Cache | None


def sites_of(op: Op, plans: Plans, chosen: Mapping[Expr, str], evaluator: Evaluator) -> list[Site | Elementary]:
    """What an op mixes positions with, operands first. A contraction that `chosen` lacks is quadratic."""
    wide = wide_nodes((op.result,))
    known = {choice.site.node: choice for choice in plans.choices}
    found: list[Site | Elementary] = []
    numbers: dict[str, int] = {}
    for node in postorder((op.result,)):
        what = elementary(node)
        if what is not None and isinstance(node, MaskTimes):
            number = numbers[what.kind] = numbers.get(what.kind, -1) + 1
            found.append(Elementary(node, f"{what.kind}{number}", what, node in wide))
        elif isinstance(node, Attend | MaskTimes | Solve):
            number = numbers["other"] = numbers.get("other", -1) + (node not in known)
            name = known[node].site.name if node in known else f"near{number}"
            found.append(_site(node, name, chosen.get(node, "quadratic"), known.get(node), plans, evaluator, wide))
    return found


def _site(
    node: Contraction,
    name: str,
    plan: str,
    choice: Choice | None,
    plans: Plans,
    evaluator: Evaluator,
    wide: frozenset[Expr],
) -> Site:
    whole = decompose(plans.graph, node.mask) if choice is None else choice.site.decomposition
    streams, near = whole.streams, whole.near
    if choice is None or not _carried(node, near, choice):
        streams, near = (), (Near(node.mask, whole.lo, whole.hi),)
    cache = None
    if plans.causal and any(_reaches_back(part) for part in near):
        lasts = [part.hi for part in near]
        slots = max(0, *(evaluator.static_int(hi) for hi in lasts if hi is not None)) if None not in lasts else None
        cache = Cache(held_by(node, [part.mask for part in near]), slots, wide)
    parts = tuple(Part(part.mask, _band(part.lo, part.hi, evaluator)) for part in near)
    return Site(node, name, plan, streams, parts, _band(whole.lo, whole.hi, evaluator), cache)


def _carried(node: Contraction, near: tuple[Near, ...], choice: Choice) -> bool:
    """Whether states of fixed size carry the streams: else everything is kept, and the streams are of no use."""
    if not linear(node) or node.kind is not Kind.REAL or any(part.hi is None for part in near):
        return False
    if isinstance(node, Attend) and node.normalize == "softmax":
        return not {"recurrent", "chunked"}.isdisjoint(choice.legal)
    return True


def _reaches_back(part: Near) -> bool:
    """Whether a part may see positions before the row's own."""
    return not (isinstance(part.hi, Const) and part.hi.value <= 0)


def _band(lo: Expr | None, hi: Expr | None, evaluator: Evaluator) -> Band:
    return Band(*(None if bound is None else evaluator.static_int(bound) for bound in (lo, hi)))
