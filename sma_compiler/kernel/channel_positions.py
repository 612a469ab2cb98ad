"""The gradients of `channel_sums.py` in a walk that passes one position after another, each made at its position."""

from __future__ import annotations

from collections.abc import Sequence

from sma_compiler.kernel.build import E, call, size, where, zeros
from sma_compiler.kernel.crossing import Crossing
from sma_compiler.kernel.gates import LOWEST, log2_of
from sma_compiler.kernel.inputs import EXTENT
from sma_compiler.kernel.linear import Term
from sma_compiler.kernel.nodes import Tile
from sma_compiler.kernel.positions import Operands, State, number_of


class ChannelPositions(Crossing):
    """The statements of one kernel."""

    def cross(self, states: Sequence[State]) -> None:
        """Have the weight of the pairs that lead over the position."""
        self.across = self.meet(states)[0]

    def weigh(self, number: int, term: Term, at: Operands, through: E, own: E | None) -> None:
        """Leave what a late end has of other positions, or make the gradient. own: the score with itself."""
        b = self.b
        weights = self.other * through
        factors = [number_of(factor, self.lowering) for factor in term.row]
        for factor in factors:
            weights = weights * factor
        pointer, outer = self.kernel.arguments.pointer("late_sums", self.named["late", 0]), self.kernel.walk.outer
        offsets, valid = self.inputs.channels[outer]

        def address() -> E:
            base, stride = self.inputs.made("late_sums", pointer, outer)
            return self.kernel.entry(base, self.t, stride) + offsets

        if self.asked.pairs:
            b.helpers.add("store")
            with b.branch(pointer.given()):
                b.do(call("store", address(), weights, valid, size("MASKED"), tile=Tile("ptr")))
            return
        assert self.asked.gate is not None
        gate = term.gates[0]
        late_closed, early_closed = gate.key_closed, gate.query_closed
        found = self.across
        if late_closed:
            late = b.let("b_late", zeros(EXTENT[outer]))
            with b.branch(pointer.given()):
                b.set(late, b.helper("load", address(), valid, size("MASKED")))
            found = found + late
        if early_closed:
            found = found + weights
        if late_closed and early_closed and own is not None and at.x is not None:
            pair = self.other * (own * at.x)
            for factor in (*factors, *(number_of(factor, self.lowering) for factor in term.col)):
                pair = pair * factor
            found = found + pair
        for gate in term.gates:
            found = where(log2_of(gate.log, self.lowering) < LOWEST, 0.0, found)
        self.lowering.bind(self.asked.gate, b.let("b_dgate", found))
