"""The forward pass of the quadratic plan: rows of scores, weighed and summed as they are visited."""

from __future__ import annotations

from dataclasses import dataclass

from sma_compiler.facts.bounds import bounds
from sma_compiler.ir.nodes import Apply, Expr, Size
from sma_compiler.kernel.build import (
    INFINITY,
    MINUS_INFINITY,
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
from sma_compiler.kernel.host import Host, Tensors
from sma_compiler.kernel.inputs import Inputs
from sma_compiler.kernel.maker import program
from sma_compiler.kernel.nodes import Function, Tile
from sma_compiler.kernel.pair_kernel import PairKernel
from sma_compiler.kernel.pair_places import PairNames, Side, Visit
from sma_compiler.kernel.pairs import Pairs, adds
from sma_compiler.kernel.score import LN2, PairLowering
from sma_compiler.kernel.walk import Walk


@dataclass(frozen=True)
class LeftOut:
    """The exponents of rows that their pairs go without, and which rows see tiles that are live as a whole.

    clear: None: all do.
    """

    exponent: E
    clear: E | None


class PairForward(PairKernel):
    """Builds the kernel: one program for each tile of rows of each head.

    walk: what is written. tensors: its outputs, `norm`, what rows are divided by: under a softmax the logarithm, and
    what share of each row all but its largest weight have.
    """

    def __init__(
        self, pairs: Pairs, walk: Walk, host: Host, names: PairNames, tensors: Tensors, reserved: frozenset[str]
    ) -> None:
        super().__init__(pairs, host, names, reserved, "i")
        self.walk = walk
        self.tensors = tensors

    def build(self, name: str) -> Function:
        """The kernel."""
        b, pairs, linear = self.b, self.pairs, self.pairs.linear
        place = self.place()
        i_h = b.let("i_h", program(1).to("int64"))
        inputs = self.inputs(place, i_h)
        b.section("Where the rows of this head begin")
        outputs = tuple(output.expr for output in self.walk.outputs)
        static = inputs.static((*self.products(), *outputs, *self.at_end("i"), *self.at_end("j"), *self.static_exprs()))
        scale = self.scale(static)
        b.section("The rows of this program")
        own = self.own_side(place, inputs, static, (linear.q, *outputs))
        q = self.operand(own, linear.q, "q", "key")
        if pairs.paths:
            q = self.in_registers("q", q)
        seen = self.see(place, own)
        left = self._leave_out(own) if pairs.softmax else None
        y = b.let("b_y", zeros("BM", "BV"))
        norm = most = top = None
        if linear.normalize != "none":
            norm = b.let("b_norm", zeros("BM", dtype="fp32" if pairs.softmax else self._exponents))
        if pairs.softmax:
            most = b.let(
                "b_max",
                call(
                    "tl.full",
                    sequence([size("BM")], "["),
                    MINUS_INFINITY,
                    tile=Tile(self._exponents, ("BM",)),
                    dtype=path("tl.float64" if self.pairs.wide else "tl.float32"),
                ),
            )
            if self._scales:
                top = b.let("b_top", most)

        def body(visit: Visit) -> None:
            other = self.other_side(place, inputs, static, visit, (linear.k, linear.v))
            k = self.operand(other, linear.k, "k", "key")
            v = self.operand(other, linear.v, "v", "value")
            pair = self.lowering(place, own, other, static, visit, seen)
            scores = b.let("b_s", self.product(q, k))
            if visit.partial is not None:
                with b.scope(), b.branch(visit.partial):
                    live = self.live_pairs(place, own, other, seen)
                    assert live is not None
                    b.set(scores, where(live, scores, MINUS_INFINITY))
            if most is not None and norm is not None:
                clear = None if left is None or visit.masked else left.clear
                weights = self.online(pair, scores, scale, most, norm, y, clear, top)
            else:
                weights = self.weights(pair, scores, scale)
                if norm is not None:
                    b.set(norm, norm + reduce_sum(weights.to(norm.tile.dtype), 1))
            b.set(y, self.plus(y, weights.to("dot"), v))

        self.visits(place, self.tiles(place), body)
        largest = lift(1.0)
        if norm is not None:
            b.section("Rows over the sum of their weights")
            if top is not None and most is not None and scale is not None:
                largest = self._unscaled(y, top, most, scale)
        if pairs.softmax and norm is not None:
            self._keep_others(inputs, own, norm, largest)
        self._finish(inputs, own, y, norm, most, None if left is None else left.exponent)
        doc = ("One program sums what the rows of one tile see, for one head.",)
        return b.function(name, doc, self.arguments.parameters, jit=True)

    @property
    def _exponents(self) -> str:
        """What logarithms of weights are kept in."""
        return "fp64" if self.pairs.wide else "fp32"

    @property
    def _scales(self) -> bool:
        """Whether scores are scaled as their maximum is subtracted, in one operation."""
        pairs = self.pairs
        return not pairs.wide and pairs.weight is None and _positive(pairs.scale)

    @property
    def joined(self) -> bool:
        """Where programs have few tiles to go over, and scores alone weigh pairs, a second loop would cost more."""
        return self._scales and self.pairs.support.exact and self.pairs.support.lo is not None

    def _leave_out(self, own: Side) -> LeftOut | None:
        """Leave the rows' own exponents of a path out, which a softmax does not see, where they only add to others."""
        b, pairs = self.b, self.pairs
        for along in pairs.paths:
            if pairs.wide or pairs.weight is None or not (along.one_sided and adds(pairs.weight, along.leaf)):
                continue
            exponent, cuts = own.paths[along.leaf]
            assert exponent is not None
            own.paths[along.leaf] = None, cuts
            clear = None
            if along.leaf in own.clear and cuts is not None:
                _, count = own.clear[along.leaf]
                own.clear[along.leaf] = None, count
                clear = b.let("m_clear", cuts.eq(count))
            return LeftOut(exponent if along.early == "j" else -exponent, clear)
        return None

    def online(
        self,
        pair: PairLowering,
        scores: E,
        scale: E | None,
        most: E,
        norm: E,
        y: E,
        clear: E | None = None,
        top: E | None = None,
    ) -> E:
        """Exponentials of a tile's scores against the largest so far; what was summed before is scaled down to it.

        The largest itself has the weight 1, unless scaling it rounds. clear: which rows see the tile at all, of tiles
        that come before all that others see; None: every one. top: the largest score before it is scaled.
        """
        b, dtype = self.b, most.tile.dtype
        wide = dtype == "fp64"
        factor: E | None = None
        if self._scales:
            factor = scale
        else:
            scores = self.exponents(pair, scores, scale, wide=wide)
        if pair.seen is not None:
            b.set(scores, where(pair.seen, scores, MINUS_INFINITY))
        largest = call("tl.max", scores, 1, tile=Tile(dtype, ("BM",)))
        if top is not None:
            b.set(top, pointwise("tl.maximum", top, largest, dtype=dtype))
            largest = top
        if factor is not None:
            largest = largest * factor
        gap, self.gap = (self.gap if self.ramp is None else self.ramp[0]), None
        inside = largest
        if gap is not None:
            inside = b.let("b_inside", largest)
            largest = inside + gap
        if clear is not None:
            largest = where(clear, largest, MINUS_INFINITY)
        if gap is not None:
            largest = b.let("b_largest", largest)
        new = b.let("b_new", largest if top is not None else pointwise("tl.maximum", most, largest, dtype=dtype))
        base = b.let("b_base", where(new.eq(MINUS_INFINITY), 0.0 if clear is None else INFINITY, new))
        less = base if gap is None else b.let("b_less", where(largest > most, inside, base - gap))
        exponents, shrunk = (scores if factor is None else scores * factor) - less.col, most - base
        weights = b.let("b_p", pair.exp2(exponents.to("fp32") if wide else exponents))
        shrink = b.let("b_shrink", exp2(shrunk.to("fp32") if wide else shrunk))
        b.set(norm, norm * shrink + reduce_sum(weights, 1))
        b.set(y, y * shrink.col)
        b.set(most, new)
        return weights

    def _finish(self, inputs: Inputs, own: Side, y: E, norm: E | None, most: E | None, left: E | None = None) -> None:
        """Divide the rows, and write what is asked for. left: what their exponents lack."""
        b = self.b
        if norm is None:
            b.section("Output")
        else:
            kept = norm
            if most is not None:
                # in fp64, for large logarithms round as much as their rows' weights differ
                log = pointwise("tl.log2", norm.to(self._exponents), dtype=self._exponents)
                exponent = most.to("fp64") + log.to("fp64")
                exponent = exponent if left is None else exponent + left.to("fp64")
                kept = b.let("b_lse", (exponent * LN2).to(self._exponents))
            self._keep(inputs, own, kept)
            if self.walk.normalize == "max1":
                b.set(y, y / pointwise("tl.maximum", pointwise("tl.abs", norm), 1.0).col)
            else:
                b.set(y, y * where(norm.eq(0.0), 0.0, 1.0 / norm).col)
        own.lowering.bind(self.walk.result, y)
        for output in self.walk.outputs:
            self.write(inputs, own, output, self.tensors.outputs[output.name])

    def _unscaled(self, y: E, top: E, most: E, scale: E) -> E:
        """The weight of the largest score, which should be 1; undo what it loses as a matrix product rounds it."""
        b = self.b
        own = b.let("b_own", exp2(pointwise("tl.fma", top, scale, -most)))
        restored = b.let("b_restored", where(most.eq(MINUS_INFINITY), 0.0, own / own.to("dot").to("fp32")))
        b.set(y, y * restored.col)
        return own

    def _keep_others(self, inputs: Inputs, own: Side, norm: E, largest: E) -> None:
        """Write the share of each row that all but its largest weight have, [B, H, T]; of empty rows 1."""
        if self.tensors.others is None:
            return
        pointer = self.arguments.pointer("others", self.tensors.others)
        with self.b.branch(pointer.given()):
            length = self.arguments.integer("T", self.host.sizes["time"])
            at = pointer + inputs.row() * length + own.positions
            others = where(norm > 0.0, (norm - largest) / norm, 1.0)
            self.b.do(call("tl.store", at, others, mask=own.valid, tile=Tile("ptr")))

    def _keep(self, inputs: Inputs, own: Side, norm: E) -> None:
        """Write what rows are divided by, [B, T, H]."""
        if self.tensors.norm is None:
            return
        pointer = self.arguments.pointer("lse" if self.pairs.softmax else "norm", self.tensors.norm)
        with self.b.branch(pointer.given()):
            base, stride = inputs.made("norm", pointer, None)
            self.b.do(call("tl.store", base + own.positions * stride, norm, mask=own.valid, tile=Tile("ptr")))


def _positive(x: Expr) -> bool:
    """Whether a number is surely greater than 0."""
    match x:
        case Size():
            return True
        case Apply(fn="mul" | "div" | "sqrt", args=args):
            return all(_positive(arg) for arg in args)
    return bounds(x)[0] > 0
