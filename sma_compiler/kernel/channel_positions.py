"""The gradients of `channel_sums.py` in a walk that passes one position after another.

The walk of the early ends goes from the end and carries the weight of the pairs that lead over a position, taken anew
where a chunk ends from the states of both walks, so that nothing drifts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sma_compiler.kernel.build import E, call, size, where, zeros
from sma_compiler.kernel.gates import LOWEST, log2_of
from sma_compiler.kernel.inputs import EXTENT, Inputs
from sma_compiler.kernel.linear import Term
from sma_compiler.kernel.lower import Lowering
from sma_compiler.kernel.nodes import Tile
from sma_compiler.kernel.positions import Operands, State, number_of
from sma_compiler.kernel.rows import Span, first_slot, slots

if TYPE_CHECKING:
    from sma_compiler.kernel.recurrent import Recurrent


class ChannelPositions:
    """The statements of one kernel."""

    def __init__(self, kernel: Recurrent, inputs: Inputs, span: Span) -> None:
        assert kernel.walk.sums is not None
        self.kernel = kernel
        self.b = kernel.b
        self.inputs = inputs
        self.span = span
        self.asked = kernel.walk.sums
        self.named = kernel.tensors.sums
        self.first = first_slot(kernel.b, kernel.arguments, kernel.host, span)
        outer = kernel.walk.outer
        self.late = inputs.made("late_sums", self._pointer("late_sums", "late"), outer)
        if not self.asked.pairs:
            self.over = self.b.let("b_over", zeros(EXTENT[outer]))

    def enter(self, t: E, lowering: Lowering) -> None:
        """Say which position is passed."""
        self.t = t
        self.lowering = lowering
        outer = self.kernel.walk.outer
        self.other = self.kernel.operand(self.inputs, lowering, self.asked.other, self.asked.name, outer)

    def meet(self, states: Iterable[State]) -> None:
        """Where a chunk ends: keep the state, or multiply it with the one that the other walk has kept."""
        b, walk, kernel = self.b, self.kernel.walk, self.kernel
        (state,) = states
        assert state.matrix is not None
        b.section("Where a chunk ends, the states of both walks meet")
        index = b.let("index", self.t - self.span.begin)
        ends = b.let("ends", (index % size("C")).eq(size("C") - 1) | self.t.eq(self.span.end - 1))
        slot = self.first + index // size("C")
        place = b.let("place", self.inputs.row() * slots(kernel.arguments, kernel.host) + slot)
        pointer = self._pointer("states", "states")
        at, mask = self.inputs.matrix(pointer, place, walk.inner, walk.outer)
        with b.branch(pointer.given().both(ends)):
            if self.asked.pairs:
                b.helpers.add("store")
                b.do(call("store", at, state.matrix, mask, size("MASKED"), tile=Tile("ptr")))
            else:
                kept = call("tl.load", at, mask=mask, other=0.0, tile=Tile("in", state.matrix.tile.shape))
                product = state.matrix * b.let("b_kept", kept).to("fp32")
                b.helpers.add("sum_first")
                b.set(self.over, call("sum_first", product, tile=Tile("fp32", product.tile.shape[1:])))

    def weigh(self, number: int, term: Term, at: Operands, through: E, own: E | None) -> None:
        """Leave what a late end has of other positions, or make the gradient. own: the score with itself."""
        b = self.b
        weights = self.other * through
        factors = [number_of(factor, self.lowering) for factor in term.row]
        for factor in factors:
            weights = weights * factor
        pointer = self._pointer("late_sums", "late")
        base, stride = self.late
        offsets, valid = self.inputs.channels[self.kernel.walk.outer]
        address = self.kernel.entry(base, self.t, stride) + offsets
        if self.asked.pairs:
            b.helpers.add("store")
            with b.branch(pointer.given()):
                b.do(call("store", address, weights, valid, size("MASKED"), tile=Tile("ptr")))
            return
        assert self.asked.gate is not None
        gate = term.gates[0]
        late_closed, early_closed = gate.key_closed, gate.query_closed
        early = b.let(f"b_early{number or ''}", weights)
        late = b.let("b_late", zeros(EXTENT[self.kernel.walk.outer]))
        with b.branch(pointer.given()):
            b.set(late, b.helper("load", address, valid, size("MASKED")))
        b.set(self.over, self.over + (late - early))
        found = self.over
        if not late_closed:
            found = found - late
        if early_closed:
            found = found + early
        if late_closed and early_closed and own is not None and at.x is not None:
            pair = self.other * (own * at.x)
            for factor in (*factors, *(number_of(factor, self.lowering) for factor in term.col)):
                pair = pair * factor
            found = found + pair
        for gate in term.gates:
            found = where(log2_of(gate.log, self.lowering) < LOWEST, 0.0, found)
        self.lowering.bind(self.asked.gate, b.let("b_dgate", found))

    def _pointer(self, name: str, kind: str) -> E:
        return self.kernel.arguments.pointer(name, self.named[kind, 0])
