"""Paths of gates that vary in time, made ahead of the other kernels: one pass over the gates, nothing wider.

For every chunk it sums the log gates and folds in the logarithms of positive factors, so that the kernels which follow
load exponents, [B, H, T] in fp32, and no chain of exp, log and running sums delays their matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sma_compiler.ir.nodes import Expr, Param, postorder
from sma_compiler.kernel.build import E
from sma_compiler.kernel.gates import Path, Rows, is_positive, may_reset, static_rates
from sma_compiler.kernel.linear import Term, varies
from sma_compiler.kernel.lower import Lowering
from sma_compiler.kernel.walk import Walk
from sma_compiler.mask.nodes import Gate


@dataclass(frozen=True)
class Split:
    """A stream whose path is made ahead. ahead: its gates and small positive factors; row, col: the other factors.

    `row` and `col` belong to the late and the early end.
    """

    ahead: Term
    row: tuple[Expr, ...]
    col: tuple[Expr, ...]

    @property
    def cuts(self) -> bool:
        """Whether the path counts cuts."""
        return any(may_reset(gate.log) for gate in self.ahead.gates if varies(gate.log))

    @property
    def two_ended(self) -> bool:
        """Whether queries and keys have exponents of their own."""
        ends = {(gate.query_closed, gate.key_closed) for gate in self.ahead.gates}
        return bool(self.ahead.row or self.ahead.col) or ends != {(True, False)}

    @property
    def arrays(self) -> tuple[str, ...]:
        """The tensors that hold the path: "row" and "col" [B, H, T], "all" [B, H, slots], and counts of cuts."""
        ends = ("row", "col") if self.two_ended else ("row",)
        cuts = tuple(f"cut_{end}" for end in (*ends, "all")) if self.cuts else ()
        return (*ends, "all", *cuts)


def split(term: Term) -> Split | None:
    """What of a stream is made ahead; None where no gate varies in time, or a kernel needs more than its sums."""
    if term.exact or term.axes or not any(varies(gate.log) for gate in term.gates):
        return None
    small_row, row = _partition(term.row)
    small_col, col = _partition(term.col)
    return Split(replace(term, row=small_row, col=small_col), row, col)


def rates_inside(walk: Walk, static: Lowering) -> dict[Gate, E]:
    """log2 of every constant gate of the paths that a walk makes itself: nothing else is read of those made ahead."""
    return static_rates(tuple(term for term in walk.paths if split(term) is None), static)


def _partition(factors: tuple[Expr, ...]) -> tuple[tuple[Expr, ...], tuple[Expr, ...]]:
    """Factors that are positive, vary in time and read no channels; and the others."""
    small = tuple(x for x in factors if varies(x) and is_positive(x) and not _reads_channels(x))
    return small, tuple(x for x in factors if x not in small)


def _reads_channels(expr: Expr) -> bool:
    return any(isinstance(x, Param) and {"key", "value"} & set(x.axes) for x in postorder((expr,)))


def parts(path: Path, made: Split) -> dict[str, E]:
    """The tiles of a path by the array that holds each."""
    tiles = {
        "row": path.late.exponent,
        "col": path.early.exponent,
        "all": path.total,
        "cut_row": path.late.cuts,
        "cut_col": path.early.cuts,
        "cut_all": path.cuts,
    }
    found: dict[str, E] = {}
    for name in made.arrays:
        tile = tiles[name]
        assert tile is not None
        found[name] = tile
    return found


def fill(path: Path, loaded: dict[str, E]) -> None:
    """Give a path the exponents that loaded arrays hold; where the ends share one, both have it."""
    row, col = loaded.get("row"), loaded.get("col")
    cut_row, cut_col = loaded.get("cut_row"), loaded.get("cut_col")
    path.late.exponent, path.early.exponent = row or col, col or row
    path.late.cuts, path.early.cuts = cut_row or cut_col, cut_col or cut_row
    path.total, path.cuts = loaded["all"], loaded.get("cut_all")


def address(pointer: E, name: str, head: E, t0: E, rows: Rows, length: E, slots: E, slot: E) -> E:
    """Where one head keeps an array of a chunk; `head` is its index in [B, H], `slot` that of the chunk."""
    if name.endswith("all"):
        return pointer + head * slots + slot
    return pointer + head * length + (t0 + rows.offsets)
