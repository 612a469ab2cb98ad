"""The gradient of taps: a program has a tile of distances, and goes over all rows of a sequence (of taps `c[j - i]`
over its columns).

At a tile of distances a tile of rows meets two tiles of columns; of every row of theirs those entries are gathered that
lie at the distances of the program.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from sma_compiler.ir.nodes import Expr
from sma_compiler.kernel import rows as rows_of
from sma_compiler.kernel.build import E, arange, call, pointwise, reduce_sum, size, where, zeros
from sma_compiler.kernel.maker import program
from sma_compiler.kernel.nodes import Function, Tile
from sma_compiler.kernel.pair_gradients import PairGradient
from sma_compiler.kernel.pair_paths import EXTENTS, LETTERS
from sma_compiler.kernel.pair_places import Place, Side, Visit
from sma_compiler.kernel.score import PairLowering


class LagGradient(PairGradient):
    """Builds the kernel: one program for each tile of distances of each head and sequence. Its tiles are square."""

    def build(self, name: str) -> Function:
        """The kernel."""
        b, linear = self.b, self.pairs.linear
        tile = size(EXTENTS[self.own])
        b.section("Which distances, head and sequence")
        i_l = b.let("i_l", program(0))
        whole = rows_of.sequence(b, self.arguments, self.host, b.let("i_s", program(2).to("int64")))
        offsets = {x: b.let(f"o_{LETTERS[x]}", arange(EXTENTS[x]), show=False) for x in (self.own, self.other)}
        place = Place(whole, whole.begin, whole.begin, whole.begin, offsets)
        head = b.let("i_h", program(1).to("int64"))
        self.care(place, self.group_of(head))
        inputs = self.inputs(place, head)
        b.section("Where the rows of this head begin")
        read = {"i": self.at_rows(), "j": (linear.k, linear.v)}
        every = (*read["i"], *read["j"], *self.at_end("i"), *self.at_end("j"), *self.static_exprs())
        static = inputs.static((*every, *self.pair_exprs()))
        for table in self.pairs.tables:
            inputs.base(table.x.name)
        scale = self.scale(static)
        self.start_rows(inputs)
        self.distances = b.let("o_l", i_l * tile + arange(EXTENTS[self.own]))
        for one in self.back.lags:
            self.totals[one.tensor] = b.let(f"b_{one.tensor}", zeros(EXTENTS[self.own], dtype=self.sums_dtype))
        tiles = call("tl.cdiv", whole.end - whole.begin, tile, tile=Tile("int32"))
        b.space()

        def over(careful: bool) -> None:
            with b.loop("i_t", call("range", i_l, tiles, tile=Tile("int32")), Tile("int32")) as i_t:
                b.section(f"A tile of {'rows' if self.own == 'i' else 'columns'}")
                start = b.let("t0", whole.begin + i_t * tile)
                last = b.let("last", pointwise("tl.minimum", start + tile, whole.end, dtype="int32") - 1)
                at = replace(place, start=start, last=last)
                own = self.own_side(at, inputs, static, read[self.own])
                held = self._operands(own)
                rows = self.rows_of(own, careful=careful) if self.own == "i" else None
                seen = self.see(at, own)
                b.section("The two tiles that it meets at these distances")
                first = pointwise("tl.maximum", i_t - i_l - 1, 0, dtype="int32")
                with b.loop("i_o", call("range", first, i_t - i_l + 1, tile=Tile("int32")), Tile("int32")) as i_o:
                    met_at = b.let(f"{LETTERS[self.other]}0", whole.begin + i_o * tile)
                    visit = Visit(met_at, masked=True, careful=careful)
                    other = self.other_side(at, inputs, static, visit, read[self.other])
                    met = self._operands(other)
                    of_pairs = rows or self.rows_of(other, careful=careful)
                    pair = self.lowering(at, own, other, static, visit, seen)
                    self.places = b.let("b_at", (start - visit.start + offsets[self.own]).col - self.distances.row)
                    sides = (inputs, inputs), (own, other), (held[0], met[0])
                    scores = self.scores(visit, *sides, scale, of_pairs.lse)
                    weights = b.let("b_dp", self.product(held[1], met[1]))
                    self.pair(pair, scores, lambda _: weights, scale, of_pairs)

        self.with_care(partial(over, False), None if self.back.care is None else partial(over, True))
        b.section("Output")
        lags = self.arguments.integer("LAGS", self.host.sizes["lag"])
        for one in self.back.lags:
            pointer = self.arguments.pointer(one.tensor, self.tensors.sums[one.tensor])
            at = pointer + inputs.place() * lags + self.distances
            b.do(call("tl.store", at, self.totals[one.tensor], mask=self.distances < lags, tile=Tile("ptr")))
        doc = ("One program sums what lies at one tile of distances, over all rows of a sequence.",)
        return b.function(name, doc, self.arguments.parameters, jit=True)

    def _operands(self, side: Side) -> tuple[E, E]:
        """What one end of pairs brings to the products of scores and of cotangents."""
        linear = self.pairs.linear
        if side.letter == "i":
            return self.operand(side, linear.q, "q", "key"), self.cotangents(side)
        return self.operand(side, linear.k, "k", "key"), self.operand(side, linear.v, "v", "value")

    def pair_exprs(self) -> tuple[Expr, ...]:
        """The expressions that are lowered for pairs."""
        return (*self.pairs.exprs, *(one.expr for one in self.back.lags))

    def add_sums(self, pair: PairLowering, cotangent: E) -> None:
        """Add the pairs of a tile that lie at the distances of the program."""
        b = self.b
        made = pair.extended()
        made.bind(self.back.cotangent, b.named("b_z", cotangent))
        inside = (self.places >= 0) & (self.places < size(EXTENTS[self.other]))
        at = where(inside, self.places, 0)
        for one in self.back.lags:
            value = b.named("b_x", self.live(made, one))
            found = call("tl.gather", value, at, 1, tile=Tile("fp32", (EXTENTS[self.own], EXTENTS[self.own])))
            found = where(inside, found, 0.0).to(self.sums_dtype)
            found = found if self.unit_of_rows is None else found * self.unit_of_rows[1]
            b.set(self.totals[one.tensor], self.totals[one.tensor] + reduce_sum(found, 0))
