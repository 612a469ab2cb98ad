"""The kernel of the gradients of keys and values of the quadratic plan, by tiles of columns."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from sma_compiler.kernel.build import E, call, choose, size, zeros
from sma_compiler.kernel.inputs import Inputs
from sma_compiler.kernel.maker import program
from sma_compiler.kernel.nodes import Function, Tile
from sma_compiler.kernel.pair_backward import whole_groups
from sma_compiler.kernel.pair_gradients import PairGradient, scaled_by
from sma_compiler.kernel.pair_places import Place, Seen, Side, Visit


class KeyGradient(PairGradient):
    """Builds the kernel of the gradients of keys and values: one program for all heads that share them."""

    def build(self, name: str) -> Function:
        """The kernel."""
        b, linear, made = self.b, self.pairs.linear, self.back.made
        place = self.place()
        i_g = b.let("i_g", program(1).to("int64"))
        self.care(place, i_g)
        group = self.inputs(place, i_g, self.tensors.groups)
        b.section("Where the rows of these heads begin")
        shared = whole_groups(self.back)
        of_group = group.static((*shared, self.pairs.scale))
        b.section("The columns of this program")
        held = self.own_side(place, group, of_group, shared, weighed=False)
        k = self.operand(held, linear.k, "k", "key")
        v = self.operand(held, linear.v, "v", "value")
        seen = self.see(place, held)
        dk = b.let("b_dk", zeros("BN", "BK", dtype=self.sums_dtype))
        dv = b.let("b_dv", zeros("BN", "BV", dtype=self.sums_dtype))
        b.space()
        heads = self.arguments.constant("HEADS", self.host.heads // self.tensors.groups)
        with b.loop("i_r", call("range", heads, tile=Tile("int32")), Tile("int32")) as i_r:
            b.section("One of the heads that share them")
            head = b.let("i_h", group.head * heads + i_r)
            self._head(place, group, head, held, seen, (k, v), (dk, dv))
        b.section("Output")
        held.lowering.bind(made.dk.result, scaled_by(self, dk, of_group))
        held.lowering.bind(made.dv.result, dv)
        for output in (*made.dk.outputs, *made.dv.outputs):
            self.write(group, held, output, self.tensors.outputs[output.name])
        doc = ("One program sums the gradients of one tile of keys and values over the queries that see them.",)
        return b.function(name, doc, self.arguments.parameters, jit=True)

    @property
    def masked_stages(self) -> E:
        """Two at most: masks take registers, which the loop of whole tiles would lack as well."""
        return choose(size("STAGES") >= 3, 2, size("STAGES"))

    def _head(
        self,
        place: Place,
        group: Inputs,
        head: E,
        held: Side,
        seen: Seen,
        operands: tuple[E, E],
        totals: tuple[E, E],
    ) -> None:
        """Add what one head brings."""
        b, linear = self.b, self.pairs.linear
        (k, v), (dk, dv) = operands, totals
        inputs = Inputs(b, self.arguments, self.host, place.span.batch, head, place.span.sequence)
        inputs.channels = group.channels
        at_rows = self.at_rows()
        every = (*at_rows, *self.at_end("i"), *self.at_end("j"), *self.static_exprs())
        static = inputs.static((*every, *self.pair_exprs()))
        scale = self.scale(static)
        self.start_rows(inputs)
        own = self.own_side(place, inputs, static, ())
        own.valid = held.valid
        self.start_sums()

        def body(visit: Visit) -> None:
            other = self.other_side(place, inputs, static, visit, at_rows)
            q = self.operand(other, linear.q, "q", "key")
            dn = self.cotangents(other)
            rows = self.rows_of(other, careful=visit.careful)
            pair = self.lowering(place, own, other, static, visit, seen)
            scores = self.scores(visit, (group, inputs), (own, other), (k, q), scale, rows.lse)
            begun: E | None = None
            if not (visit.masked or self.pairs.wide):  # it runs while weights are made of the scores
                begun = b.let("b_dp", self.product(v, dn, rows.delta))
                rows = replace(rows, delta=None)

            def dweights(weights: E) -> E:
                b.set(dv, self.plus(dv, weights.to("dot"), dn))  # first, so that few tiles are held at once
                return b.let("b_dp", self.product(v, dn)) if begun is None else begun

            _, ds = self.pair(pair, scores, dweights, scale, rows)
            b.set(dk, self.plus(dk, ds.to("dot"), q))

        tiles = self.tiles(place)
        careful = partial(self.each, place, tiles, body, careful=True)
        self.with_care(partial(self.visits, place, tiles, body), None if self.back.care is None else careful)
        self.write_sums(inputs, own)
