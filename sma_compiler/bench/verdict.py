"""How far what plan="auto" takes without measuring is from the best that was measured: told from a file, anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sma_compiler.bench.auto import Found, Timed
from sma_compiler.bench.auto_plan import situation_at
from sma_compiler.bench.auto_rows import AutoRow
from sma_compiler.tune.report import Candidate
from sma_compiler.tune.setting import Situation
from sma_compiler.tune.space import auto_candidate, signatures

WITHIN, SHARE, WORST = 1.15, 0.9, 1.6
"""What is promised: this near to the best, on such a part of the shapes, and never further."""


@dataclass(frozen=True)
class Rival:
    """Other implementations at a shape: the fastest's seconds beside ours, forward and with gradients.

    Ours are those of a call under plan="auto" beside them, not tuned; without one, those of the best candidate.
    reason: why a number of theirs is missing. date: UTC, of theirs.
    """

    name: str = ""
    forward: float | None = None
    both: float | None = None
    our_forward: float | None = None
    our_both: float | None = None
    reason: str = ""
    date: str = ""

    @property
    def ratios(self) -> tuple[float | None, float | None]:
        """Their seconds over ours."""
        return _ratio(self.forward, self.our_forward), _ratio(self.both, self.our_both)


def _ratio(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else one / other


def rival(found: Found) -> Rival:
    """What was measured of other implementations at a shape."""
    beside = found.peers.values()
    return Rival(
        ", ".join(found.peers),
        min((one.forward for one in beside if one.forward), default=None),
        min((one.both for one in beside if one.both), default=None),
        found.called.forward or min((time for _, time in _forwards(found)), default=None),
        found.called.both or min((time for _, time in _trainings(found)), default=None),
        "; ".join(one.reason for one in beside if one.reason),
        max((one.date for one in beside), default=""),
    )


@dataclass(frozen=True)
class Verdict:
    """One shape. auto: what is taken, without and with gradients. best: what is best; then their seconds.

    rival: other implementations beside ours. error: why there is nothing.
    """

    name: str
    auto: str = ""
    forward: float | None = None
    best: str = ""
    best_forward: float | None = None
    training: float | None = None
    best_for_training: str = ""
    best_training: float | None = None
    error: str = ""
    rival: Rival = Rival()

    @property
    def ratios(self) -> tuple[float, ...]:
        """Seconds of auto's pick over those of the best: forward, and training where it was measured."""
        pairs = ((self.forward, self.best_forward), (self.training, self.best_training))
        return tuple(own / best for own, best in pairs if own is not None and best)


@dataclass(frozen=True)
class Summary:
    """share: of the ratios within `WITHIN`. worst: the largest. shapes: measured; missing: not yet, or in vain.

    least: the smallest ratio of a peer's time to the best; None: there is none.
    """

    share: float
    worst: float
    shapes: int
    missing: int
    least: float | None = None

    @property
    def kept(self) -> bool:
        """Whether what is promised holds for what was measured."""
        return self.share >= SHARE and self.worst <= WORST


def judge(row: AutoRow, found: Found) -> Verdict:
    """Auto's pick, as the package takes it now, among a row's measurements."""
    if found.error:
        return Verdict(row.name, error=found.error)
    at = situation_at(row, found.device)
    picks = {training: auto_candidate(at, training=training) for training in (False, True)}
    forward = _of(found, at, picks[False], "ahead", "forward")
    recorded, backward = (
        _of(found, at, picks[True], side, what) for side, what in (("ahead", "recorded"), ("behind", "backward"))
    )
    auto = " / ".join(dict.fromkeys(map(str, picks.values())))
    if forward is None:
        known = (one.refused for one in found.candidates if f"{one.backend} {one.pick}" == str(picks[False]))
        return Verdict(row.name, auto, error=f"auto takes {picks[False]}: {next(known, 'not measured')}")
    best = min(_forwards(found), key=lambda item: item[1])
    trained = min(_trainings(found), key=lambda item: item[1], default=("", None))
    training = None if recorded is None or backward is None else recorded + backward
    return replace(Verdict(row.name, auto, forward, *best, training, *trained), rival=rival(found))


def _of(found: Found, at: Situation, own: Candidate, side: str, what: str) -> float | None:
    """The least time of what is the same kernels as a candidate: of plans of torch, of its name."""
    signature = signatures(at, own)[side == "behind"]
    same = [one for one in found.candidates if one.backend == own.backend and not one.refused]
    same = [one for one in same if (getattr(one, side) == signature if signature else one.pick == own.pick)]
    return min((x for one in same if (x := getattr(one, what)) is not None), default=None)


def _forwards(found: Found) -> Iterator[tuple[str, float]]:
    for one in found.candidates:
        if not one.refused and one.forward is not None:
            yield f"{one.backend} {one.pick}", one.forward


def _trainings(found: Found) -> Iterator[tuple[str, float]]:
    """Of each candidate; and of a plan's best forward with its best backward kernels, as `op.tune` joins them."""
    fit = [one for one in found.candidates if not one.refused and one.recorded is not None and one.backward is not None]
    for one in fit:
        for other in fit:
            if one is other or (one.backend == other.backend == "triton" and _plan(one) == _plan(other)):
                text = f"{one.backend} {one.pick}" + ("" if one is other else f" with the gradients of {other.pick}")
                yield text, (one.recorded or 0.0) + (other.backward or 0.0)


def _plan(one: Timed) -> str:
    return one.pick.partition(":")[0]


def verdicts(rows: Sequence[AutoRow], found: Mapping[str, Found]) -> list[Verdict]:
    """Of the rows that were measured."""
    return [judge(row, found[row.name]) for row in rows if row.name in found]


def summary(rows: Sequence[AutoRow], judged: Sequence[Verdict]) -> Summary:
    """What was found of the rows, all together."""
    own = [one for one in judged if one.ratios]
    ratios = [ratio for one in own for ratio in one.ratios]
    near = sum(ratio <= WITHIN for ratio in ratios)
    least = min((ratio for one in judged for ratio in one.rival.ratios if ratio is not None), default=None)
    return Summary(near / max(len(ratios), 1), max(ratios, default=1.0), len(own), len(rows) - len(own), least)
