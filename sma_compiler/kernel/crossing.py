"""The weight of the pairs whose path leads over a position, in walks that pass one position after another.

A log gate weighs what is before its position for what comes after it, so its gradient is the product of two states,
decayed by the gate. The walk of the late ends keeps its state before every C positions; that of the early ends comes
from the other side, makes the states between again, and multiplies: a sum of products, in which nothing cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sma_compiler.kernel.build import E, call, pointwise, reduce_sum, size
from sma_compiler.kernel.inputs import Inputs
from sma_compiler.kernel.lower import Lowering
from sma_compiler.kernel.nodes import Tile
from sma_compiler.kernel.positions import Operands, State
from sma_compiler.kernel.rows import Span, first_slot, slots

if TYPE_CHECKING:
    from sma_compiler.kernel.recurrent import Recurrent


class Crossing:
    """What both walks of it have in common. static: what does not vary in time."""

    def __init__(self, kernel: Recurrent, inputs: Inputs, span: Span, static: Lowering) -> None:
        assert kernel.walk.sums is not None
        self.kernel = kernel
        self.b = kernel.b
        self.inputs = inputs
        self.span = span
        self.static = static
        self.asked = kernel.walk.sums
        self.named = kernel.tensors.sums
        self.first = first_slot(kernel.b, kernel.arguments, kernel.host, span)

    def enter(self, t: E, lowering: Lowering) -> None:
        """Say which position is passed."""
        self.t = t
        self.lowering = lowering
        self.other = self._other(lowering)

    def keep(self, states: Sequence[State]) -> None:
        """Keep the states before the first of every C positions."""
        b = self.b
        if not any(("states", number) in self.named for number in range(len(states))):
            return
        b.section("The state before every C positions is kept")
        index = b.let("index", self.t - self.span.begin)
        begins = (index % size("C")).eq(0)
        if self.kernel.walk.backward:
            begins = (index % size("C")).eq(size("C") - 1) | self.t.eq(self.span.end - 1)
        begins, place = b.let("begins", begins), self._place(index)
        for number, state in enumerate(states):
            if ("states", number) in self.named:
                with b.branch(self.pointer("states", number).given().both(begins)):
                    for value, (at, mask) in self._kept(number, state, place):
                        b.helpers.add("store")
                        b.do(call("store", at, value, mask, size("MASKED"), tile=Tile("ptr")))

    def meet(self, states: Sequence[State]) -> dict[int, E]:
        """By stream, the weight of the pairs that lead over the position; of each outer channel if gates differ so."""
        b, kernel = self.b, self.kernel
        asked = [number for number in range(len(states)) if ("states", number) in self.named]
        if not asked:
            return {}
        b.section("Pairs that lead over the position: the state before it, made again, times what is carried")
        index = b.let("index", self.t - self.span.begin)
        place = self._place(index)
        before = [kernel.empty(number, "b_before", "b_before_z") for number in asked]
        found = dict(zip(asked, before, strict=True))
        for number, state in found.items():
            with b.branch(self.pointer("states", number).given()):
                for value, (at, mask) in self._kept(number, state, place):
                    kept = b.helper("load", at, mask, size("MASKED"), dtype="in")
                    b.set(value, kept.to("fp32"))
        self._follow(index, found)
        return {number: self._across(number, states[number], state) for number, state in found.items()}

    def pointer(self, kind: str, number: int) -> E:
        """Of what both walks have to do with."""
        return self.kernel.arguments.pointer(f"{kind}{self.kernel.suffix(number)}", self.named[kind, number])

    def _other(self, lowering: Lowering) -> E:
        asked = self.asked
        return self.kernel.operand(self.inputs, lowering, asked.other, asked.name, self.kernel.walk.outer)

    def _place(self, index: E) -> E:
        count = slots(self.kernel.arguments, self.kernel.host)
        return self.b.let("place", self.inputs.row() * count + (self.first + index // size("C")))

    def _kept(self, number: int, state: State, place: E) -> list[tuple[E, tuple[E, E]]]:
        """The parts of a state, and where they are kept."""
        walk = self.kernel.walk
        assert state.matrix is not None
        found = [(state.matrix, self.inputs.matrix(self.pointer("states", number), place, walk.inner, walk.outer))]
        if state.vector is not None and ("vectors", number) in self.named:
            found.append((state.vector, self.inputs.vector(self.pointer("vectors", number), place)))
        return found

    def _follow(self, index: E, states: dict[int, State]) -> None:
        """Carry the states from where they were kept to the position."""
        b, kernel, walk = self.b, self.kernel, self.kernel.walk
        count, first = index % size("C"), self.t - index % size("C")
        if not walk.backward:
            last = pointwise("tl.minimum", index // size("C") * size("C") + size("C"), self.span.end - self.span.begin)
            first = b.let("last", self.span.begin + last - 1)
            count = first - self.t
        exprs = [walk.p, self.asked.other]
        for term in walk.terms:
            exprs += [*term.row, *(gate.log for gate in term.gates)]
        steps = call("range", count, tile=Tile("int32"))
        with b.scope(), b.loop("m", steps, Tile("int32")) as m:
            u = b.let("u", first + m if walk.backward else first - m)
            lowering = kernel.position(self.inputs, exprs, self.static, u)
            p = kernel.operand(self.inputs, lowering, walk.p, walk.names[0], walk.inner)
            kernel.follow(states, Operands(p, p, self._other(lowering)), lowering)

    def _across(self, number: int, after: State, before: State) -> E:
        b, term = self.b, self.kernel.walk.terms[number]
        assert after.matrix is not None
        assert before.matrix is not None
        b.helpers.add("sum_first")
        product = after.matrix * before.matrix
        total = call("sum_first", product, tile=Tile("fp32", product.tile.shape[1:]))
        if not term.axes:
            total = reduce_sum(total, 0)
            if after.vector is not None and before.vector is not None:
                total = total + reduce_sum(after.vector * before.vector, 0)
        across = b.let(f"b_across{self.kernel.suffix(number)}", total)
        for decay in self.kernel.decays(number, term, self.lowering):
            b.set(across, across * decay.value)
        return across
