"""Sums of the pairs' weights that gradients of gates and of factors need, made inside a walk.

Of a pair (r, c), M_rc is its whole weight: path and factors times both products, so that the gradient of a log gate is
the sum of M over the pairs whose path holds it. A factor that is no exponent may be 0: for its gradient M is summed
without it. For each stream, [tiles, B, H, T] in fp32 by tiles of outer channels:

    net      what late ends have of a chunk's pairs without the diagonal, less what early ends have; with what rows have
             through the state, counted + where rows are the late ends, else -
    rows     the sum over columns, all of them, without the row's factors
    columns  the sum over rows, of the chunk's pairs alone, without the column's factors
    through  the sum over columns outside the chunk, without the row's factors; of the walk that counts no pairs

At the end of every stretch the walk that counts pairs keeps its `states` [B, H, stretches, K, V] and `vectors`
[B, H, stretches, K]; the other one sums their products with its own to `anchors` [tiles, B, H, stretches]: the weight
of all pairs whose path leads over that place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sma_compiler.kernel.build import E, call, dot, reduce_sum, size, trans, where
from sma_compiler.kernel.gates import scaled
from sma_compiler.kernel.nodes import Tile
from sma_compiler.kernel.rows import first_stretch
from sma_compiler.kernel.walk import STRETCH

if TYPE_CHECKING:
    from sma_compiler.kernel.chunk import Chunk, Chunked, Place, State


class PathSums:
    """The statements that make them in one kernel."""

    def __init__(self, kernel: Chunked, place: Place) -> None:
        assert kernel.walk.sums is not None
        self.kernel = kernel
        self.b = kernel.b
        self.place = place
        self.asked = kernel.walk.sums
        self.named = kernel.tensors.sums
        self.first = first_stretch(kernel.b, kernel.arguments, kernel.host, place.span)
        self.pairs: dict[tuple[str, int], E] = {}

    def weigh(self, chunk: Chunk, scores: E, decays: list[E], products: E | None = None) -> None:
        """Sum the weights of the chunk's pairs. decays: of each stream; none where the scores hold all there is.

        products: of the operands with the outer axis, where they are made already.
        """
        b = self.b
        products = products or b.let("b_products", dot(self._other(chunk), trans(chunk.x)))
        for number, (term, path) in enumerate(zip(self.kernel.walk.terms, chunk.paths, strict=True)):
            suffix = self.kernel.suffix(number)
            pairs = b.let(f"b_pairs{suffix}", (scores * decays[number] if decays else scores) * products)
            at_rows, at_columns = path.rows.factors, path.columns.factors
            if ("rows", number) in self.named:
                value = reduce_sum(scaled(pairs, at_columns, column=False), 1)
                self.pairs["rows", number] = b.let(f"b_rows{suffix}", value)
            if ("columns", number) in self.named:
                value = reduce_sum(scaled(pairs, at_rows, column=True), 0)
                self._write("columns", number, chunk, value)
            if ("net", number) in self.named:
                whole = scaled(scaled(pairs, at_rows, column=True), at_columns, column=False)
                if not term.strict:
                    whole = where(chunk.rows.offsets.col.ne(chunk.rows.offsets.row), whole, 0.0)
                if whole is not pairs:
                    b.set(pairs, whole)
                value = reduce_sum(pairs, 1) - reduce_sum(pairs, 0)
                self.pairs["net", number] = b.let(f"b_net{suffix}", value)

    def through(self, chunk: Chunk, number: int, rows: E) -> None:
        """Add what rows [C, outer] have of one stream through the state, without their factors; write the sums."""
        value = reduce_sum(self._other(chunk).to("fp32") * rows, 1)
        if not self.asked.pairs:
            self._write("through", number, chunk, value)
            return
        inter = self.b.let(f"b_through{self.kernel.suffix(number)}", value)
        if ("rows", number) in self.pairs:
            self._write("rows", number, chunk, self.pairs["rows", number] + inter)
        if ("net", number) in self.pairs:
            net = self.pairs["net", number] + scaled(inter, chunk.paths[number].rows.factors, column=True)
            self._write("net", number, chunk, -net if self.kernel.walk.backward else net)

    def meet(self, chunk: Chunk, states: tuple[State, ...]) -> None:
        """Where a stretch ends: keep the states, or multiply them with those that the other walk has kept."""
        b, walk, arguments = self.b, self.kernel.walk, self.kernel.arguments
        if all(kind != "states" for kind, _ in self.named):
            return
        b.section("Where a stretch of chunks ends, the states of both walks meet")
        index = b.let("i_c", (chunk.t0 - self.place.span.begin) // size("C"))
        ends = b.let("ends", (index % STRETCH).eq(STRETCH - 1) | (chunk.t0 + size("C") >= self.place.span.end))
        stretch = b.let("i_e", self.first + index // STRETCH)
        stretches = arguments.integer("STRETCHES", self.kernel.host.stretches)
        inputs = self.place.inputs
        place = b.let("place", inputs.row() * stretches + stretch)
        for number, state in enumerate(states):
            if ("states", number) not in self.named:
                continue
            suffix = self.kernel.suffix(number)
            pointer = arguments.pointer(f"states{suffix}", self.named["states", number])
            kept = [(state.matrix, inputs.matrix(pointer, place, walk.inner, walk.outer))]
            if state.vector is not None:
                vectors = arguments.pointer(f"vectors{suffix}", self.named["vectors", number])
                kept.append((state.vector, inputs.vector(vectors, place)))
            with b.branch(pointer.given().both(ends)):
                if self.asked.pairs:
                    self._keep(kept)
                else:
                    self._anchor(number, kept, stretches, stretch)

    def _keep(self, kept: list[tuple[E, tuple[E, E]]]) -> None:
        for value, (at, mask) in kept:
            self.b.helpers.add("store")
            self.b.do(call("store", at, value, mask, size("MASKED"), tile=Tile("ptr")))

    def _anchor(self, number: int, kept: list[tuple[E, tuple[E, E]]], stretches: E, stretch: E) -> None:
        total: E | None = None
        for value, (at, mask) in kept:
            other = self.b.let("b_kept", call("tl.load", at, mask=mask, other=0.0, tile=Tile("in", value.tile.shape)))
            product = value * other.to("fp32")
            for axis in reversed(range(len(value.tile.shape))):
                product = reduce_sum(product, axis)
            product = self.b.let("b_weight", product)
            total = product if total is None else total + product
        assert total is not None
        name = f"anchors{self.kernel.suffix(number)}"
        pointer = self.kernel.arguments.pointer(name, self.named["anchors", number])
        self.b.do(
            call(
                "tl.store", pointer + self.kernel.row_of_tile(self.place) * stretches + stretch, total, tile=Tile("ptr")
            )
        )

    def _other(self, chunk: Chunk) -> E:
        assert chunk.other is not None
        return chunk.other

    def _write(self, kind: str, number: int, chunk: Chunk, value: E) -> None:
        """Write a sum for every row of the chunk, where the launcher wants it."""
        if (kind, number) not in self.named:
            return
        pointer = self.kernel.arguments.pointer(f"{kind}{self.kernel.suffix(number)}", self.named[kind, number])
        with self.b.branch(pointer.given()):
            self.kernel.write_row(self.place, pointer, chunk, value)
