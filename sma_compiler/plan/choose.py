"""Which plans are legal for each contraction of an op, why the others are not, and the facts they follow from."""

from __future__ import annotations

from dataclasses import dataclass

from sma_compiler.errors import SpecError
from sma_compiler.facts.bounds import band, bounds
from sma_compiler.facts.facts import NAMES, Facts, Site, site
from sma_compiler.facts.sizes import Count
from sma_compiler.facts.state import linear
from sma_compiler.ir.graph import Graph
from sma_compiler.ir.nodes import Attend, Contraction, Expr, Kind, Levels, MaskTimes, Op, Size, Solve, postorder
from sma_compiler.mask.elementary import elementary
from sma_compiler.plan.errors import MaskMayBeNegative, SolveNotStrict
from sma_compiler.source import Span
from sma_compiler.syntax.parse import raise_all

PLANS = ("quadratic", "recurrent", "chunked", "toeplitz", "hierarchical", "global")
"""Every name that `plan=` takes, in the order they are listed."""

COSTS = {
    "quadratic": "T^2 (K + V), less what the support skips",
    "recurrent": "T K V, one step after another",
    "chunked": "T (C (K + V) + K V)",
    "toeplitz": "T log T",
    "hierarchical": "T log T",
    "global": "T K V",
}


@dataclass(frozen=True)
class Plan:
    """A legal plan of an op: its cost in big-O terms, and what its state holds."""

    name: str
    cost: str
    state: str

    def __str__(self) -> str:
        return f"{self.name:<12} {self.cost:<42} state: {self.state}"


@dataclass(frozen=True)
class Choice:
    """The legal plans of one contraction, and for each other plan why it is not."""

    site: Site
    legal: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Plans:
    """Everything decided about an op before sizes are known."""

    graph: Graph
    facts: Facts
    choices: tuple[Choice, ...]
    legal: tuple[Plan, ...]
    refused: dict[str, str]
    causal: bool

    def of(self, node: Expr) -> Choice:
        """The choice for one contraction."""
        return next(choice for choice in self.choices if choice.site.node is node)


def plan(op: Op) -> Plans:
    """Analyse every contraction of an op.

    Raises:
        MaskMayBeNegative: a softmax over a mask that is not proven to be >= 0.
        SolveNotStrict: a `solve` whose mask is not proven strictly lower.
    """
    graph = Graph.of(op.result)
    every = [node for node in postorder((op.result,)) if isinstance(node, Contraction)]
    counted = [node for node in every if elementary(graph, node) is None] or every
    numbers: dict[str, int] = {}
    sites: list[Site] = []
    for node in counted:
        name = NAMES[type(node)]
        sites.append(site(graph, node, numbers.get(name, 0)))
        numbers[name] = numbers.get(name, 0) + 1
    raise_all(tuple(mistake for found in sites if (mistake := _mistake(found)) is not None))
    others = [site(graph, node, n) for n, node in enumerate(every) if node not in counted]
    causal = all(found.facts.causal for found in (*sites, *others))
    one_way = len({_direction(found) for found in sites}) == 1
    choices = tuple(_choice(found, one_way) for found in sites)
    legal = [name for name in PLANS if any(name in choice.legal for choice in choices)]
    return Plans(
        graph,
        Facts(tuple(found.facts for found in sites)),
        choices,
        tuple(Plan(name, COSTS[name], _state(sites, causal)) for name in legal),
        {name: _why(choices, name) for name in PLANS if name not in legal},
        causal,
    )


def usual(plans: Plans) -> str:
    """The plan that kernels for "auto" follow: chunked, but where no state of fixed size carries the contraction."""
    return "quadratic" if {found.name for found in plans.legal} == {"quadratic"} else "chunked"


def _why(choices: tuple[Choice, ...], name: str) -> str:
    """The reasons of all contractions, each once."""
    if not choices:
        return "the op has no contraction, only work on each position"
    return "; ".join(dict.fromkeys(dict(choice.refused)[name] for choice in choices))


def _mistake(found: Site) -> SpecError | None:
    node = found.node
    if isinstance(node, Attend) and node.normalize == "softmax" and not found.facts.nonnegative:
        return MaskMayBeNegative(_place(node), bounds(node.mask)[0])
    if isinstance(node, Solve) and band(found.decomposition)[0] < 1:
        return SolveNotStrict(_place(node))
    return None


def _place(node: Attend | Solve) -> Span:
    """Where a contraction has its mask, or all of it where that was first written elsewhere."""
    return node.mask.span if node.mask.span in node.span else node.span


def _direction(found: Site) -> str:
    """ "down" where all of the mask lies on or below the diagonal, "up" where above, "both" otherwise."""
    low, high = band(found.decomposition)
    if low >= 0:
        return "down"
    return "up" if high <= 0 else "both"


def _state(sites: list[Site], causal: bool) -> str:
    if not causal:
        return "none: later positions matter"
    sizes: list[Count] = [found.facts.state_size for found in sites]
    return " + ".join(str(size) for size in sizes) + " elements a batch row and head"


def _choice(found: Site, one_way: bool) -> Choice:
    tests = {
        "quadratic": "",
        "recurrent": _unbounded(found) or _one_way(found, one_way),
        "chunked": _unbounded(found) or _chunked(found),
        "toeplitz": _toeplitz(found),
        "hierarchical": _hierarchical(found),
        "global": _global(found),
    }
    legal = tuple(name for name in PLANS if not tests[name])
    return Choice(found, legal, tuple((name, why) for name, why in tests.items() if why))


def _unbounded(found: Site) -> str:
    """Why no state of fixed size carries the contraction; empty where one does."""
    node = found.node
    if isinstance(node, Attend) and not linear(node):
        if node.activation != "none":
            return f"activation={node.activation} makes the weight no linear function of the score"
        return "softmax makes the weight no linear function of the score"
    if node.kind is not Kind.REAL:
        return "integers are summed exactly, by the quadratic plan"
    for part in found.analysis.parts:
        bounds_of = (part.piece.guard.lo, part.piece.guard.hi)
        if not part.streams and None in bounds_of:
            return part.why_near
        if any(isinstance(leaf, Size) for bound in bounds_of if bound is not None for leaf in postorder((bound,))):
            return "it reaches as far back as a table is long: its rank grows with the table"
    if found.behind:
        return "a product of masks within a band reads positions before it"
    if isinstance(node, Attend) and node.normalize == "softmax":
        return _stabilised(found)
    return ""


def _stabilised(found: Site) -> str:
    """Why a softmax whose score does not depend on i has no stabilised state."""
    for stream in found.decomposition.streams:
        factors = (*stream.row, *stream.col, *stream.feed)
        if stream.turns or any(bounds(factor)[0] < 0 for factor in factors):
            return "a part of the mask is not proven to be 0 or more by itself, so its logarithm is unknown"
        if stream.delay or stream.contracted:
            return "softmax over a mask that is itself a product or a sum over an axis is quadratic only"
    return ""


def _one_way(found: Site, one_way: bool) -> str:
    if _direction(found) == "both" or not one_way:
        return "it looks both ways: a recurrence runs in one direction"
    return _banded(found)


def _chunked(found: Site) -> str:
    if isinstance(found.node, Solve) and any(stream.delay for stream in found.decomposition.streams):
        return "a product of masks feeds solve its own results late: chunks would read what they solve for"
    if isinstance(found.node, Solve):
        return _banded(found)
    if any(stream.side == "full" for stream in found.decomposition.streams):
        return "every pair is live: two matrix products do it, see global"
    return ""


def _banded(found: Site) -> str:
    if isinstance(found.node, Solve) and found.decomposition.near:
        return "a band in the mask of solve is computed by the quadratic plan"
    return ""


def _toeplitz(found: Site) -> str:
    node = found.node
    if not found.facts.toeplitz:
        return f"the mask is not Toeplitz: {found.facts.reasons['toeplitz']}"
    if isinstance(node, Solve):
        return "solve inverts the mask"
    if isinstance(node, MaskTimes):
        return "" if node.kind is Kind.REAL else "integers are summed exactly, by the quadratic plan"
    if node.normalize != "none" or node.activation != "none":
        return "a normalised or activated weight is no function of i - j"
    if any("key" in part.axes for part in (node.mask, node.q, node.k)):
        return "the score has a key axis: each pair of entries would be a convolution of its own"
    return ""


def _hierarchical(found: Site) -> str:
    if any(isinstance(node, Levels) for node in postorder((found.node.mask,))):
        return "the hierarchical plan for level masks does not exist in this version"
    return "the mask has no levels"


def _global(found: Site) -> str:
    streams = found.decomposition.streams
    if isinstance(found.node, Attend) and (not linear(found.node) or found.node.normalize == "softmax"):
        return "softmax and activations make the weight no linear function of the score"
    if isinstance(found.node, Solve) or found.node.kind is not Kind.REAL:
        return "solve and integer sums have no global plan"
    if not streams or found.decomposition.near or any(stream.side != "full" for stream in streams):
        return "the mask has a support: not every pair is live with the same low rank"
    return ""
