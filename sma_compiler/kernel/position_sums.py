"""The sums of `sums.py` in a walk that passes one position after another.

What rows have through the state holds all pairs but their own: `rows` and `columns` are those of the diagonal, `net` is
nothing, and `anchors` are the weights of the pairs that lead over the end of each chunk.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sma_compiler.ir.nodes import Expr
from sma_compiler.kernel.build import E, call, lift, reduce_sum, size
from sma_compiler.kernel.gates import is_folded
from sma_compiler.kernel.inputs import Inputs
from sma_compiler.kernel.linear import Term
from sma_compiler.kernel.lower import Lowering
from sma_compiler.kernel.nodes import Tile
from sma_compiler.kernel.positions import Operands, State, number_of
from sma_compiler.kernel.rows import Span, first_slot, slots

if TYPE_CHECKING:
    from sma_compiler.kernel.recurrent import Recurrent


class PositionSums:
    """The statements that make them in one kernel."""

    def __init__(self, kernel: Recurrent, inputs: Inputs, span: Span, tile: E) -> None:
        assert kernel.walk.sums is not None
        self.kernel = kernel
        self.b = kernel.b
        self.inputs = inputs
        self.span = span
        self.tile = tile
        self.asked = kernel.walk.sums
        self.named = kernel.tensors.sums
        self.first = first_slot(kernel.b, kernel.arguments, kernel.host, span)

    def enter(self, t: E, lowering: Lowering) -> None:
        """Say which position is passed."""
        self.t = t
        self.lowering = lowering
        self.other = self.kernel.operand(
            self.inputs, lowering, self.asked.other, self.asked.name, self.kernel.walk.outer
        )

    def weigh(self, number: int, term: Term, at: Operands, through: E, own: E | None) -> None:
        """Sum the weights of a row's pairs. through: the row without its factors; own: the score with itself."""
        b, named = self.b, self.named
        assert at.x is not None
        inter = b.let(f"b_inter{self.kernel.suffix(number)}", reduce_sum(self.other * through, 0))
        kind = "inter" if self.asked.pairs else "through"
        self._write(kind, number, self._times(inter, term, term.row, folded=True))
        if not self.asked.pairs or not {("rows", number), ("columns", number)} & set(named):
            return
        weight = lift(0.0) if own is None else own * reduce_sum(self.other * at.x, 0)
        pair = b.named(f"b_pair{self.kernel.suffix(number)}", weight)
        if ("rows", number) in named:
            rows = self._times(pair, term, term.col)
            self._write("rows", number, self._times(rows, term, term.row, folded=True))
        if ("columns", number) in named:
            columns = self._times(pair, term, term.row)
            self._write("columns", number, self._times(columns, term, term.col, folded=True))

    def meet(self, states: Iterable[State]) -> None:
        """Where a chunk ends: keep the states, or multiply them with those that the other walk has kept."""
        b, walk = self.b, self.kernel.walk
        meeting = [(number, state) for number, state in enumerate(states) if ("states", number) in self.named]
        if not meeting:
            return
        b.section("Where a chunk ends, the states of both walks meet")
        index = b.let("index", self.t - self.span.begin)
        ends = b.let("ends", (index % size("C")).eq(size("C") - 1) | self.t.eq(self.span.end - 1))
        slot = b.let("i_e", self.first + index // size("C"))
        count = slots(self.kernel.arguments, self.kernel.host)
        place = b.let("place", self.inputs.row() * count + slot)
        for number, state in meeting:
            pointer = self._pointer("states", number)
            assert state.matrix is not None
            kept = [(state.matrix, self.inputs.matrix(pointer, place, walk.inner, walk.outer))]
            if state.vector is not None:
                kept.append((state.vector, self.inputs.vector(self._pointer("vectors", number), place)))
            with b.branch(pointer.given().both(ends)):
                if self.asked.pairs:
                    for value, (at, mask) in kept:
                        b.helpers.add("store")
                        b.do(call("store", at, value, mask, size("MASKED"), tile=Tile("ptr")))
                else:
                    at = self._pointer("anchors", number)
                    at = at + self.kernel.row_of_tile(self.inputs, self.tile) * count + slot
                    b.do(call("tl.store", at, self._product(kept), tile=Tile("ptr")))

    def _product(self, kept: list[tuple[E, tuple[E, E]]]) -> E:
        """The inner product of a state and of the one that the other walk kept."""
        total: E | None = None
        for value, (at, mask) in kept:
            other = call("tl.load", at, mask=mask, other=0.0, tile=Tile("in", value.tile.shape))
            product = value * self.b.let("b_kept", other).to("fp32")
            for axis in reversed(range(len(value.tile.shape))):
                product = reduce_sum(product, axis)
            total = product if total is None else total + product
        assert total is not None
        return total

    def _times(self, value: E, term: Term, factors: Iterable[Expr], folded: bool = False) -> E:
        """A weight times factors; `folded`: times those alone that enter exponents elsewhere."""
        for factor in factors:
            if not folded or is_folded(term, factor):
                value = value * number_of(factor, self.lowering)
        return value

    def _pointer(self, kind: str, number: int) -> E:
        return self.kernel.arguments.pointer(f"{kind}{self.kernel.suffix(number)}", self.named[kind, number])

    def _write(self, kind: str, number: int, value: E) -> None:
        """Write a sum for this position, where the launcher wants it."""
        if (kind, number) not in self.named:
            return
        pointer = self._pointer(kind, number)
        value = self.b.named(f"b_{kind}{self.kernel.suffix(number)}", value)
        with self.b.branch(pointer.given()):
            at = self.kernel.position_of_tile(self.inputs, self.tile, pointer, self.t)
            self.b.do(call("tl.store", at, value, tile=Tile("ptr")))
