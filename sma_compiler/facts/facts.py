"""The facts of an op: one record a contraction, each fact with the reason it holds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from sma_compiler.facts.bounds import band, bounds
from sma_compiler.facts.rank import ranks
from sma_compiler.facts.reach import reads_ahead, reads_behind
from sma_compiler.facts.shape import gate, symmetric, toeplitz
from sma_compiler.facts.sizes import Count, count
from sma_compiler.facts.state import linear, state_size
from sma_compiler.ir.graph import Graph
from sma_compiler.ir.nodes import Attend, Contraction, Kind, MaskTimes, Solve
from sma_compiler.ir.show import show_expr
from sma_compiler.mask.algebra import constant
from sma_compiler.mask.elementary import elementary
from sma_compiler.mask.nodes import Decomposition
from sma_compiler.mask.streams import Analysis, analyse

NAMES = {Attend: "attend", MaskTimes: "times", Solve: "solve"}


@dataclass(frozen=True)
class MaskFacts:
    """What is proven of one contraction's mask.

    lower_rank, upper_rank: no block L[s:, :s] (L[:s, s:]) has a larger rank, per channel of the mask.
    state_size: elements of the state for one batch row and head; 0 where there is none (a mask that is not causal).
    band: lo <= i - j <= hi as text, "" for no bound. contracting: every gate is at most 1; None where that depends on
    the values of a parameter. reasons: for every fact, why it holds.
    """

    contraction: str
    causal: bool
    band: tuple[str, str]
    segments: bool
    symmetric: bool
    toeplitz: bool
    gate: str
    lower_rank: Count
    upper_rank: Count
    nonnegative: bool
    contracting: bool | None
    state_size: Count
    reasons: dict[str, str] = field(hash=False)

    def __str__(self) -> str:
        names = ("causal", "band", "segments", "symmetric", "toeplitz", "gate", "lower_rank", "upper_rank")
        rows = []
        for name in (*names, "nonnegative", "contracting", "state_size"):
            value = getattr(self, name)
            if name == "band":
                value = f"{value[0] or '-inf'} .. {value[1] or 'inf'}"
            rows.append(f"    {name:<12} {value!s:<14} {self.reasons.get(name, '')}".rstrip())
        return "\n".join([f"  {self.contraction}", *rows])


@dataclass(frozen=True)
class Facts:
    """The facts of an op; `masks` has one entry a contraction, in the order they are computed."""

    masks: tuple[MaskFacts, ...]

    def __str__(self) -> str:
        return "\n".join(str(mask) for mask in self.masks)


@dataclass(frozen=True)
class Site:
    """One contraction of an op with everything known of its mask.

    behind: whether a near part reads positions, through a product of masks, that a cache of its band would lack: those
    before its band, and beside streams all before the column, as the new pairs are then evaluated without a cache.
    """

    node: Contraction
    name: str
    analysis: Analysis
    facts: MaskFacts
    behind: bool

    @property
    def decomposition(self) -> Decomposition:
        """The mask as streams and near parts."""
        return self.analysis.decomposition


def site(graph: Graph, node: Contraction, number: int) -> Site:
    """Analyse the mask of one contraction; `number` counts those of its kind."""
    analysis = analyse(graph, node.mask)
    name = f"{NAMES[type(node)]}{number}"
    parts = analysis.decomposition
    behind = any(reads_behind(graph, near.mask, None if parts.streams else near.hi) for near in parts.near)
    return Site(node, name, analysis, _facts(graph, node, name, analysis, behind), behind)


def _facts(graph: Graph, node: Contraction, name: str, analysis: Analysis, behind: bool) -> MaskFacts:
    decomposition = analysis.decomposition
    lo, hi = decomposition.lo, decomposition.hi
    causal = band(decomposition)[0] >= 0 and not reads_ahead(graph, node.mask)
    lower, upper = ranks(graph, analysis)
    exact = node.kind is not Kind.REAL and elementary(graph, node) is None
    facts = MaskFacts(
        contraction=name,
        causal=causal,
        band=("" if lo is None else show_expr(lo), "" if hi is None else show_expr(hi)),
        segments=any(part.piece.guard.segments for part in analysis.parts),
        symmetric=symmetric(graph, node.mask, analysis),
        toeplitz=toeplitz(graph, node.mask, analysis),
        gate=gate(node.mask),
        lower_rank=count(lower),
        upper_rank=count(upper),
        nonnegative=bounds(node.mask)[0] >= 0,
        contracting=_contracting(analysis),
        state_size=count(state_size(node, decomposition, behind, exact) if causal else 0),
        reasons={},
    )
    return replace(facts, reasons=_reasons(node, analysis, facts, behind, exact))


def _contracting(analysis: Analysis) -> bool | None:
    """Whether every log gate is proven to be at most 0; None where a gate or an opaque factor may be anything."""
    terms = [term for part in analysis.parts for term in part.terms]
    logs = [bounds(gate.log)[1] for term in terms for gate in term.gates]
    known = not any(term.opaque or term.product for term in terms)
    return True if known and all(log <= 0 for log in logs) else None


def _reasons(node: Contraction, analysis: Analysis, facts: MaskFacts, behind: bool, exact: bool) -> dict[str, str]:
    decomposition = analysis.decomposition
    streams = len(decomposition.streams)
    near = [part.why_near for part in analysis.parts if part.why_near]
    made_of = f"{streams} stream{'s' if streams != 1 else ''}"
    if near:
        made_of += f" and {len(near)} part{'s' if len(near) != 1 else ''} that no stream holds: {near[0]}"
    low, high = bounds(node.mask)
    return {
        "causal": _causal_reason(decomposition, facts.causal),
        "band": "the hull of the supports of its pieces" if any(facts.band) else "its pieces reach both corners",
        "segments": "what it compares at i and at j is monotone in time: equal ids form runs"
        if facts.segments
        else "no run of equal ids is compared",
        "symmetric": "its transpose has the same parts" if facts.symmetric else "its transpose is made of other parts",
        "toeplitz": "it depends on i - j alone"
        if facts.toeplitz
        else "it indexes a tensor in time, or i or j stands alone",
        "gate": _gate_reason(facts.gate),
        "lower_rank": made_of,
        "upper_rank": made_of,
        "nonnegative": f"interval arithmetic bounds it by {low:g} and {high:g}",
        "contracting": _contracting_reason(analysis, facts.contracting),
        "state_size": _state_reason(node, decomposition, facts.causal, behind, exact),
    }


def _causal_reason(decomposition: Decomposition, causal: bool) -> str:
    if causal:
        return "every piece lies on i - j >= 0"
    if band(decomposition)[0] >= 0:
        return "it lies on i - j >= 0, but a product of masks within it reads positions after i"
    if decomposition.lo is not None and constant(decomposition.lo) is None:
        return f"{show_expr(decomposition.lo)}, where i - j begins, may be less than 0"
    return "some piece has i - j < 0"


def _contracting_reason(analysis: Analysis, contracting: bool | None) -> str:
    if contracting is None:
        return "it depends on the values of the gates"
    gated = any(term.gates for part in analysis.parts for term in part.terms)
    return "every log gate is at most 0" if gated else "it has no gates"


def _gate_reason(kind: str) -> str:
    if kind == "none":
        return "its entries are 0 and 1"
    if kind == "scalar":
        return "it carries neither key nor value"
    return f"it carries {kind.replace('_', ' and ')}"


def _state_reason(node: Contraction, decomposition: Decomposition, causal: bool, behind: bool, exact: bool) -> str:
    if not causal:
        return "later positions matter: no state"
    if exact:
        return "integers are summed exactly: they themselves are kept"
    if not linear(node):
        return "the weight is not linear in the score: the keys and values themselves are kept"
    if behind:
        return "a product of masks within a band reads positions before it: they are kept"
    if any(near.hi is None for near in decomposition.near):
        return "a part of unbounded reach has no finite rank: the keys and values themselves are kept"
    return "a matrix for each stream, the last columns for delays and bands"
