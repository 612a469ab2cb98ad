"""Recognises which quadratic ops continue from a cache: what it holds, and how a mask reads it.

A cache is a ring of slots for each row of the batch. Position t of a row lies behind position t - 1, in the first slot
behind the last one; empty slots lie before the oldest position and have the position -1. So slots in the order of
time begin behind the newest position, wherever that is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sma_compiler.ir.nodes import Const, Expr
from sma_compiler.kernel.errors import NoTritonKernel
from sma_compiler.kernel.linear import plain
from sma_compiler.kernel.pairs import Pairs, adds
from sma_compiler.kernel.support import Bound, Run, Several, Turns, turns_of
from sma_compiler.mask.columns import held_by
from sma_compiler.plan.choose import Plans


@dataclass(frozen=True)
class Cached:
    """An op whose rows see the columns of a cache.

    held: what is kept of each position, by name. whole: whether every position is kept, so that the cache can fill up.
    lo, hi: the bounds of what a row sees, without runs. counts: what tells the runs of each `Turns`: how many began.
    """

    pairs: Pairs
    held: Mapping[str, Expr]
    whole: bool
    lo: Bound | None
    hi: Bound | None
    counts: Mapping[Turns, Expr]


def cached(pairs: Pairs, plans: Plans) -> Cached:
    """The op as it continues from a cache.

    Raises:
        NoTritonKernel: no kernel does.
    """
    attend = pairs.linear.attend

    def refuse(reason: str) -> NoTritonKernel:
        return NoTritonKernel(pairs.op.name, "quadratic", reason)

    if not plans.causal:
        raise refuse("no op that reads later positions has states")
    choice = plans.of(attend)
    decomposition = choice.site.decomposition
    last = decomposition.hi
    if isinstance(last, Const) and last.value <= 0 and not choice.site.behind:
        raise refuse("rows see no position before their own: there is no cache")
    if not pairs.softmax or not {"recurrent", "chunked"}.isdisjoint(choice.legal):
        raise refuse("streams carry its state")
    held = held_by(attend, [attend.mask])
    if not {"k", "v"} <= held.keys():
        raise refuse("keys and values vary in time, where a cache holds them")
    known = {plain(expr) for expr in held.values()}
    for end in pairs.ends:
        if end.end == "j" and plain(end.x) not in known:
            raise refuse("what the mask reads of a column is not what the cache holds")
    for along in pairs.paths:
        gate = along.gate
        if along.early != "j" or not along.one_sided or not gate.query_closed or gate.key_closed:
            raise refuse("of paths, the cache's kernels know those from behind the column to the row")
    if pairs.tables:
        raise refuse("what masks look up in tables is not known to the cache's kernels")
    if pairs.paths and (len(pairs.paths) > 1 or pairs.weight is None or not adds(pairs.weight, pairs.paths[0].leaf)):
        raise refuse("a path that is no factor of the whole mask has no running sum")
    counts: dict[Turns, Expr] = {}
    for turns in pairs.turns:
        found = [x for x in held.values() if turns_of(pairs.graph, pairs.graph.at(x, "j")) == turns]
        if not found:
            raise refuse("what tells its runs is not what the cache holds")
        counts[turns] = found[0]
    support = pairs.support
    return Cached(
        pairs,
        held,
        decomposition.hi is None or choice.site.behind,
        _without_runs(support.lo),
        _without_runs(support.hi),
        counts,
    )


def _without_runs(bound: Bound | None) -> Bound | None:
    """A bound without the runs that it is held to."""
    match bound:
        case Run():
            return None
        case Several(bounds=bounds):
            rest = tuple(found for found in map(_without_runs, bounds) if found is not None)
            return replace(bound, bounds=rest) if len(rest) > 1 else rest[0] if rest else None
    return bound
