"""The sums of `sums.py` in a walk that passes one position after another.

What rows have through the state holds all pairs but their own: `rows` and `columns` are those of the diagonal, and
instead of `net` and `anchors` there is `across`, the weight of the pairs that lead over each position.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sma_compiler.ir.nodes import Expr
from sma_compiler.kernel.build import E, call, lift, reduce_sum
from sma_compiler.kernel.crossing import Crossing
from sma_compiler.kernel.gates import is_folded
from sma_compiler.kernel.inputs import Inputs
from sma_compiler.kernel.linear import Term
from sma_compiler.kernel.lower import Lowering
from sma_compiler.kernel.nodes import Tile
from sma_compiler.kernel.positions import Operands, State, number_of
from sma_compiler.kernel.rows import Span

if TYPE_CHECKING:
    from sma_compiler.kernel.recurrent import Recurrent


class PositionSums(Crossing):
    """The statements that make them in one kernel. tile: which of the outer channels it has."""

    def __init__(self, kernel: Recurrent, inputs: Inputs, span: Span, static: Lowering, tile: E) -> None:
        super().__init__(kernel, inputs, span, static)
        self.tile = tile

    def cross(self, states: Sequence[State]) -> None:
        """Leave the weight of the pairs that lead over the position."""
        for number, across in self.meet(states).items():
            self._write("across", number, across)

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

    def _times(self, value: E, term: Term, factors: Iterable[Expr], folded: bool = False) -> E:
        """A weight times factors; `folded`: times those alone that enter exponents elsewhere."""
        for factor in factors:
            if not folded or is_folded(term, factor):
                value = value * number_of(factor, self.lowering)
        return value

    def _write(self, kind: str, number: int, value: E) -> None:
        """Write a sum for this position, where the launcher wants it."""
        if (kind, number) not in self.named:
            return
        pointer = self.pointer(kind, number)
        value = self.b.named(f"b_{kind}{self.kernel.suffix(number)}", value)
        with self.b.branch(pointer.given()):
            at = self.kernel.position_of_tile(self.inputs, self.tile, pointer, self.t)
            self.b.do(call("tl.store", at, value, tile=Tile("ptr")))
