"""Sums of the pairs' weights that gradients of gates and of factors need, made inside a walk.

Of a pair (r, c), M_rc is its whole weight: path and factors times both products, so that the gradient of a log gate is
the sum of M over the pairs whose path holds it. For each stream, [tiles, B, H, T] in fp32 by tiles of outer channels:

    net      what late ends have less what early ends have of a chunk's pairs, without the diagonal
    rows     the sum over columns of the chunk's pairs, without the factors of rows that are no exponents
    columns  the sum over rows, without the factors of columns that are no exponents
    inter    the sum over columns outside the chunk, without those factors of rows; of the walk that counts pairs
    through  the same of the walk that counts no pairs

The walk that counts pairs keeps the `states` [B, H, slots, V, K] and `vectors` [B, H, slots, K] that come into chunks;
the other one sums their products with those that come into the chunk from its other end to `anchors`
[tiles, B, H, slots]: the weight of all pairs whose path leads over the whole chunk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sma_compiler.kernel.build import E, call, dot, reduce_sum, size, trans, where
from sma_compiler.kernel.gates import scaled
from sma_compiler.kernel.nodes import Tile
from sma_compiler.kernel.rows import slots

if TYPE_CHECKING:
    from sma_compiler.kernel.chunk import Chunk, Chunked, Place, State


class Summing:
    """What the sums of a kernel have: its walk's, and the tensors that they are left in."""

    def __init__(self, kernel: Chunked, place: Place) -> None:
        assert kernel.walk.sums is not None
        self.kernel = kernel
        self.b = kernel.b
        self.place = place
        self.asked = kernel.walk.sums
        self.named = kernel.tensors.sums


class PathSums(Summing):
    """The statements that make them in one kernel."""

    def weigh(self, chunk: Chunk, scores: E, decays: list[E], products: E | None = None) -> None:
        """Sum the weights of the chunk's pairs. decays: of each stream; none where the scores hold all there is.

        products: of the operands with the outer axis, where they are made already.
        """
        b = self.b
        products = products or b.let("b_products", dot(self._other(chunk), trans(chunk.x)))
        if chunk.weight is not None:
            b.set(products, products * chunk.weight.col)
        at_first, at_second = ("rows", "columns") if self.asked.pairs else ("columns", "rows")
        for number, (term, path) in enumerate(zip(self.kernel.walk.terms, chunk.paths, strict=True)):
            suffix = self.kernel.suffix(number)
            pairs = b.let(f"b_pairs{suffix}", (scores * decays[number] if decays else scores) * products)
            at_rows, at_columns = path.rows.factors, path.columns.factors
            if (at_first, number) in self.named:
                self._write(at_first, number, chunk, reduce_sum(scaled(pairs, at_columns, column=False), 1))
            if (at_second, number) in self.named:
                self._write(at_second, number, chunk, reduce_sum(scaled(pairs, at_rows, column=True), 0))
            if ("net", number) in self.named:
                whole = scaled(scaled(pairs, at_rows, column=True), at_columns, column=False)
                if not term.strict:
                    whole = where(chunk.rows.offsets.col.ne(chunk.rows.offsets.row), whole, 0.0)
                if whole is not pairs:
                    b.set(pairs, whole)
                rows, columns = reduce_sum(pairs, 1), reduce_sum(pairs, 0)
                self._write("net", number, chunk, columns - rows if self.kernel.walk.backward else rows - columns)

    def through(self, chunk: Chunk, number: int, rows: E) -> None:
        """Sum what rows [C, outer] have of one stream through the state, without their factors."""
        value = reduce_sum(self._other(chunk).to("fp32") * rows, 1)
        value = value if chunk.weight is None else value * chunk.weight
        self._write("inter" if self.asked.pairs else "through", number, chunk, value)

    def meet(self, chunk: Chunk, states: tuple[State, ...]) -> None:
        """Keep the states that come into a chunk, or multiply them with those that the other walk has kept."""
        kernel, walk, inputs = self.kernel, self.kernel.walk, self.place.inputs
        meeting = [(number, state) for number, state in enumerate(states) if ("states", number) in self.named]
        if not meeting:
            return
        come = "The state that comes into the chunk"
        self.b.section(f"{come} is kept" if self.asked.pairs else f"{come}, times the one from its other end")
        index = inputs.row() * slots(kernel.arguments, kernel.host) + kernel.slot(self.place, chunk.t0)
        place = self.b.let("place", index)
        for number, state in meeting:
            suffix = kernel.suffix(number)
            pointer = kernel.arguments.pointer(f"states{suffix}", self.named["states", number])
            kept = [(state.matrix, inputs.matrix(pointer, place, walk.inner, walk.outer, along=walk.outer))]
            if state.vector is not None:
                vectors = kernel.arguments.pointer(f"vectors{suffix}", self.named["vectors", number])
                kept.append((state.vector, inputs.vector(vectors, place)))
            across = None if self.asked.pairs else kernel.leaving(chunk, number)[1]
            with self.b.branch(pointer.given()):
                if self.asked.pairs:
                    self._keep(kept)
                else:
                    self._anchor(number, chunk, kept, across)

    def _keep(self, kept: list[tuple[E, tuple[E, E]]]) -> None:
        for value, (at, mask) in kept:
            self.b.helpers.add("store")
            self.b.do(call("store", at, value, mask, size("MASKED"), tile=Tile("ptr")))

    def _anchor(self, number: int, chunk: Chunk, kept: list[tuple[E, tuple[E, E]]], across: E | None) -> None:
        total: E | None = None
        for value, (at, mask) in kept:
            other = self.b.let("b_kept", self.b.helper("load", at, mask, size("MASKED"), dtype="in"))
            product = value * other.to("fp32")
            for axis in reversed(range(len(value.tile.shape))):
                product = reduce_sum(product, axis)
            product = self.b.let("b_weight", product)
            total = product if total is None else total + product
        assert total is not None
        name = f"anchors{self.kernel.suffix(number)}"
        pointer = self.kernel.arguments.pointer(name, self.named["anchors", number])
        total = total if across is None else total * across
        at = self.kernel.address_of_anchor(self.place, pointer, chunk.t0)
        self.b.do(call("tl.store", at, total, tile=Tile("ptr")))

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
