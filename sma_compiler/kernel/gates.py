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
from sma_compiler.kernel.build import MINUS_INFINITY, E, cumsum, exp2, lift, pointwise, reduce_sum, size, where
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
class Path:
    """Exponents (log2) of one stream in one chunk.

    row [C]: from the chunk's start to each query; col [C]: to each key; total: over the whole chunk; None: 0.
    rate: log2 of the gate where it is constant and the only one; row - col is then taken from the distance. shift: what
    the ends of the path add to the distance. resets: counts of cuts before each query, before each key, in the chunk.
    fold_row, fold_col: log2 of positive factors. row_factors, col_factors: the other factors.
    """

    strict: bool
    row: E | None = None
    col: E | None = None
    total: E | None = None
    rate: E | None = None
    shift: int = 0
    resets: tuple[E, E, E] | None = None
    fold_row: E | None = None
    fold_col: E | None = None
    row_factors: list[E] = field(default_factory=list)
    col_factors: list[E] = field(default_factory=list)

    def from_start(self) -> E | None:
        """The decay from the chunk's start to each query, [C]; None: 1."""
        exponent = _plus(self.row, self.fold_row)
        if exponent is None:
            return None
        return exp2(exponent if self.resets is None else where(self.resets[0].eq(0), exponent, MINUS_INFINITY))

    def to_end(self) -> E | None:
        """The decay from each key to the chunk's end, [C]; None: 1."""
        if self.total is None or self.col is None:
            return None
        exponent = self.total - self.col
        if self.fold_col is not None:
            exponent = exponent + self.fold_col
        if self.resets is not None:
            exponent = where(self.resets[1].eq(self.resets[2]), exponent, MINUS_INFINITY)
        return exp2(exponent)

    def across(self) -> E | None:
        """The decay of a state over the whole chunk; None: 1."""
        if self.total is None:
            return None
        return exp2(self.total if self.resets is None else where(self.resets[2].eq(0), self.total, MINUS_INFINITY))

    def support(self, rows: Rows, transposed: bool = False) -> E:
        """Where a query sees a key, [C, C]; `transposed`: keys by queries."""
        query, key = _ends(rows.offsets, rows.offsets, transposed)
        seen = query > key if self.strict else query >= key
        if self.resets is not None:
            before_query, before_key = _ends(self.resets[0], self.resets[1], transposed)
            seen = seen & before_query.eq(before_key)
        return seen

    def between(self, rows: Rows, transposed: bool = False) -> E | None:
        """The decays of all pairs of the chunk, 0 outside the support, [C, C]; None: the support alone."""
        if self.row is None or self.col is None:
            return None
        if self.rate is not None:
            query, key = _ends(rows.offsets, rows.offsets, transposed)
            distance = query - key + self.shift if self.shift else query - key
            exponent = distance * self.rate
            row, col = self.fold_row, self.fold_col
        else:
            query, key = _ends(_plus(self.row, self.fold_row), self.col, transposed)
            exponent = query - key
            row, col = None, self.fold_col
        for fold, column in ((row, not transposed), (col, transposed)):
            if fold is not None:
                exponent = exponent + (fold.col if column else fold.row)
        return exp2(where(self.support(rows, transposed), exponent, MINUS_INFINITY))


def _ends(query: E | None, key: E | None, transposed: bool) -> tuple[E, E]:
    """What belongs to queries and to keys, laid out along the axes of a [C, C] tile."""
    assert query is not None
    assert key is not None
    return (query.row, key.col) if transposed else (query.col, key.row)


def _plus(a: E | None, b: E | None) -> E | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b


def static_rates(terms: tuple[Term, ...], static: Lowering) -> dict[Gate, E]:
    """log2 of every constant gate, before the loop; -inf as a number whose power is exactly 0."""
    found: dict[Gate, E] = {}
    for term in terms:
        for gate in term.gates:
            if not varies(gate.log) and gate not in found:
                rate = pointwise("tl.maximum", _log2(gate.log, static), LOWEST)
                found[gate] = static.builder.let("log_gate", rate)
    return found


def path_of(term: Term, rates: dict[Gate, E], lowering: Lowering, rows: Rows, suffix: str) -> Path:
    """Build the exponents of one stream in one chunk; `suffix` tells the variables of several streams apart."""
    path = Path(term.strict)
    for gate in term.gates:
        if gate in rates:
            _constant(path, gate, rates[gate], rows, alone=len(term.gates) == 1)
        else:
            _varying(path, gate, lowering, rows, suffix)
    return with_factors(path, term.row, term.col, lowering, rows, suffix)


def with_factors(
    path: Path, row: Iterable[Expr], col: Iterable[Expr], lowering: Lowering, rows: Rows, suffix: str
) -> Path:
    """Fold factors at the query and at the key into a path."""
    b = lowering.builder
    for factor in row:
        _factor(path, factor, lowering, rows, query=True)
    for factor in col:
        _factor(path, factor, lowering, rows, query=False)
    if path.row is not None and path.fold_row is not None and path.rate is None:
        path.row, path.fold_row = b.let(f"b_row{suffix}", path.row + path.fold_row), None
    if path.col is not None and path.fold_col is not None and path.rate is None:
        path.col, path.fold_col = b.let(f"b_col{suffix}", path.col - path.fold_col), None
    for name in ("row", "col", "fold_row", "fold_col"):
        value = getattr(path, name)
        if value is not None:
            setattr(path, name, b.named(f"b_{name}{suffix}", value))
    return path


def is_positive(factor: Expr) -> bool:
    """Whether a factor is proven to be 0 or more, so that it has a logarithm."""
    return bounds(factor)[0] >= 0 and not (isinstance(factor, Const) and factor.value == 0)


def _log2(log: Expr, lowering: Lowering) -> E:
    """A log gate in base 2; the logarithm of `log(x)` is taken in base 2 at once."""
    inner = plain(log)
    if isinstance(inner, Apply) and inner.fn == "log":
        return pointwise("tl.log2", lowering.value(inner.args[0]))
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
    value = _log2(gate.log, lowering)
    if not is_tensor(gate.log):
        value = b.helper("keep", value, rows.valid, size("MASKED"))
    step = b.let(f"b_g{suffix}", value)
    if may_reset(gate.log):
        cut = b.let(f"b_cut{suffix}", (step < LOWEST).to("int32"))
        b.set(step, where(cut.eq(1), 0.0, step))
        seen = b.let(f"n_cut{suffix}", cumsum(cut))
        counts = (
            seen if gate.query_closed else seen - cut,
            seen - cut if gate.key_closed else seen,
            b.let(f"n_all{suffix}", reduce_sum(cut, 0)),
        )
        if path.resets is not None:
            counts = tuple(x + y for x, y in zip(path.resets, counts, strict=True))  # type: ignore[assignment]
        path.resets = (b.named(f"n_row{suffix}", counts[0]), b.named(f"n_col{suffix}", counts[1]), counts[2])
    cum = b.let(f"b_cum{suffix}", cumsum(step))
    total = b.let(f"b_all{suffix}", reduce_sum(step, 0))
    path.row = _plus(path.row, cum if gate.query_closed else cum - step)
    path.col = _plus(path.col, cum - step if gate.key_closed else cum)
    path.total = _plus(path.total, total)


def _constant(path: Path, gate: Gate, rate: E, rows: Rows, alone: bool) -> None:
    row = rows.offsets + 1 if gate.query_closed else rows.offsets
    col = rows.offsets if gate.key_closed else rows.offsets + 1
    path.row = _plus(path.row, row * rate)
    path.col = _plus(path.col, col * rate)
    path.total = _plus(path.total, rows.count * rate)
    if alone:
        path.rate = rate
        path.shift = int(gate.query_closed) + int(gate.key_closed) - 1


def _factor(path: Path, factor: Expr, lowering: Lowering, rows: Rows, query: bool) -> None:
    """Fold a positive factor of a gated stream into the exponents; keep any other as it is."""
    factor = plain(factor)
    value = lift(float(factor.value)) if isinstance(factor, Const) else lowering.value(factor)
    if factor.kind is Kind.BOOL:
        value = where(value, 1.0, 0.0)
    if varies(factor) and not query:
        value = lowering.builder.helper("keep", value, rows.valid, size("MASKED"))
    if path.row is None or not is_positive(factor):
        factors = path.row_factors if query else path.col_factors
        factors.append(lowering.builder.named("b_factor", value))
        return
    folded = lift(math.log2(factor.value)) if isinstance(factor, Const) else pointwise("tl.log2", value)
    if query:
        path.fold_row = _plus(path.fold_row, folded)
    else:
        path.fold_col = _plus(path.fold_col, folded)


def scaled(value: E, factors: list[E], column: bool) -> E:
    """A tile times vectors along its rows (`column`) or its columns; a vector times vectors."""
    for factor in factors:
        along = factor.col if column else factor.row
        value = value * (factor if len(value.tile.shape) < 2 else along)
    return value
