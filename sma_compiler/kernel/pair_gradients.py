"""The kernels of the quadratic plan's gradients: of queries by tiles of rows, of keys and values by tiles of columns.

Weights are computed again from what the forward pass kept of every row. With dN the cotangent of the rows before they
are divided, and D that of the divisor (under a softmax -dY . y), a pair's weight w has the cotangent dN_i . v_j + D_i.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sma_compiler.ir.nodes import Const, Expr, Param
from sma_compiler.kernel.build import (
    INFINITY,
    MINUS_INFINITY,
    E,
    arange,
    call,
    lift,
    path,
    reduce_sum,
    size,
    where,
    zeros,
)
from sma_compiler.kernel.derive import gradients
from sma_compiler.kernel.gates import LOG2E
from sma_compiler.kernel.host import Host
from sma_compiler.kernel.inputs import Inputs
from sma_compiler.kernel.linear import is_tensor, plain
from sma_compiler.kernel.lower import Lowering
from sma_compiler.kernel.nodes import Name, Tile
from sma_compiler.kernel.pair_backward import PairBackward, Sum
from sma_compiler.kernel.pair_kernel import PairKernel
from sma_compiler.kernel.pair_paths import EXTENTS
from sma_compiler.kernel.pair_places import PairNames, Place, Side, Visit
from sma_compiler.kernel.pairs import Along, Pairs
from sma_compiler.kernel.positions import number_of
from sma_compiler.kernel.score import PairLowering


@dataclass(frozen=True)
class PairTensors:
    """Names in a launcher: of outputs and sums by name, of the cotangents of divisors, and of how heads are grouped.

    logs, rest, others, share, low, care: see `PairBackward`, or None. dlse: the cotangents of the logarithms of rows
    under a softmax, or None.
    """

    outputs: dict[str, E]
    sums: dict[str, E]
    delta: E
    logs: E
    rest: E
    others: E
    share: E
    low: E
    care: E
    groups: E
    dlse: E


@dataclass(frozen=True)
class Rows:
    """What rows have, laid out along a tile: the logarithm of the sum of their weights in base 2, and the cotangent of
    their divisor; in tiles that take care (`careful`) what that loses where it is rounded, and what weights are
    multiplied by. None: nothing."""

    lse: E | None = None
    delta: E | None = None
    low: E | None = None
    share: E | None = None
    careful: bool = False


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
        self.unit_of_rows: tuple[E, E] | None = None
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

    def cotangents(self, side: Side) -> E:
        """The cotangents of rows before they are divided, as products take them.

        Where rows are divided by sums of weights they are in a unit of their tile, and so is what is made with them.
        """
        if self.back.made.dq.weight is None or self.pairs.wide:
            return self.operand(side, self.dn, "dn", "value")
        masked = size("MASKED") if side.valid is None else lift(True)
        kept = self.b.helper("keep", side.lowering.value(self.dn), side.inside["value"], masked)
        operand, self.unit_of_rows = self.in_units(self.b.let("b_dn", kept), "dn")
        return operand

    def plus(self, total: E, a: E, b: E) -> E:
        """A tile plus a product that counts in the unit of rows."""
        if self.unit_of_rows is None:
            return super().plus(total, a, b)
        up, down = self.unit_of_rows
        return super().plus(total * up, a, b) * down

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
            ("share", self.back.share, self.tensors.share),
            ("low", self.back.low, self.tensors.low),
        ):
            if leaf is not None:
                at = self.arguments.pointer(name, tensor) + inputs.row() * length
                self.handed[name] = self.b.let(f"p_{name}", at)

    def group_of(self, head: E) -> E:
        """The group of a head; heads of one have keys and values in common."""
        return head // self.arguments.constant("HEADS", self.host.heads // self.tensors.groups)

    def care(self, place: Place, group: E) -> E | None:
        """Where it is said of a group of heads that some of its rows need care; without these a second pass ends here.

        None: no rows do.
        """
        if self.back.care is None:
            return None
        b, groups = self.b, self.arguments.integer("G", self.tensors.groups)
        at = self.arguments.pointer("care", self.tensors.care) + place.span.batch * groups + group
        address = b.let("p_care", at)
        b.comment("A second pass goes over heads with large scores, or with rows that one pair has all of")
        with b.scope(), b.branch(size("CARE")):
            care = b.let("care", call("tl.load", address, tile=Tile("int32")))
            with b.branch(care.eq(0)):
                b.give(None)
        return address

    def with_care(self, usual: Callable[[], None], careful: Callable[[], None] | None) -> None:
        """What goes over pairs: in the first pass, and in the second one, if there is one."""
        b = self.b
        if careful is None:
            usual()
            return
        with b.scope(), b.branch(size("CARE")):
            careful()
        with b.scope(), b.otherwise():
            usual()

    def _handed(self, name: str, side: Side) -> E:
        """What was handed on of the rows of one end."""
        dtype = "fp64" if name == "delta" and self.pairs.softmax and self.pairs.wide else "fp32"
        value = self.vector(self.handed[name], side, dtype)
        if name == "delta" and self.unit_of_rows is not None:
            value = value * self.unit_of_rows[0]
        return self.b.let(f"b_{name}", value)

    def rows_of(self, side: Side, *, careful: bool) -> Rows:
        """What rows have, laid out along a tile."""
        lse = None
        if self.back.holds_logs is None:
            lse = self.rows_lse(side) if self.back.logs is None else self._handed("logs", side)
        delta = None if self.back.delta is None else self._handed("delta", side)
        low, share = (self._handed(name, side) if careful else None for name in ("low", "share"))
        laid = [None if x is None else self.laid(side, x) for x in (lse, delta, low, share)]
        return Rows(laid[0], laid[1], laid[2], laid[3], careful)

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
        rows: Rows,
        *,
        summed: bool = True,
    ) -> tuple[E, E]:
        """The weights of a tile's pairs and the cotangents of their scores.

        scores: of tiles that take care what `near` gave. dweights: makes the products of cotangents, once the weights
        are known. rows: what rows have. summed: whether pairs are added to the sums.
        """
        b, pairs = self.b, self.pairs
        lse, delta = rows.lse, rows.delta

        def cotangents(weights: E) -> E:
            found = dweights(weights)
            if delta is not None:
                # where these may cancel, apart from the product: Triton sees no sum, which would begin with delta
                added = found - -delta if pairs.wide or rows.careful else found + delta
                added = added if rows.low is None else added + rows.low
                lone = pair.seen is not None and self.constant_rows
                b.set(found, where(delta < INFINITY, added, 0.0) if lone else added)
            return found

        if pairs.softmax:
            if rows.careful:
                scores = self._weighed(pair, scores)
            else:
                scores = self.exponents(pair, scores, scale, wide=pairs.wide)
                if self.ramp is not None:
                    scores, lse = self._ramped(scores, lse)
                if lse is not None:
                    scores = (scores - lse).to("fp32")
            if pair.seen is not None:
                scores = where(pair.seen, scores, MINUS_INFINITY)
            weights = b.let("b_p", pair.exp2(scores))
            if rows.share is not None:
                b.set(weights, weights * rows.share)
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

    def scores(
        self,
        visit: Visit,
        inputs: tuple[Inputs, Inputs],
        sides: tuple[Side, Side],
        operands: tuple[E, E],
        scale: E | None,
        lse: E | None,
        when: E | None = None,
    ) -> E:
        """The scores of a tile; if it takes care scaled, and less about the logarithms of rows: both may be large.

        Tensor cores cut addends off a little below the largest one: with care products are summed exactly, unless
        queries or keys are computed. inputs, sides, operands: of own and of visited positions. when: where care is
        needed; None: everywhere.
        """
        b = self.b
        if not visit.careful:
            return b.let("b_s", self.product(*operands))
        logs, self.logs = self.logs, None
        less = logs or lse or lift(0.0)
        factor = lift(1.0) if scale is None else scale
        exact = self._exact(inputs, sides, factor, less)
        if exact is not None and when is None:
            return b.let("b_e", exact)
        found = b.let("b_e", b.let("b_s", self.product(*operands)) * factor - less)
        if exact is not None and when is not None:
            with b.branch(when):
                b.set(found, exact)
        return found

    def _exact(self, inputs: tuple[Inputs, Inputs], sides: tuple[Side, Side], factor: E, less: E) -> E | None:
        """Exact products of the rows of queries and keys times a factor, less about what is nearly as large."""
        ends: list[E] = []
        for of_side, side in zip(inputs, sides, strict=True):
            x = plain(self.pairs.linear.q if side.letter == "i" else self.pairs.linear.k)
            if not (isinstance(x, Param) and is_tensor(x) and {"time", "key"} <= set(x.axes)) or side.valid is None:
                return None
            ends += [of_side.line(x.name, side.start, side.offsets), side.valid]
        self.b.helpers.add("exact_exponents")
        tile = Tile("fp32", (self.extent[True], self.extent[False]))
        return call("exact_exponents", *ends, factor, less, size("K"), path("DOT"), tile=tile)

    def _weighed(self, pair: PairLowering, exponents: E) -> E:
        """Exponents with what the mask adds to them."""
        if self.ramp is not None:
            return exponents + (self.ramp[0].col + self.ramp[1].row)
        if self.pairs.weight is None:
            return exponents
        return exponents + self.b.named("b_bias", pair.scaled(self.pairs.weight))

    def holds_logs(self, along: Along) -> bool:
        """See `PathKernel.holds_logs`."""
        return self.back.share is not None and along is self.back.holds_logs

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
                if self.unit_of_rows is not None:
                    value = value * self.unit_of_rows[1]
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


def scaled_by(kernel: PairKernel, total: E, static: Lowering) -> E:
    """A gradient of queries or keys with the scale of the scores."""
    scale = kernel.pairs.scale
    if isinstance(scale, Const) and scale.value == 1:
        return total
    kernel.b.set(total, total * static.value(scale))
    return total
