"""Gradients of gates that differ by channel, made inside the walks whose outer axis has these channels.

With M_rc,n the whole weight of a pair in channel n, the gradient of the log gate at position u is the sum over the
pairs whose path holds u. The walk of the late ends leaves behind what each has of all columns, `late` [B, T, H, N] in
fp32, and the `states` that come into chunks; the walk of the early ends makes the gradient, per chunk:

    over_u = weight of the pairs that lead over the whole chunk
           + sum over u and what follows in the chunk of what late ends less what early ends have of its pairs
           + sum before u of what early ends have of rows after the chunk

What positions have with themselves is left out on both sides, so that nothing large cancels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sma_compiler.kernel.build import Builder, E, call, reduce_sum, size, zeros
from sma_compiler.kernel.nodes import Tile
from sma_compiler.kernel.rows import slots
from sma_compiler.kernel.sums import Summing

if TYPE_CHECKING:
    from sma_compiler.kernel.channels import ChannelPath
    from sma_compiler.kernel.chunk import Chunk, Chunked, Place, State


class ChannelSums(Summing):
    """The statements of one chunked kernel."""

    def __init__(self, kernel: Chunked, place: Place) -> None:
        super().__init__(kernel, place)
        self.anchor: E | None = None

    def meet(self, chunk: Chunk, states: tuple[State, ...]) -> None:
        """Keep the state that comes into a chunk, or multiply it with the one that the other walk has kept."""
        kernel, inputs, b = self.kernel, self.place.inputs, self.b
        come = "The state that comes into the chunk"
        b.section(f"{come} is kept" if self.asked.pairs else f"{come}, times the one from its other end")
        place = inputs.row() * slots(kernel.arguments, kernel.host) + kernel.slot(self.place, chunk.t0)
        pointer = kernel.arguments.pointer("states", self.named["states", 0])
        at, mask = inputs.matrix(pointer, place, kernel.walk.inner, kernel.walk.outer)
        (state,) = states
        if self.asked.pairs:
            b.helpers.add("store")
            with b.branch(pointer.given()):
                b.do(call("store", at, state.matrix, mask, size("MASKED"), tile=Tile("ptr")))
            return
        self.anchor = b.let("b_anchor", zeros(kernel.outer))
        with b.branch(pointer.given()):
            kept = b.let("b_kept", b.helper("load", at, mask, size("MASKED"), dtype="in"))
            b.set(self.anchor, reduce_sum(state.matrix * kept.to("fp32"), 0))

    def weigh(self, chunk: Chunk, path: ChannelPath, y: E, scores: E, own: E | None) -> None:
        """Add what the chunk's pairs bring to rows y, which have what comes through the state; leave what late ends
        have of both, or make the gradient. own: what positions have with themselves. Few tiles are held at once.
        """
        b, kernel = self.b, self.kernel
        assert chunk.other is not None
        pointer = kernel.arguments.pointer("late_sums", self.named["late", 0])
        outer, inputs = kernel.walk.outer, self.place.inputs

        def address() -> tuple[E, E]:
            begin = inputs.made("late_sums", pointer, outer)
            return inputs.addresses(*begin, outer, chunk.t0, chunk.rows.offsets, chunk.rows.valid)

        through = b.let("b_through", chunk.other * y)
        if self.asked.pairs:
            path.add_product(scores, chunk.x, y, chunk.other, through)
            b.helpers.add("store")
            with b.branch(pointer.given()):
                at, mask = address()
                b.do(call("store", at, through, mask, size("MASKED"), tile=Tile("ptr")))
            return
        assert self.asked.gate is not None
        assert self.anchor is not None
        pairs, early = b.let("b_pairs", zeros("C", kernel.outer)), through
        path.add_product(scores, chunk.x, y, chunk.other, pairs)
        b.section("Gradients of the log gates")
        late = b.let("b_late", zeros("C", kernel.outer))
        with b.branch(pointer.given()):
            at, mask = address()
            b.set(late, b.helper("load", at, mask, size("MASKED")))
        after = after_positions(path, late, pairs)
        over = over_positions(b, path, after, early, chunk.other, own)
        b.set(over, over + (self.anchor * path.across()).row)
        chunk.lowering.bind(self.asked.gate, path.uncut(over))


def over_positions(b: Builder, path: ChannelPath, after: E, early: E, other: E, own: E | None) -> E:
    """The gradients of a chunk's log gates, [C, N], without what leads over the whole chunk.

    after: see `after_positions`. early: what early ends have of later chunks. other, own: the weight of positions with
    themselves is the product of both.
    """
    over = b.let("b_over", after)
    b.set(over, over + path.sums("sums_before", early, path.early_closed))
    if path.late_closed and path.early_closed and own is not None:
        b.set(over, over + other * own)
    return over


def after_positions(path: ChannelPath, late: E, pairs: E) -> E:
    """What late ends, less what early ends have of the chunk's pairs, sum to from the position or from the next on, so
    that a position's own are of those that its path holds.
    """
    after = path.sums("sums_after", late - pairs, path.late_closed)
    if path.late_closed != path.early_closed:
        return after
    return after + pairs if path.early_closed else after - pairs
