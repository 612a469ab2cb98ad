"""The kernel of the gradients of queries of the quadratic plan, by tiles of rows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

from sma_compiler.kernel.build import (
    INFINITY,
    E,
    call,
    lift,
    path,
    pointwise,
    reduce_sum,
    sequence,
    size,
    where,
    zeros,
)
from sma_compiler.kernel.inputs import Inputs
from sma_compiler.kernel.maker import program
from sma_compiler.kernel.nodes import Function, Tile
from sma_compiler.kernel.pair_gradients import PairGradient, Rows, scaled_by
from sma_compiler.kernel.pair_paths import end_of
from sma_compiler.kernel.pair_places import InKernel, Place, Seen, Side, Tiles, Visit
from sma_compiler.kernel.score import PairLowering
from sma_compiler.kernel.support import value

PEAKED = 0.2
"""Rows whose pairs but for the largest have less are dominated by that: what is left of a result that was rounded is
wrong by the share of a unit in the last place in this."""
SOLE = 2.0**-24
"""Rows whose pairs but for the largest have less have that alone in fp32. Tiles of mostly such rows need care."""
LARGE = 1024.0
"""Scores in base 2 beyond which what tensor cores lose of them counts in gradients: tiles with such need care, too."""

PARTS = (("rest", "total"), ("rest_low", "total_low"))
"""What sums over the largest pair of rows are called, and those over the others."""


@dataclass(frozen=True)
class Part:
    """Sums over some pairs of rows: of weights times their cotangents, and of weights."""

    rest: E
    total: E


class QueryGradient(PairGradient):
    """Builds the kernel of the queries' gradients; it also keeps what the others read of rows, [B, H, T]."""

    first = True
    logarithms: E | None = None

    def build(self, name: str) -> Function:
        """The kernel."""
        b, linear, walk = self.b, self.pairs.linear, self.back.made.dq
        place = self.place()
        head = b.let("i_h", program(1).to("int64"))
        care = self.care(place, self.group_of(head))
        inputs = self.inputs(place, head)
        b.section("Where the rows of this head begin")
        outputs = tuple(output.expr for output in walk.outputs)
        offset = () if self.back.made.dk.offset is None else self.back.made.dk.offset[1:]
        kept = () if self.lse is None else (self.lse,)
        read = () if self.twice else offset
        at_rows = (linear.q, self.dn, *read, *kept, *outputs)
        every = (*at_rows, linear.k, linear.v, *self.at_end("i"), *self.at_end("j"), *self.static_exprs())
        static = inputs.static((*every, *self.pair_exprs()))
        scale = self.scale(static)
        b.section("The rows of this program")
        own = self.own_side(place, inputs, static, at_rows)
        loaded = self.operand(own, linear.q, "q", "key"), self.cotangents(own)
        others = self._others(inputs, own)
        lse = self._logs(inputs, own)
        seen = self.see(place, own)
        rows = Rows(None if lse is None else lse.col)
        tiles = self.tiles(place)

        def tile(visit: Visit, q: E, dn: E, when: E | None = None) -> tuple[PairLowering, E, E, E]:
            """What is had of a tile: its pairs, their keys, scores, and products of cotangents with values.

            when: see `scores`.
            """
            other = self.other_side(place, inputs, static, visit, (linear.k, linear.v))
            k = self.operand(other, linear.k, "k", "key")
            v = self.operand(other, linear.v, "v", "value")
            pair = self.lowering(place, own, other, static, visit, seen)
            scores = self.scores(visit, (inputs, inputs), (own, other), (q, k), scale, rows.lse, when)
            return pair, k, scores, b.let("b_dp", self.product(dn, v))

        def along() -> E:
            """Sums over the pairs of rows of weights times their cotangents."""
            total = b.let("b_along", zeros("BM", dtype="fp64"))

            def weigh(visit: Visit) -> None:
                pair, _, scores, dweights = tile(visit, *loaded)
                given = None if self.pairs.softmax else b.let("b_given", dweights)
                weights, ds = self.pair(pair, scores, lambda _: dweights, scale, rows, summed=False)
                b.set(total, total + reduce_sum((ds if given is None else weights * given).to("fp64"), 1))

            self.visits(place, tiles, weigh)
            return total

        def parts(rows: Rows, wanted: E, bar: E) -> list[Part]:
            """Of the largest pair of rows, above `bar`, and of the others; without care of all pairs."""
            found = [Part(*(b.let(f"b_{name}", zeros("BM")) for name in names)) for names in PARTS]
            near = replace(rows, careful=True)

            def weigh(visit: Visit) -> None:
                pair, _, scores, dweights = tile(visit, *loaded, size("CARE"))
                weights, ds = self.pair(pair, scores, lambda _: dweights, scale, near, summed=False)
                most, rest = found
                with b.branch(size("CARE")):
                    first = b.let("m_first", weights > bar.col)
                    for total, x in ((most.rest, ds), (most.total, weights)):
                        b.set(total, total + reduce_sum(where(first, x, 0.0), 1))
                        b.set(x, where(first, 0.0, x))
                b.set(rest.rest, rest.rest + reduce_sum(ds, 1))
                b.set(rest.total, rest.total + reduce_sum(weights, 1))

            b.space()
            stop = where(wanted, tiles.stop, tiles.first)  # no branch, in which tensor cores would wait for each other
            self.each(place, Tiles(tiles.first, stop), weigh, careful=True)
            b.space()
            return found

        if self.twice and self.back.made.along is not None:
            total = along()
            own.lowering.bind(self.back.made.along, -total if self.pairs.softmax else -total.to("fp32"))
        delta: E | None = None
        careful: Rows | None = None
        if offset:
            offset_of = own.lowering.value(offset[0])
            delta = b.let(
                "b_delta",
                b.helper("keep", offset_of, own.valid or lift(True), lift(True), dtype=offset_of.tile.dtype),
            )
            if others is not None and care is not None:
                sole = b.let("m_sole", (others < SOLE) & (self._number(place, own, seen) > 1))
                most_sole = reduce_sum(sole.to("int32"), 0) * 2 > place.last - place.start
                rows = replace(rows, delta=delta.col)
                low, share, rest = self._balance((delta, others, most_sole), care, partial(parts, rows))
                with b.branch(size("CARE")):
                    self._hand_on(inputs, own, "low", self.tensors.low, low)
                    self._hand_on(inputs, own, "share", self.tensors.share, share)
                    with b.branch(self.arguments.pointer("dlse", self.tensors.dlse).missing()):
                        b.set(delta, where((rest > 0.0) | (others >= SOLE), delta, INFINITY))
                careful = replace(rows, low=low.col, share=share.col, careful=True)
            self._finish(place, inputs, own, seen, delta)
            self._hand_on(inputs, own, "delta", self.tensors.delta, delta)
            if self.unit_of_rows is not None:
                delta = b.let("b_delta", delta * self.unit_of_rows[0])
        dq = b.let("b_dq", zeros("BM", "BK", dtype=self.sums_dtype))
        self.start_sums()
        delta_col = None if delta is None else delta.col

        def body(q: E, dn: E, rows: Rows, visit: Visit) -> None:
            pair, k, scores, dweights = tile(visit, q, dn)
            _, ds = self.pair(pair, scores, lambda _: dweights, scale, replace(rows, delta=delta_col))
            b.set(dq, self.plus(dq, ds.to("dot"), k))

        def usual() -> None:
            held = self.in_registers("q", loaded[0]), self.in_registers("dn", loaded[1])
            self.visits(place, tiles, partial(body, *held, rows))

        def near() -> None:
            assert careful is not None
            self.each(place, tiles, partial(body, *loaded, careful), careful=True)

        self.with_care(usual, near if careful else None)
        b.section("Output")
        own.lowering.bind(walk.result, scaled_by(self, dq, static))
        for output in walk.outputs:
            self.write(inputs, own, output, self.tensors.outputs[output.name])
        self.write_sums(inputs, own)
        doc = ("One program sums the gradients of one tile of queries over the keys that they see.",)
        return b.function(name, doc, self.arguments.parameters, jit=True)

    def _number(self, place: Place, own: Side, seen: Seen) -> E:
        """How many other positions own ones see at most."""
        bounds = InKernel(self.arguments, self.host, self.names, place, own.valid)
        lo, hi = seen.lo, seen.hi
        if lo is None and self.support.lo is not None:
            lo = value(self.support.lo, own.positions, bounds)
        if hi is None and self.support.hi is not None:
            hi = pointwise("tl.minimum", value(self.support.hi, own.positions, bounds), place.span.end, dtype="int32")
        first = place.begin if lo is None else pointwise("tl.maximum", lo, place.begin, dtype="int32")
        return (place.span.end if hi is None else hi) - first

    def _balance(self, given: tuple[E, E, E], care: E, parts: Callable[[E, E], list[Part]]) -> tuple[E, E, E]:
        """Have the cotangents of rows that one pair dominates cancel as they are computed; say where care is needed.

        Returns what `delta` loses where it is rounded, what weights are multiplied by with care, and the sum of those
        but the largest.

        The result, which `delta` is of, was rounded, and so are the logarithms of large sums. With D the cotangent of
        the largest pair's weight, that of its score is minus the sum of all others w (dw - D), in which nothing
        cancels: delta is -D, and minus that sum. given: `delta`, what `_others` gave, and whether most rows have one
        pair alone. care: where it is said. parts: sums over the pairs of rows, where they are asked for, by which
        weights are those of largest pairs: where these are alone far smaller ones are, as large logarithms round by
        much.
        """
        b, (delta, others, sole) = self.b, given
        assert self.logarithms is not None
        logs = where(self.logarithms < INFINITY, pointwise("tl.abs", self.logarithms), 0.0)
        with b.branch(sole | (call("tl.max", logs, 0, tile=Tile("fp32")) > LARGE)):
            b.do(call("tl.store", care, 1, tile=Tile("ptr")))
        least = call("tl.min", others, 0, tile=Tile("fp32"))
        wanted = b.let("wanted", (least < PEAKED) | size("CARE"))
        most, rest = parts(wanted, b.let("b_bar", where(others < SOLE, SOLE**0.5, 0.5)))
        total = b.let("b_total", most.total + rest.total)
        share = b.let("b_share", where(total > 0.0, 1.0 / total, 1.0))
        first = b.let("b_first", where(most.total > 0.0, most.rest / most.total, 0.0))
        gap = b.let("b_gap", (first * rest.total - rest.rest) * share)
        exact = b.let("b_exact", delta - first)
        b.set(delta, exact + gap)
        low = b.let("b_low", (exact - delta) + gap)
        return low, share, rest.total

    def _others(self, inputs: Inputs, own: Side) -> E | None:
        """The share of each row that all but its largest weight have, where that was kept."""
        if self.back.others is None:
            return None
        pointer = self.arguments.pointer("others", self.tensors.others)
        others = self.b.let("b_others", self._ones())
        with self.b.branch(pointer.given()):
            at = pointer + inputs.row() * self.arguments.integer("T", self.host.sizes["time"]) + own.positions
            self.b.set(others, call("tl.load", at, mask=own.valid, other=1.0, tile=others.tile))
        return others

    def _ones(self) -> E:
        """1 for each row."""
        tile = Tile("fp32", ("BM",))
        return call("tl.full", sequence([size("BM")], "["), 1.0, tile=tile, dtype=path("tl.float32"))

    def _finish(self, place: Place, inputs: Inputs, own: Side, seen: Seen, delta: E) -> None:
        """Add the cotangents of logarithms of rows to those of divisors; without them rows of one pair are constant."""
        b = self.b
        rest: AbstractContextManager[None] = nullcontext()
        if self.lse is not None:
            pointer = self.arguments.pointer("dlse", self.tensors.dlse)
            with b.branch(pointer.given()):
                base, stride = inputs.made("dlse", pointer, None)
                given = call("tl.load", base + own.positions * stride, mask=own.valid, other=0, tile=delta.tile)
                b.set(delta, delta + given)
            rest = b.branch(pointer.missing())
        if self.constant_rows:
            b.section("What sees one position at most has no gradient: infinity says so")
            with rest:
                b.set(delta, where(self._number(place, own, seen) < 2, INFINITY, delta))

    def _logs(self, inputs: Inputs, own: Side) -> E | None:
        """Hand the logarithms of the rows' sums on, and return what the pairs here are still to be divided by."""
        b, lse, along = self.b, self.rows_lse(own), self.back.holds_logs
        self.logarithms = lse
        if lse is None or self.back.logs is None:
            return lse
        if along is None:
            self._hand_on(inputs, own, "logs", self.tensors.logs, lse)
            return lse
        late = along.early == "j"
        low = self.low(along, own, end_of(self.pairs, along, late))
        self._hand_on(inputs, own, "logs", self.tensors.logs, low - lse if late else low + lse)

        if self.back.rest is not None:
            length = self.arguments.integer("T", self.host.sizes["time"])
            made = self.arguments.pointer("inside", self.names.within[along.number, late]) + inputs.row() * length
            self._hand_on(inputs, own, "rest", self.tensors.rest, self.vector(made, own, "fp32") - lse)

        def joined(exponent: E | None) -> E:
            assert exponent is not None
            return exponent - lse if late else exponent + lse

        exponent, cuts = own.paths[along.leaf]
        own.paths[along.leaf] = b.let("b_rest", joined(exponent)), cuts
        if along.leaf in own.parts:
            own.parts[along.leaf] = own.parts[along.leaf][0], joined(own.parts[along.leaf][1])
        if along.leaf in own.clear:
            exponent, count = own.clear[along.leaf]
            own.clear[along.leaf] = b.let("b_clear", joined(exponent)), count
        return None

    def _hand_on(self, inputs: Inputs, own: Side, name: str, tensor: E, value: E) -> None:
        """Write what rows have, by positions, so that others load it in runs."""
        length = self.arguments.integer("T", self.host.sizes["time"])
        at = self.arguments.pointer(name, tensor) + inputs.row() * length + own.positions
        self.b.do(call("tl.store", at, value, mask=own.valid, tile=Tile("ptr")))
