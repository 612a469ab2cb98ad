"""The kernel of the gradients of queries of the quadratic plan, by tiles of rows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

from sma_compiler.ir.nodes import Param
from sma_compiler.kernel.build import (
    INFINITY,
    E,
    call,
    exp2,
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
from sma_compiler.kernel.linear import is_tensor, plain
from sma_compiler.kernel.maker import program
from sma_compiler.kernel.nodes import Function, Tile
from sma_compiler.kernel.pair_gradients import PairGradient, Rows, scaled_by
from sma_compiler.kernel.pair_paths import end_of
from sma_compiler.kernel.pair_places import InKernel, Place, Seen, Side, Visit
from sma_compiler.kernel.score import PairLowering
from sma_compiler.kernel.support import value

PEAKED = 0.2
"""Rows whose pairs but for the largest have less are dominated by that: what is left of a result that was rounded is
wrong by the share of a unit in the last place in this."""
SOLE = 2.0**-24
"""Rows whose pairs but for the largest have less have that alone in fp32."""
LARGE = 1024.0
"""Scores in base 2 beyond which what tensor cores lose of them counts in gradients."""


PARTS = (("rest", "total", "exact"), ("rest_low", "total_low", "exact_low"))
"""What sums over the largest pair of rows are called, and those over the others."""


@dataclass(frozen=True)
class Part:
    """Sums over some pairs of rows: of weights times their cotangents, of weights as they are, and of exact ones."""

    rest: E
    total: E
    exact: E


class QueryGradient(PairGradient):
    """Builds the kernel of the queries' gradients; it also keeps what the others read of rows, [B, H, T]."""

    first = True
    logarithms: E | None = None
    lost = lift(0.0)

    def build(self, name: str) -> Function:
        """The kernel."""
        b, linear, walk = self.b, self.pairs.linear, self.back.made.dq
        place = self.place()
        inputs = self.inputs(place, b.let("i_h", program(1).to("int64")))
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

        def tiles(visit: Visit, q: E, dn: E, large: E | None = None) -> tuple[PairLowering, E, E, E]:
            """What is had of a tile: its pairs, their keys, scores, and products of cotangents with values.

            large: whether to add up what tensor cores lose of scores.
            """
            other = self.other_side(place, inputs, static, visit, (linear.k, linear.v))
            k = self.operand(other, linear.k, "k", "key")
            v = self.operand(other, linear.v, "v", "value")
            pair = self.lowering(place, own, other, static, visit, seen)
            scores = b.let("b_s", self.product(q, k))
            if large is not None:
                self.lost = self._lost(inputs, own, other, scores, scale, rows.lse, large)
            return pair, k, scores, b.let("b_dp", self.product(dn, v))

        def along() -> E:
            """Sums over the pairs of rows of weights times their cotangents."""
            total = b.let("b_along", zeros("BM", dtype="fp64"))

            def weigh(visit: Visit) -> None:
                pair, _, scores, dweights = tiles(visit, *loaded)
                given = None if self.pairs.softmax else b.let("b_given", dweights)
                weights, ds = self.pair(pair, scores, lambda _: dweights, scale, rows, summed=False)
                b.set(total, total + reduce_sum((ds if given is None else weights * given).to("fp64"), 1))

            self.visits(place, weigh)
            return total

        def parts(rows: Rows, large: E) -> list[Part]:
            """Of the largest pair of rows, where that has most of one, and of the others."""
            found = [Part(*(b.let(f"b_{name}", zeros("BM")) for name in names)) for names in PARTS]

            def weigh(visit: Visit) -> None:
                pair, _, scores, dweights = tiles(visit, *loaded, large)
                weights, ds = self.pair(pair, scores, lambda _: dweights, scale, rows, summed=False)
                exact = b.let("b_x", weights * exp2(self.lost))
                first = b.let("m_first", weights > 0.5)
                for part, live in zip(found, (first, weights <= 0.5), strict=True):
                    for total, x in ((part.rest, ds), (part.total, weights), (part.exact, exact)):
                        b.set(total, total + reduce_sum(where(live, x, 0.0), 1))

            self.visits(place, weigh, whole=False)
            return found

        if self.twice and self.back.made.along is not None:
            total = along()
            own.lowering.bind(self.back.made.along, -total if self.pairs.softmax else -total.to("fp32"))
        delta = low = below = None
        if offset:
            offset_of = own.lowering.value(offset[0])
            delta = b.let(
                "b_delta",
                b.helper("keep", offset_of, own.valid or lift(True), lift(True), dtype=offset_of.tile.dtype),
            )
            if others is not None:
                rows = replace(rows, delta=delta.col)
                low, below = self._balance(place, inputs, own, seen, (delta, others), partial(parts, rows))
            self._finish(place, inputs, own, seen, delta)
            self._hand_on(inputs, own, "delta", self.tensors.delta, delta)
            if self.unit_of_rows is not None:
                delta = b.let("b_delta", delta * self.unit_of_rows[0])
        registers = [self.in_registers(name, x) for name, x in zip(("q", "dn"), loaded, strict=True)]
        dq = b.let("b_dq", zeros("BM", "BK", dtype=self.sums_dtype))
        self.start_sums()
        rows = replace(rows, delta=None if delta is None else delta.col, low=None if low is None else low.col)
        if below is not None:
            rows = replace(rows, below=lambda: below.col)

        def body(visit: Visit) -> None:
            pair, k, scores, dweights = tiles(visit, *registers)
            _, ds = self.pair(pair, scores, lambda _: dweights, scale, rows)
            b.set(dq, self.plus(dq, ds.to("dot"), k))

        self.visits(place, body)
        b.section("Output")
        if low is not None:
            with b.branch(path("tl.float16").eq(path("DOT"))):
                length = self.arguments.integer("T", self.host.sizes["time"])
                at = self.arguments.pointer("share", self.tensors.share) + inputs.row() * length + own.positions
                share = b.let("b_share", call("tl.load", at, mask=own.valid, other=0, tile=Tile("fp32", ("BM",))))
                b.set(dq, dq * share.col)
                self.scale_sums(share)
        own.lowering.bind(walk.result, scaled_by(self, dq, static))
        for output in walk.outputs:
            self.write(inputs, own, output, self.tensors.outputs[output.name])
        self.write_sums(inputs, own)
        doc = ("One program sums the gradients of one tile of queries over the keys that they see.",)
        return b.function(name, doc, self.arguments.parameters, jit=True)

    def _lost(self, inputs: Inputs, own: Side, other: Side, scores: E, scale: E | None, lse: E | None, large: E) -> E:
        """What exponents lack where scores are large; 0 where queries or keys are computed."""
        b, (q, k) = self.b, (plain(x) for x in (self.pairs.linear.q, self.pairs.linear.k))
        lost = b.let("b_lost", zeros("BM", "BN"))
        if not all(isinstance(x, Param) and is_tensor(x) and {"time", "key"} <= set(x.axes) for x in (q, k)):
            return lost
        less = self.logs if self.logs is not None else lift(0.0) if lse is None else lse
        factor = lift(1.0) if scale is None else scale
        b.helpers.add("exact_exponents")
        with b.scope(), b.branch(path("tl.float16").eq(path("DOT"))):
            rounded = b.let("b_e", scores * factor - less)
            ends: list[E] = []
            for side, x in ((own, q), (other, k)):
                assert isinstance(x, Param)
                assert side.valid is not None
                ends += [inputs.line(x.name, side.start, side.offsets), side.valid]
            with b.branch(large):
                exact = call("exact_exponents", *ends, factor, less, size("K"), path("DOT"), tile=lost.tile)
                b.set(lost, b.let("b_exact", exact) - rounded)
        return lost

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

    def _balance(
        self,
        place: Place,
        inputs: Inputs,
        own: Side,
        seen: Seen,
        rows: tuple[E, E],
        parts: Callable[[E], list[Part]],
    ) -> tuple[E, E]:
        """Have the cotangents of rows that one pair dominates cancel as they are computed.

        Returns what they lose, and what weights below the largest are multiplied by where scores are large.

        The result, which `delta` is of, was rounded, and so are the logarithms of large sums. Where most rows have one
        pair alone, as far as fp32 can tell, their cotangents are left out, which are rounding errors. rows: `delta`,
        and what `_others` gave. parts: sums over the pairs of rows, exact ones where that is asked for.
        """
        b, (delta, others) = self.b, rows
        assert own.valid is not None
        share, below, low = b.let("b_share", self._ones()), b.let("b_below", self._ones()), b.let("b_low", zeros("BM"))
        least = b.let("least", call("tl.min", others, 0, tile=Tile("fp32")))
        self.barred = b.let("sole", least < SOLE)
        with b.scope(), b.branch(least < PEAKED):
            sole = b.let("m_sole", own.valid & (others < SOLE) & (self._number(place, own, seen) > 1))
            b.set(self.barred, reduce_sum(sole.to("int32"), 0) * 2 > place.last - place.start)
            assert self.logarithms is not None
            top = call("tl.max", pointwise("tl.abs", self.logarithms), 0, tile=Tile("fp32"))
            most, rest = parts(b.let("large", self.barred & (top > LARGE)))
            both = (most.total > 0.0) & (rest.exact > 0.0)
            b.set(below, where(both, (rest.exact / most.exact) * (most.total / rest.total), 1.0))
            b.set(below, where(sole, 0.0, below))
            total = b.let("b_total", most.total + rest.total * below)
            b.set(share, where(total > 0.0, 1.0 / total, 1.0))
            sums = b.let("b_rest", (most.rest + rest.rest * below) * share)
            exact = b.let("b_exact", delta)
            b.set(delta, exact - sums)
            b.set(low, (exact - delta) - sums)
            with b.branch(self.barred):
                at = self.arguments.pointer("sole", self.tensors.sole) + inputs.row()
                b.do(call("tl.store", at, 1, tile=Tile("ptr")))
                with b.branch(self.arguments.pointer("dlse", self.tensors.dlse).missing()):
                    b.set(delta, where(sole, INFINITY, delta))
        self._hand_on(inputs, own, "share", self.tensors.share, share)
        self._hand_on(inputs, own, "below", self.tensors.below, below)
        self._hand_on(inputs, own, "low", self.tensors.low, low)
        return low, below

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
