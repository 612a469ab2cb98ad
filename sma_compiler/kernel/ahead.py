"""Paths of gates that vary in time, made ahead of the other kernels: one pass over the gates, nothing wider.

For every chunk it sums the log gates and folds in the logarithms of positive factors, so that the kernels which follow
load exponents, [B, H, T] in fp32, and no chain of exp, log and running sums delays their matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sma_compiler.ir.nodes import Expr, Param, postorder
from sma_compiler.kernel.build import E, call, size
from sma_compiler.kernel.gates import Path, Rows, is_positive, may_reset
from sma_compiler.kernel.linear import Term, varies
from sma_compiler.kernel.nodes import Tile


@dataclass(frozen=True)
class Split:
    """A stream whose path is made ahead. ahead: its gates and small positive factors; row, col: the other factors."""

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
        """The tensors that hold the path: "row" and "col" [B, H, T], "all" [B, H, chunks], and counts of cuts."""
        ends = ("row", "col") if self.two_ended else ("row",)
        cuts = tuple(f"cut_{end}" for end in (*ends, "all")) if self.cuts else ()
        return (*ends, "all", *cuts)


def split(term: Term) -> Split | None:
    """What of a stream is made ahead; None where no gate varies in time."""
    if not any(varies(gate.log) for gate in term.gates):
        return None
    small_row, row = _partition(term.row)
    small_col, col = _partition(term.col)
    return Split(replace(term, row=small_row, col=small_col), row, col)


def _partition(factors: tuple[Expr, ...]) -> tuple[tuple[Expr, ...], tuple[Expr, ...]]:
    """Factors that are positive, vary in time and read no channels; and the others."""
    small = tuple(x for x in factors if varies(x) and is_positive(x) and not _reads_channels(x))
    return small, tuple(x for x in factors if x not in small)


def _reads_channels(expr: Expr) -> bool:
    return any(isinstance(x, Param) and {"key", "value"} & set(x.axes) for x in postorder((expr,)))


def parts(path: Path, made: Split) -> dict[str, E]:
    """The tiles of a path by the array that holds each."""
    assert path.row is not None
    assert path.col is not None
    assert path.total is not None
    found = {"row": path.row, "col": path.col, "all": path.total}
    if path.resets is not None:
        found.update(zip(("cut_row", "cut_col", "cut_all"), path.resets, strict=True))
    return {name: found[name] for name in made.arrays}


def path_from(loaded: dict[str, E], strict: bool) -> Path:
    """The path that loaded arrays make."""
    row = loaded.get("row")
    resets = None
    cut_row, cut_col = (loaded.get(name) for name in ("cut_row", "cut_col"))
    cut_row, cut_col = cut_row or cut_col, cut_col or cut_row
    if cut_row is not None and cut_col is not None:
        resets = (cut_row, cut_col, loaded["cut_all"])
    return Path(strict, row, loaded.get("col", row), loaded["all"], resets=resets)


def address(pointer: E, name: str, head: E, t0: E, rows: Rows, length: E) -> E:
    """Where one head keeps an array of a chunk; `head` is its index in [B, H]."""
    if name.endswith("all"):
        count = call("tl.cdiv", length, size("C"), tile=Tile("int32"))
        return pointer + head * count + t0 // size("C")
    return pointer + head * length + (t0 + rows.offsets)
