"""The contractions of an op as the plans run them: what streams carry, what a cache holds, which columns are alive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from sma_compiler.facts.state import linear
from sma_compiler.ir.graph import Graph
from sma_compiler.ir.nodes import Attend, Const, Contraction, Expr, Kind, MaskTimes, Op, Solve, postorder
from sma_compiler.mask.columns import held_by
from sma_compiler.mask.elementary import elementary
from sma_compiler.mask.nodes import Near, Stream
from sma_compiler.mask.streams import decompose
from sma_compiler.plan.choose import Choice, Plans
from sma_compiler.torch_plans.cache import Cache
from sma_compiler.torch_plans.dense import Band
from sma_compiler.torch_plans.elementary import Elementary
from sma_compiler.torch_plans.evaluate import Evaluator
from sma_compiler.torch_plans.traits import Traits, wide_nodes


@dataclass(frozen=True)
class Site:
    """What is known of one contraction before a call.

    name: what its states are called after. streams: what states of fixed size carry. near: the rest of the mask.
    lo, hi: the band that the whole of it lives in. held: what is remembered for the near parts, by name; None: nothing.
    behind: whether near parts read positions before their bands.
    """

    node: Contraction
    name: str
    streams: tuple[Stream, ...]
    near: tuple[Near, ...]
    lo: Expr | None
    hi: Expr | None
    held: Mapping[str, Expr] | None
    wide: frozenset[Expr]
    behind: bool

    def band(self, evaluator: Evaluator) -> Band:
        """The band of the whole mask in a call."""
        return band_of(self.lo, self.hi, evaluator)

    def cache(self, evaluator: Evaluator) -> Cache | None:
        """What is remembered in a call, for the near parts."""
        if self.held is None:
            return None
        lasts = [band_of(None, part.hi, evaluator).hi for part in self.near]
        known = [last for last in lasts if last is not None]
        bounded = len(known) == len(lasts) and not self.behind
        return Cache(self.held, max(0, *known) if bounded else None, self.wide)


@dataclass(frozen=True)
class Layout:
    """What is known of an op before a call: what mixes positions, operands first; and what evaluation needs to know."""

    sites: tuple[Site | Elementary, ...]
    traits: Traits


_LAYOUTS: WeakKeyDictionary[Graph, dict[Expr, Layout]] = WeakKeyDictionary()


def layout_of(op: Op, plans: Plans) -> Layout:
    """The op's layout, which is made once."""
    made = _LAYOUTS.setdefault(plans.graph, {})
    if op.result not in made:
        made[op.result] = Layout(tuple(_sites(op, plans)), Traits())
    return made[op.result]


def band_of(lo: Expr | None, hi: Expr | None, evaluator: Evaluator) -> Band:
    """The band between two static integers."""
    return Band(*(None if bound is None else evaluator.static_int(bound) for bound in (lo, hi)))


def _sites(op: Op, plans: Plans) -> list[Site | Elementary]:
    wide = wide_nodes((op.result,))
    known = {choice.site.node: choice for choice in plans.choices}
    found: list[Site | Elementary] = []
    numbers = {"shift": 0, "cumsum": 0, "near": 0}
    for node in postorder((op.result,)):
        what = elementary(plans.graph, node)
        if what is not None and isinstance(node, MaskTimes):
            found.append(Elementary(node, f"{what.kind}{numbers[what.kind]}", what, node in wide))
            numbers[what.kind] += 1
        elif node in known and isinstance(node, Attend | MaskTimes | Solve):
            found.append(_site(node, known[node].site.name, known[node], plans, wide))
        elif isinstance(node, Attend | MaskTimes | Solve):
            found.append(_site(node, f"near{numbers['near']}", None, plans, wide))
            numbers["near"] += 1
    return found


def _site(node: Contraction, name: str, choice: Choice | None, plans: Plans, wide: frozenset[Expr]) -> Site:
    whole = decompose(plans.graph, node.mask) if choice is None else choice.site.decomposition
    streams, near = whole.streams, whole.near
    if choice is None or not streams or not _carried(node, near, choice):
        streams, near = (), (Near(node.mask, whole.lo, whole.hi),)
    behind = choice is not None and choice.site.behind
    remembers = plans.causal and (behind or any(_reaches_back(part) for part in near))
    held = held_by(node, [part.mask for part in near]) if remembers else None
    return Site(node, name, streams, near, whole.lo, whole.hi, held, wide, behind)


def _carried(node: Contraction, near: tuple[Near, ...], choice: Choice) -> bool:
    """Whether states of fixed size carry the streams: else everything is kept, and the streams are of no use."""
    if not linear(node) or node.kind is not Kind.REAL or any(part.hi is None for part in near):
        return False
    if choice.site.behind:
        return False
    if isinstance(node, Attend) and node.normalize == "softmax":
        return not {"recurrent", "chunked"}.isdisjoint(choice.legal)
    return True


def _reaches_back(part: Near) -> bool:
    """Whether a part may see positions before the row's own."""
    return not (isinstance(part.hi, Const) and part.hi.value <= 0)
