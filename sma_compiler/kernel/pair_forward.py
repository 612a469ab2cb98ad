"""The forward pass of the quadratic plan: rows of scores, weighed and summed as they are visited."""

from __future__ import annotations

from sma_compiler.facts.bounds import bounds
from sma_compiler.ir.nodes import Apply, Expr, Size
from sma_compiler.kernel.build import (
    MINUS_INFINITY,
    E,
    call,
    exp2,
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
from sma_compiler.kernel.pairs import Pairs
from sma_compiler.kernel.score import LN2, PairLowering
from sma_compiler.kernel.walk import Walk


class PairForward(PairKernel):
    """Builds the kernel: one program for each tile of rows of each head.

    walk: what is written. tensors: its outputs, and `norm`, what rows are divided by: under a softmax the logarithm.
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
        seen = self.see(place, own)
        y = b.let("b_y", zeros("BM", "BV"))
        norm = most = None
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

        def body(visit: Visit) -> None:
            other = self.other_side(place, inputs, static, visit, (linear.k, linear.v))
            k = self.operand(other, linear.k, "k", "key")
            v = self.operand(other, linear.v, "v", "value")
            pair = self.lowering(place, own, other, static, visit, seen)
            scores = b.let("b_s", self.product(q, k))
            if most is not None and norm is not None:
                weights = self.online(pair, scores, scale, most, norm, y)
            else:
                weights = self.weights(pair, scores, scale)
                if norm is not None:
                    b.set(norm, norm + reduce_sum(weights.to(norm.tile.dtype), 1))
            b.set(y, self.plus(y, weights.to("dot"), v))

        self.visits(place, body)
        self._finish(inputs, own, y, norm, most)
        doc = ("One program sums what the rows of one tile see, for one head.",)
        return b.function(name, doc, self.arguments.parameters, jit=True)

    @property
    def _exponents(self) -> str:
        """What logarithms of weights are kept in."""
        return "fp64" if self.pairs.wide else "fp32"

    def online(self, pair: PairLowering, scores: E, scale: E | None, most: E, norm: E, y: E) -> E:
        """Exponentials of a tile's scores against the largest so far; what was summed before is scaled down to it."""
        b, dtype = self.b, most.tile.dtype
        wide = dtype == "fp64"
        factor: E | None = None
        if not wide and self.pairs.weight is None and _positive(self.pairs.scale):
            factor = scale
        else:
            scores = self.exponents(pair, scores, scale, wide=wide)
        if pair.seen is not None:
            b.set(scores, where(pair.seen, scores, MINUS_INFINITY))
        largest = call("tl.max", scores, 1, tile=Tile(dtype, ("BM",)))
        largest = largest if factor is None else largest * factor
        new = b.let("b_new", pointwise("tl.maximum", most, largest, dtype=dtype))
        base = b.let("b_base", where(new.eq(MINUS_INFINITY), 0.0, new))
        exponents, shrunk = (scores if factor is None else scores * factor) - base.col, most - base
        weights = b.let("b_p", pair.exp2(exponents.to("fp32") if wide else exponents))
        shrink = b.let("b_shrink", exp2(shrunk.to("fp32") if wide else shrunk))
        b.set(norm, norm * shrink + reduce_sum(weights, 1))
        b.set(y, y * shrink.col)
        b.set(most, new)
        return weights

    def _finish(self, inputs: Inputs, own: Side, y: E, norm: E | None, most: E | None) -> None:
        """Divide the rows, and write what is asked for."""
        b = self.b
        b.section("Rows over the sum of their weights" if norm is not None else "Output")
        if norm is not None:
            kept = norm
            if most is not None:
                log = pointwise("tl.log2", norm.to(self._exponents), dtype=self._exponents)
                kept = b.let("b_lse", (most + log) * LN2)
            self._keep(inputs, own, kept)
            if self.walk.normalize == "max1":
                b.set(y, y / pointwise("tl.maximum", pointwise("tl.abs", norm), 1.0).col)
            else:
                b.set(y, y * where(norm.eq(0.0), 0.0, 1.0 / norm).col)
        own.lowering.bind(self.walk.result, y)
        for output in self.walk.outputs:
            self.write(inputs, own, output, self.tensors.outputs[output.name])

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
