"""The path of one stream inside a chunk: log2 decays from and to the chunk's ends, and the [C, C] tile of decays.

Log gates are summed from the start of the chunk in fp32, so that no exponent grows with the sequence; exponents are
differences, set to -inf outside the support before exp2. A log gate so low that one step gives exactly 0 (-inf, say) is
left out of the sums and counted: a path is live where the counts of its ends agree. Positive factors of a gated stream
are folded in as their logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from sma_compiler.facts.bounds import bounds
from sma_compiler.ir.nodes import Apply, Const, Expr, Kind
from sma_compiler.kernel.build import MINUS_INFINITY, Builder, E, cumsum, exp2, lift, pointwise, reduce_sum, size, where
from sma_compiler.kernel.linear import Term, is_tensor, plain, varies
from sma_compiler.kernel.lower import Lowering
from sma_compiler.mask.nodes import Gate

LOG2E = 1.4426950408889634
LOWEST = -300.0
"""A log2 gate below which one step already gives exactly 0 in fp32, as -inf does."""


@dataclass(frozen=True)
class Rows:
    """The rows of a chunk: their offsets [C], which of them the sequence has [C], and how many."""

    offsets: E
    valid: E
    count: E


@dataclass
class End:
    """What one end of every path in a chunk brings.

    exponent [C]: log2 of the decay from the chunk's start to it; None: 0. fold [C]: log2 of positive factors, where
    they are not part of the exponent.
    cuts [C]: how many cuts of the chunk come before it. factors: the other factors.
    """

    exponent: E | None = None
    fold: E | None = None
    cuts: E | None = None
    factors: list[E] = field(default_factory=list)

    @property
    def folded(self) -> E | None:
        """The exponent with the folded factors; None: 0."""
        return _plus(self.exponent, self.fold)


@dataclass
class Path:
    """Exponents (log2) of one stream in one chunk, for a walk whose rows are the late or (`backward`) the early ends.

    total: over the whole chunk; None: 0. cuts: how many the chunk has. rate: log2 of the gate where it is constant and
    the only one; exponents of pairs are then taken from the distance. shift: what the ends add to the distance.
    guarded: whether factors at rows past the end must be 0 as well. exact: see `Term`; then pairs [C, C] are the
    exponents of rows and columns, and rest [C] those from early ends to the chunk's end. wide: see `Term`.
    """

    strict: bool
    backward: bool = False
    guarded: bool = False
    exact: bool = False
    wide: bool = False
    pairs: E | None = None
    rest: E | None = None
    late: End = field(default_factory=End)
    early: End = field(default_factory=End)
    total: E | None = None
    cuts: E | None = None
    rate: E | None = None
    shift: int = 0

    @property
    def rows(self) -> End:
        """The ends at the rows of the walk."""
        return self.early if self.backward else self.late

    @property
    def columns(self) -> End:
        """The ends at its columns."""
        return self.late if self.backward else self.early

    def entering(self) -> E | None:
        """The decay between each row and where the state comes into the chunk, [C]; None: 1."""
        return self._to_end() if self.backward else self._from_start()

    def leaving(self) -> E | None:
        """The decay between each column and where the state goes out of the chunk, [C]; None: 1."""
        return self._from_start() if self.backward else self._to_end()

    def _from_start(self) -> E | None:
        """The decay from the chunk's start to each late end."""
        exponent = self.late.folded
        if exponent is None:
            return None
        return self._exp2(exponent if self.late.cuts is None else where(self.late.cuts.eq(0), exponent, MINUS_INFINITY))

    def _to_end(self) -> E | None:
        """The decay from each early end to the chunk's end."""
        if self.total is None or self.early.exponent is None:
            return None
        exponent = self.total - self.early.exponent if self.rest is None else self.rest
        if self.early.fold is not None:
            exponent = exponent + self.early.fold
        if self.early.cuts is not None and self.cuts is not None:
            exponent = where(self.early.cuts.eq(self.cuts), exponent, MINUS_INFINITY)
        return self._exp2(exponent)

    def across(self) -> E | None:
        """The decay of a state over the whole chunk; None: 1."""
        if self.total is None:
            return None
        return self._exp2(self.total if self.cuts is None else where(self.cuts.eq(0), self.total, MINUS_INFINITY))

    def support(self, rows: Rows) -> E:
        """Where a row sees a column, [C, C]."""
        late, early = self._ends(rows.offsets, rows.offsets)
        seen = late > early if self.strict else late >= early
        if self.late.cuts is not None and self.early.cuts is not None:
            before_late, before_early = self._ends(self.late.cuts, self.early.cuts)
            seen = seen & before_late.eq(before_early)
        return seen

    def between(self, rows: Rows) -> E | None:
        """The decays of all pairs of the chunk, 0 outside the support, [C, C]; None: the support alone."""
        if self.late.exponent is None or self.early.exponent is None:
            return None
        if self.pairs is not None:
            exponent = self.pairs
        elif self.rate is not None:
            exponent = self.distance(rows, self.shift) * self.rate
            if self.rows.fold is not None:
                exponent = exponent + self.rows.fold.col
            if self.columns.fold is not None:
                exponent = exponent + self.columns.fold.row
        else:
            late, early = self._ends(self.late.exponent, self.early.exponent)
            exponent = late - early
        return self._exp2(where(self.support(rows), exponent, MINUS_INFINITY))

    def distance(self, rows: Rows, shift: int) -> E:
        """How far apart the ends of pairs are, [C, C], and what is to be added to it."""
        late, early = self._ends(rows.offsets, rows.offsets)
        return late - early + shift if shift else late - early

    def _exp2(self, exponent: E) -> E:
        return pointwise("exact_exp2", exponent) if self.exact else exp2(exponent)

    def _ends(self, late: E | None, early: E | None) -> tuple[E, E]:
        """What belongs to late and early ends, laid out along the axes of a [C, C] tile."""
        assert late is not None
        assert early is not None
        return (late.row, early.col) if self.backward else (late.col, early.row)


def _plus(a: E | None, b: E | None) -> E | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b


def static_rates(terms: tuple[Term, ...], static: Lowering) -> dict[Gate, E]:
    """log2 of every constant gate, before the loop; -inf as a number whose power is exactly 0."""
    found: dict[Gate, E] = {}
    for term in terms:
        for gate in term.gates if not term.axes else ():
            if not varies(gate.log) and gate not in found:
                rate = pointwise("tl.maximum", log2_of(gate.log, static), LOWEST)
                found[gate] = static.builder.let("log_gate", rate)
    return found


def path_of(term: Term, rates: dict[Gate, E], lowering: Lowering, rows: Rows, suffix: str, path: Path) -> Path:
    """Build the exponents of one stream in one chunk; `path` has none yet.

    term: its `row` and `col` are the late and the early end. suffix: tells the variables of several streams apart.
    """
    for gate in term.gates:
        if gate in rates:
            _constant(path, gate, rates[gate], rows, alone=len(term.gates) == 1)
        else:
            _varying(path, gate, lowering, rows, suffix)
    return with_factors(path, term.row, term.col, lowering, rows, suffix)


def with_factors(
    path: Path, row: Iterable[Expr], col: Iterable[Expr], lowering: Lowering, rows: Rows, suffix: str
) -> Path:
    """Fold factors of the late and of the early end into a path."""
    b = lowering.builder
    late, early = path.late, path.early
    for factor in row:
        _factor(path, late, factor, lowering, rows)
    for factor in col:
        _factor(path, early, factor, lowering, rows)
    if late.exponent is not None and late.fold is not None and path.rate is None:
        late.exponent, late.fold = b.let(f"b_row{suffix}", late.exponent + late.fold), None
    if early.exponent is not None and early.fold is not None and path.rate is None:
        early.exponent, early.fold = b.let(f"b_col{suffix}", early.exponent - early.fold), None
    for end, name in ((late, "row"), (early, "col")):
        if end.exponent is not None:
            end.exponent = b.named(f"b_{name}{suffix}", end.exponent)
    for end, name in ((late, "row"), (early, "col")):
        if end.fold is not None:
            end.fold = b.named(f"b_fold_{name}{suffix}", end.fold)
    return path


def is_positive(factor: Expr) -> bool:
    """Whether a factor is proven to be 0 or more, so that it has a logarithm."""
    return bounds(factor)[0] >= 0 and not (isinstance(factor, Const) and factor.value == 0)


def is_folded(term: Term, factor: Expr) -> bool:
    """Whether a factor of a stream is part of its exponents, as its logarithm."""
    return bool(term.gates) and is_positive(factor) and not term.exact and not term.axes


def log2_of(log: Expr, lowering: Lowering) -> E:
    """A log gate in base 2; the logarithm of `log(x)` is taken in base 2 at once."""
    inner = plain(log)
    if isinstance(inner, Apply) and inner.fn == "log":
        return lowering.builder.helper("exact_log2", lowering.value(inner.args[0]))
    return lowering.value(inner) * LOG2E


def may_reset(log: Expr) -> bool:
    """Whether a log gate may be -inf for tensors that are finite or are log gates themselves.

    A product of several tensors is taken to be finite: an infinite factor would meet a 0 of the other and give NaN.
    """
    inner = plain(log)
    if isinstance(inner, Apply) and inner.fn == "mul":
        return sum(not isinstance(arg, Const) for arg in inner.args) < 2
    return True


def _varying(path: Path, gate: Gate, lowering: Lowering, rows: Rows, suffix: str) -> None:
    b = lowering.builder
    late, early = path.late, path.early
    value = log2_of(gate.log, lowering)
    if not is_tensor(gate.log):
        value = b.helper("keep", value, rows.valid, size("MASKED"))
    value = value.to("fp64") if path.wide else value
    step = b.let(f"b_g{suffix}", value)
    if may_reset(gate.log):
        cut = b.let(f"b_cut{suffix}", (step < LOWEST).to("int32"))
        b.set(step, where(cut.eq(1), 0.0, step))
        seen = b.let(f"n_cut{suffix}", cumsum(cut))
        at_late = _plus(late.cuts, seen if gate.query_closed else seen - cut)
        at_early = _plus(early.cuts, seen - cut if gate.key_closed else seen)
        path.cuts = _plus(path.cuts, b.let(f"n_all{suffix}", reduce_sum(cut, 0)))
        late.cuts = b.named(f"n_row{suffix}", at_late) if at_late is not None else None
        early.cuts = b.named(f"n_col{suffix}", at_early) if at_early is not None else None
    cum = b.let(f"b_cum{suffix}", cumsum(step))
    total = b.let(f"b_all{suffix}", reduce_sum(step, 0))
    late.exponent = _plus(late.exponent, cum if gate.query_closed else cum - step)
    early.exponent = _plus(early.exponent, cum - step if gate.key_closed else cum)
    path.total = _plus(path.total, total)
    if path.exact:
        rest = b.let(f"b_rest{suffix}", cumsum(step, reverse=True))
        path.rest = _plus(path.rest, rest if gate.key_closed else rest - step)
        path.pairs = _plus(path.pairs, b.let(f"b_path{suffix}", _pair_sums(b, path, gate, step, rows)))


def _pair_sums(b: Builder, path: Path, gate: Gate, step: E, rows: Rows) -> E:
    """The log gate summed along the path of each pair, with no difference of sums."""
    here, early = (rows.offsets.row, rows.offsets.col) if path.backward else (rows.offsets.col, rows.offsets.row)
    seen = here >= early if gate.key_closed else here > early
    steps = b.let("b_steps", where(seen, step.row if path.backward else step.col, 0.0))
    sums = cumsum(steps, axis=1 if path.backward else 0)
    return sums if gate.query_closed else sums - steps


def _constant(path: Path, gate: Gate, rate: E, rows: Rows, alone: bool) -> None:
    late = rows.offsets + 1 if gate.query_closed else rows.offsets
    early = rows.offsets if gate.key_closed else rows.offsets + 1
    path.late.exponent = _plus(path.late.exponent, late * rate)
    path.early.exponent = _plus(path.early.exponent, early * rate)
    path.total = _plus(path.total, rows.count * rate)
    if path.exact:
        path.rest = _plus(path.rest, (rows.count - early) * rate)
        path.pairs = _plus(path.pairs, path.distance(rows, _shift(gate)) * rate)
    elif alone:
        path.rate = rate
        path.shift = _shift(gate)


def _shift(gate: Gate) -> int:
    """What the ends of a path add to the distance of its positions."""
    return int(gate.query_closed) + int(gate.key_closed) - 1


def _factor(path: Path, end: End, factor: Expr, lowering: Lowering, rows: Rows) -> None:
    """Fold a positive factor of a gated stream into the exponents; keep any other as it is."""
    factor = plain(factor)
    value = lift(float(factor.value)) if isinstance(factor, Const) else lowering.value(factor)
    if factor.kind is Kind.BOOL:
        value = where(value, 1.0, 0.0)
    if varies(factor) and (end is path.columns or path.guarded):
        value = lowering.builder.helper("keep", value, rows.valid, size("MASKED"))
    if path.exact or end.exponent is None or not is_positive(factor):
        end.factors.append(lowering.builder.named("b_factor", value))
        return
    folded = lift(math.log2(factor.value)) if isinstance(factor, Const) else pointwise("tl.log2", value)
    end.fold = _plus(end.fold, folded)


def scaled(value: E, factors: list[E], column: bool) -> E:
    """A tile times vectors along its rows (`column`) or its columns, or times tiles; a vector times vectors."""
    for factor in factors:
        plain = len(value.tile.shape) < 2 or len(factor.tile.shape) == 2
        value = value * (factor if plain else factor.col if column else factor.row)
    return value
