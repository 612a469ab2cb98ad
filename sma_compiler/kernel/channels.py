"""The path of a stream whose gate differs by channel, inside a chunk.

A gate lies along one axis of channels, and so along the inner or the outer axis of a walk, g [C, N] in powers of 2:

    inner   score_rc = sum over n of  p_rn  2 ** path_n(r, c)  s_cn       made ahead, with the operands of the state
    outer   y_ro = sum over c of  (p_r . s_c)  2 ** path_o(r, c)  x_co

All exponents are sums of gates along a path, of which none is the difference of two: a gate of -inf counts as one so
low that its power is 0, and what other channels and later positions have is as exact as without it.
"""

from __future__ import annotations

from dataclasses import dataclass

from sma_compiler.ir.nodes import Expr
from sma_compiler.kernel.build import Builder, E, call, exp2, path, pointwise, reduce_sum, where
from sma_compiler.kernel.gates import LOWEST, Rows, log2_of
from sma_compiler.kernel.linear import Term, is_tensor, varies
from sma_compiler.kernel.lower import Lowering
from sma_compiler.kernel.nodes import Name, Tile

CUT = -1e4
"""What a log2 gate is at least: 64 of them are a finite number, and the power of one is 0."""


def axis_of(term: Term) -> str:
    """The axis of channels that the gates of a stream differ by; "": they do not."""
    return term.axes[0] if term.axes else ""


@dataclass(frozen=True)
class ChannelPath:
    """Powers of 2 of one chunk, [C, N], for a walk whose rows are the late or (`backward`) the early ends.

    rows: of the chunk. steps: log2 of the gate at each row. late_closed, early_closed: whether paths hold their ends.
    """

    strict: bool
    backward: bool
    builder: Builder
    rows: Rows
    steps: E
    late_closed: bool
    early_closed: bool

    def from_start(self) -> E:
        """The decay from the chunk's start to each late end."""
        return exp2(self.sums("sums_before", self.steps, self.late_closed))

    def to_end(self) -> E:
        """The decay from each early end to the chunk's end."""
        return exp2(self.sums("sums_after", self.steps, self.early_closed))

    def entering(self) -> E:
        """The decay between each row and where the state comes into the chunk."""
        return self.to_end() if self.backward else self.from_start()

    def leaving(self) -> E:
        """The decay between each column and where the state goes out of the chunk."""
        return self.from_start() if self.backward else self.to_end()

    def across(self) -> E:
        """The decay of a state over the whole chunk, [N]."""
        return exp2(reduce_sum(self.steps, 0))

    def own(self) -> E | None:
        """The decay of a position with itself; None: 1."""
        return exp2(self.steps) if self.late_closed and self.early_closed else None

    def uncut(self, gradient: E) -> E:
        """The gradient of the log gates, 0 where they cut."""
        return where(self.steps < LOWEST, 0.0, gradient)

    def reach(self) -> E:
        """What no sum of log2 gates from the first row on is larger than, by channel, [N]."""
        return reduce_sum(pointwise("tl.abs", self.steps), 0)

    def farthest(self, sums: E) -> E:
        """What no sum of log2 gates from the first row on is larger than."""
        self.builder.helpers.add("farthest")
        return call("farthest", sums, tile=Tile("fp32"))

    def scores(self, late: E, early: E) -> E:
        """Weighted scores of the chunk's pairs, [C, C], rows late, without those of positions with themselves."""
        self.builder.helpers.add("scores_by_halves")
        given = (late, early, self.steps, self.rows.offsets, self.late_closed, self.early_closed)
        tile = Tile("fp32", ("C", "C"))
        return call("scores_by_halves", *given, path("DOT"), path("PRECISION"), tile=tile)

    def powers(self, sums: E) -> tuple[E, E]:
        """Powers of 2 that decay late ends from the chunk's start, and restore early ends to it, where all are narrow.

        sums: of the gates from the first row to every row.
        """
        late = sums if self.late_closed else sums - self.steps
        early = sums - self.steps if self.early_closed else sums
        return exp2(late), exp2(-early)

    def add_product(
        self, scores: E, x: E, y: E, other: E | None = None, sums: E | None = None, helper: str = "channel_product"
    ) -> None:
        """Add scores times the weights of pairs times x, [C, N], to y, and the same times `other` to `sums`.

        What positions have with themselves is left out. helper: also `product_by_halves`.
        """
        b, tile = self.builder, self.steps.tile
        unused = E(Name(tile, b.fresh("b_unused")))
        tensors = (scores, x, x if other is None else other, y, y if sums is None else sums, self.steps)
        b.helpers.add(helper)
        made = call(
            helper,
            *tensors,
            self.rows.offsets,
            self.backward,
            self.late_closed,
            self.early_closed,
            path("DOT"),
            path("PRECISION"),
            tile=tile,
        )
        b.assign((y, unused if sums is None else sums), made)

    def sums(self, helper: str, x: E, closed: bool) -> E:
        """Sums of rows from the first or to the last, `sums_before` or `sums_after`."""
        self.builder.helpers.add(helper)
        return call(helper, x, self.rows.offsets, closed, path("DOT"), path("PRECISION"), tile=x.tile)


def channel_path(term: Term, backward: bool, lowering: Lowering, rows: Rows, inside: E) -> ChannelPath:
    """The path of a stream in one chunk. term: told by time. inside: where rows and channels are in the tensor."""
    ends, *more = term.gates
    steps = step_of(ends.log, lowering, inside)
    for gate in more:
        steps = lowering.builder.let("b_g", steps + step_of(gate.log, lowering, inside))
    return ChannelPath(term.strict, backward, lowering.builder, rows, steps, ends.query_closed, ends.key_closed)


def step_of(log: Expr, lowering: Lowering, inside: E) -> E:
    """log2 of a gate at every row of a chunk, [C, N]: 0 outside of the tensor, finite inside."""
    value = log2_of(log, lowering)
    if len(value.tile.shape) < 2:
        value = value.col if varies(log) else value.row
    if not is_tensor(log) or value.tile.shape != inside.tile.shape:
        value = where(inside, value, 0.0)
    return lowering.builder.let("b_g", pointwise("tl.maximum", value, CUT))
