"""The kernels of the quadratic plan's gradients: of queries by tiles of rows, of keys and values by tiles of columns.

Weights are computed again from what the forward pass kept of every row. With dN the cotangent of the rows before they
are divided, and D that of the divisor (under a softmax -dY . y), a pair's weight w has the cotangent dN_i . v_j + D_i.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from sma_compiler.ir.nodes import Const, Expr
from sma_compiler.kernel.build import (
    INFINITY,
    MINUS_INFINITY,
    E,
    arange,
    call,
    lift,
    path,
    pointwise,
    reduce_sum,
    size,
    where,
    zeros,
)
from sma_compiler.kernel.derive import gradients
from sma_compiler.kernel.gates import LOG2E
from sma_compiler.kernel.host import Host
from sma_compiler.kernel.inputs import Inputs
from sma_compiler.kernel.lower import Lowering
from sma_compiler.kernel.maker import program
from sma_compiler.kernel.nodes import Function, Name, Tile
from sma_compiler.kernel.pair_backward import PairBackward, Sum
from sma_compiler.kernel.pair_kernel import PairKernel
from sma_compiler.kernel.pair_paths import EXTENTS, end_of
from sma_compiler.kernel.pair_places import InKernel, PairNames, Place, Seen, Side, Visit
from sma_compiler.kernel.pairs import Along, Pairs
from sma_compiler.kernel.positions import number_of
from sma_compiler.kernel.score import PairLowering
from sma_compiler.kernel.support import value


@dataclass(frozen=True)
class PairTensors:
    """Names in a launcher: of outputs and sums by name, of the cotangents of divisors, and of how heads are grouped.

    logs, rest, lost: see `PairBackward`, or None. dlse: the cotangents of the logarithms of rows under a softmax, or
    None.
    """

    outputs: dict[str, E]
    sums: dict[str, E]
    delta: E
    logs: E
    rest: E
    lost: E
    groups: E
    dlse: E


class PairGradient(PairKernel):
    """What the kernels share. first: whether it hands on what the others read of rows."""

    first = False

    def __init__(
        self,
        pairs: Pairs,
        back: PairBackward,
        host: Host,
        names: PairNames,
        tensors: PairTensors,
        reserved: frozenset[str],
        own: str,
    ) -> None:
        super().__init__(pairs, host, names, reserved, own)
        self.back = back
        self.tensors = tensors
        self.dn = back.made.dk.s
        self.summed = back.at(own)
        self.totals: dict[str, E] = {}
        self.handed: dict[str, E] = {}

    def products(self) -> tuple[Expr, ...]:
        """The operands of matrix products."""
        return (*super().products(), self.dn)

    def pair_exprs(self) -> tuple[Expr, ...]:
        """The expressions that are lowered for pairs."""
        return (*self.pairs.exprs, *(one.expr for one in self.summed))

    @property
    def lse(self) -> Expr | None:
        """The logarithms of the sums of rows."""
        return None if not self.pairs.softmax else self.back_leaf(2)

    @property
    def constant_rows(self) -> bool:
        """Whether a row is the same whatever the weight of its only pair, so that this has no gradient.

        The products that would cancel round apart: an infinite cotangent of the divisor says so instead.
        """
        return self.pairs.linear.normalize in ("softmax", "sum")

    @property
    def twice(self) -> bool:
        """Whether the cotangents of divisors are sums over the pairs as they are weighed here, which rounds alike.

        What a row would otherwise be multiplied with was rounded, and two large numbers may be left to cancel.
        """
        return self.pairs.wide

    @property
    def sums_dtype(self) -> str:
        """What sums over pairs are kept in."""
        return "fp64" if self.pairs.wide else "fp32"

    def back_leaf(self, number: int) -> Expr:
        """A tensor that the backward pass reads beside the parameters."""
        decl = self.back.made.reads[number]
        return self.pairs.graph.param(decl.name, decl.kind, decl.dims, False)

    def rows_lse(self, side: Side) -> E | None:
        """The logarithms of the sums of rows in base 2; of a row without weights one that leaves every pair 0."""
        if self.lse is None:
            return None
        lse = side.lowering.value(self.lse).to("fp64") * LOG2E
        found = self.b.let("b_l", lse if self.pairs.wide else lse.to("fp32"))
        return self.b.let("b_l", where(found.eq(MINUS_INFINITY), INFINITY, found))

    def at_rows(self) -> tuple[Expr, ...]:
        """What rows of pairs have, behind the kernel of the queries' gradients."""
        kept = () if self.lse is None or self.back.logs is not None else (self.lse,)
        return (self.pairs.linear.q, self.dn, *kept)

    def start_rows(self, inputs: Inputs) -> None:
        """Take the addresses of what was handed on, of one head."""
        length = self.arguments.integer("T", self.host.sizes["time"])
        for name, leaf, tensor in (
            ("delta", self.back.delta, self.tensors.delta),
            ("logs", self.back.logs, self.tensors.logs),
            ("rest", self.back.rest, self.tensors.rest),
        ):
            if leaf is not None:
                at = self.arguments.pointer(name, tensor) + inputs.row() * length
                self.handed[name] = self.b.let(f"p_{name}", at)

    def _handed(self, name: str, side: Side) -> E:
        """What was handed on of the rows of one end."""
        dtype = "fp64" if name == "delta" and self.pairs.softmax and self.pairs.wide else "fp32"
        return self.b.let(f"b_{name}", self.vector(self.handed[name], side, dtype))

    def rows_of(self, side: Side) -> tuple[E | None, E | None]:
        """The logarithms of the sums of rows and the cotangents of their divisors, laid out along a tile."""
        lse = None
        if self.back.holds_logs is None:
            lse = self.rows_lse(side) if self.back.logs is None else self._handed("logs", side)
        delta = None if self.back.delta is None else self._handed("delta", side)
        laid = [None if x is None else self.laid(side, x) for x in (lse, delta)]
        return laid[0], laid[1]

    def low(self, along: Along, side: Side, end: str) -> E:
        """What exponents lose where they are rounded; of rows with the logarithms of their sums."""
        if not self.first and side.letter == "i" and along is self.back.holds_logs and self.back.logs is not None:
            return self._handed("logs", side)
        return super().low(along, side, end)

    def within(self, along: Along, side: Side) -> E:
        """What a path has inside the chunk of visited ends; of rows with the logarithms of their sums."""
        if side.letter == "i" and along is self.back.holds_logs and not self.first:
            return self._handed("rest", side)
        return super().within(along, side)

    def pair(
        self,
        pair: PairLowering,
        scores: E,
        dweights: Callable[[E], E],
        scale: E | None,
        rows: tuple[E | None, E | None],
        *,
        summed: bool = True,
    ) -> tuple[E, E]:
        """The weights of a tile's pairs and the cotangents of their scores.

        dweights: makes the products of cotangents, once the weights are known. rows: what rows have, laid out along the
        tile: the logarithm of the sum, and the cotangent of the divisor. summed: whether pairs are added to the sums.
        """
        b, pairs = self.b, self.pairs
        lse, delta = rows

        def cotangents(weights: E) -> E:
            found = dweights(weights)
            if delta is not None:
                # in fp32 apart from the product: what Triton sees is no sum, which would begin with delta
                added = found - -delta if pairs.wide else found + delta
                lone = pair.seen is not None and self.constant_rows
                b.set(found, where(delta < INFINITY, added, 0.0) if lone else added)
            return found

        if pairs.softmax:
            scores = self.exponents(pair, scores, scale, wide=pairs.wide)
            if self.ramp is not None:
                scores, lse = self._ramped(scores, lse)
            if lse is not None:
                scores = (scores - lse).to("fp32")
            if pair.seen is not None:
                scores = where(pair.seen, scores, MINUS_INFINITY)
            weights = b.let("b_p", pair.exp2(scores))
            ds = cotangents(weights)
            b.set(ds, weights * ds)
            if summed:
                self.add_sums(pair, ds)
            return weights, ds
        if scale is not None:
            b.set(scores, scores * scale)
        slope: E | None = None
        activated = scores
        if pairs.activation != "none":
            pair.bind(pairs.score, scores)
            one = pairs.graph.const(1.0)
            whole = pairs.graph.apply(pairs.activation, pairs.score)
            slope = pair.value(gradients(pairs.graph, [(whole, one)], [pairs.score])[pairs.score])
            activated = b.named("b_f", pair.value(whole))
        weight = None if pairs.weight is None else b.let("b_w", number_of(pairs.weight, pair))
        if pair.seen is not None:
            if weight is not None:
                b.set(weight, where(pair.seen, weight, 0.0))
            else:
                activated = where(pair.seen, activated, 0.0)
        weights = b.named("b_p", activated if weight is None else activated * weight)
        ds = cotangents(weights)
        if pair.seen is not None:
            b.set(ds, where(pair.seen, ds, 0.0))
        if weight is not None and pairs.weight is not None:
            pair.bind(pairs.weight, weight)
            if summed:
                self.add_sums(pair, ds * activated)
            b.set(ds, ds * weight)
        if slope is not None:
            b.set(ds, ds * slope)
        return weights, ds

    def _ramped(self, scores: E, lse: E | None) -> tuple[E, E | None]:
        """Exponents with what own ends add to a ramp, or the logarithms of own rows less that."""
        assert self.ramp is not None
        mine = self.ramp[0].col
        if lse is not None and lse.tile.shape == mine.tile.shape:
            return scores, lse - mine
        return scores + mine, lse

    def start_sums(self) -> None:
        """Sums over the other end of pairs, of 0."""
        extent = EXTENTS[self.own]
        for one in self.summed:
            shape = (extent,) if one.table is None else (extent, self._levels())
            self.totals[one.tensor] = self.b.let(f"b_{one.tensor}", zeros(*shape, dtype=self.sums_dtype))

    def _levels(self) -> str:
        """The size that levels have in a tile."""
        levels = path("triton.next_power_of_2").call(self.host.sizes["level"])
        name = self.arguments.constant("BL", levels).node
        assert isinstance(name, Name)
        return name.name

    def add_sums(self, pair: PairLowering, cotangent: E) -> None:
        """Add a tile's pairs to the sums, where these are asked for."""
        if not self.summed:
            return
        b = self.b
        with b.scope(), b.branch(self._first_sum().given()):
            made = pair.extended()
            made.bind(self.back.cotangent, b.named("b_z", cotangent))
            for one in self.summed:
                value = self.live(made, one).to(self.sums_dtype)
                if one.table is None:
                    b.set(self.totals[one.tensor], self.totals[one.tensor] + reduce_sum(value, 1))
                else:
                    self._add_levels(self.totals[one.tensor], self.indices[one.table.leaf], value)

    def live(self, pair: PairLowering, one: Sum) -> E:
        """What is summed of every pair of a tile."""
        value = pair.value(one.expr)
        if pair.seen is None:
            return value
        live = pair.seen
        if one.apart:
            live = live & pair.value(self.pairs.i).ne(pair.value(self.pairs.j))
        return where(live, value, 0.0)

    def _add_levels(self, total: E, index: E, value: E) -> None:
        """Add a tile's pairs to the sums [own, levels], by their levels."""
        b, extent = self.b, total.tile.shape[1]
        levels = b.let("o_l", arange(extent), show=False)
        if not index.tile.shape:
            b.set(total, total + where(levels.row.eq(index), reduce_sum(value, 1).col, 0.0))
            return
        value = b.named("b_x", value)
        with b.loop("level", call("range", size(extent), tile=Tile("int32")), Tile("int32")) as level:
            part = reduce_sum(where(index.eq(level), value, 0.0), 1)
            b.set(total, total + where(levels.row.eq(level), part.col, 0.0))

    def _first_sum(self) -> E:
        return self.arguments.pointer(self.summed[0].tensor, self.tensors.sums[self.summed[0].tensor])

    def write_sums(self, inputs: Inputs, own: Side) -> None:
        """Write the sums of one head, [B, H, T]."""
        if not self.summed:
            return
        length = self.arguments.integer("T", self.host.sizes["time"])
        with self.b.branch(self._first_sum().given()):
            for one in self.summed:
                pointer = self.arguments.pointer(one.tensor, self.tensors.sums[one.tensor])
                at, mask = pointer + inputs.row() * length + own.positions, own.valid
                if one.table is not None and own.valid is not None:
                    levels = self.b.let("o_l", arange(self._levels()), show=False)
                    count = self.arguments.integer("LEVELS", self.host.sizes["level"])
                    places = (inputs.row() * length + own.positions).col * count
                    at, mask = pointer + (places + levels.row), own.valid.col & (levels < count).row
                self.b.do(call("tl.store", at, self.totals[one.tensor], mask=mask, tile=Tile("ptr")))


class QueryGradient(PairGradient):
    """Builds the kernel of the queries' gradients; it also keeps what the others read of rows, [B, H, T]."""

    first = True

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
        q = self.in_registers("q", self.operand(own, linear.q, "q", "key"))
        dn = self.in_registers("dn", self.operand(own, self.dn, "dn", "value"))
        lse = self._logs(inputs, own)
        seen = self.see(place, own)
        rows: tuple[E | None, E | None] = (None if lse is None else lse.col, None)

        def tiles(visit: Visit) -> tuple[PairLowering, E, E, E]:
            """What is had of a tile: its pairs, their keys, scores, and products of cotangents with values."""
            other = self.other_side(place, inputs, static, visit, (linear.k, linear.v))
            k = self.operand(other, linear.k, "k", "key")
            v = self.operand(other, linear.v, "v", "value")
            pair = self.lowering(place, own, other, static, visit, seen)
            return pair, k, b.let("b_s", self.product(q, k)), b.let("b_dp", self.product(dn, v))

        if self.twice and self.back.made.along is not None:
            total = b.let("b_along", zeros("BM", dtype="fp64"))

            def weigh(visit: Visit) -> None:
                pair, _, scores, dweights = tiles(visit)
                given = None if self.pairs.softmax else b.let("b_given", dweights)
                weights, ds = self.pair(pair, scores, lambda _: dweights, scale, rows, summed=False)
                b.set(total, total + reduce_sum((ds if given is None else weights * given).to("fp64"), 1))

            self.visits(place, weigh)
            own.lowering.bind(self.back.made.along, -total if self.pairs.softmax else -total.to("fp32"))
        delta = None
        if offset:
            offset_of = own.lowering.value(offset[0])
            delta = b.let(
                "b_delta",
                b.helper("keep", offset_of, own.valid or lift(True), lift(True), dtype=offset_of.tile.dtype),
            )
            self._add_lost(inputs, own, dn, delta)
            self._finish(place, inputs, own, seen, delta)
            self._hand_on(inputs, own, "delta", self.tensors.delta, delta)
        dq = b.let("b_dq", zeros("BM", "BK"))
        self.start_sums()
        rows = (rows[0], None if delta is None else delta.col)

        def body(visit: Visit) -> None:
            pair, k, scores, dweights = tiles(visit)
            _, ds = self.pair(pair, scores, lambda _: dweights, scale, rows)
            b.set(dq, self.plus(dq, ds.to("dot"), k))

        self.visits(place, body)
        b.section("Output")
        own.lowering.bind(walk.result, scaled_by(self, dq, static))
        for output in walk.outputs:
            self.write(inputs, own, output, self.tensors.outputs[output.name])
        self.write_sums(inputs, own)
        doc = ("One program sums the gradients of one tile of queries over the keys that they see.",)
        return b.function(name, doc, self.arguments.parameters, jit=True)

    def _alone(self, place: Place, own: Side, seen: Seen) -> E:
        """Which own positions see one other at most."""
        bounds = InKernel(self.arguments, self.host, self.names, place, own.valid)
        lo, hi = seen.lo, seen.hi
        if lo is None and self.support.lo is not None:
            lo = value(self.support.lo, own.positions, bounds)
        if hi is None and self.support.hi is not None:
            hi = pointwise("tl.minimum", value(self.support.hi, own.positions, bounds), place.span.end, dtype="int32")
        first = place.begin if lo is None else pointwise("tl.maximum", lo, place.begin, dtype="int32")
        return (place.span.end if hi is None else hi) - first < 2

    def _add_lost(self, inputs: Inputs, own: Side, dn: E, delta: E) -> None:
        """Add what is left of a row that one pair dominates, which the result lost where it was rounded."""
        b = self.b
        if self.back.lost is None:
            return
        pointer = self.arguments.pointer("lost", self.tensors.lost)
        with b.branch(pointer.given()):
            base, stride = inputs.made("lost", pointer, "value")
            at = base + own.positions.to("int64") * stride
            b.helpers.add("along_lost")
            y = own.lowering.value(self.back_leaf(1))
            given = delta, dn, y, at, own.valid or lift(True), own.inside["value"]
            b.set(delta, call("along_lost", *given, tile=delta.tile))

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
                b.set(delta, where(self._alone(place, own, seen), INFINITY, delta))

    def _logs(self, inputs: Inputs, own: Side) -> E | None:
        """Hand the logarithms of the rows' sums on, and return what the pairs here are still to be divided by."""
        b, lse, along = self.b, self.rows_lse(own), self.back.holds_logs
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


def scaled_by(kernel: PairKernel, total: E, static: Lowering) -> E:
    """A gradient of queries or keys with the scale of the scores."""
    scale = kernel.pairs.scale
    if isinstance(scale, Const) and scale.value == 1:
        return total
    kernel.b.set(total, total * static.value(scale))
    return total
