"""The kernel that inverts what a `solve` has inside every chunk, ahead of the walk between chunks.

With A_ij = L_ij (a_i . b_j) for the pairs of a chunk, strictly lower, rows see each other through (I + A)^-1 = I + N:
the walk then needs one product with N a chunk. N [B, H, T, C] lies as scores made ahead do, in the operands' dtype; the
identity is no part of it and so is never rounded.
"""

from __future__ import annotations

from sma_compiler.kernel.ahead import rates_inside
from sma_compiler.kernel.build import arange, dot, lift, pointwise, size, trans, where
from sma_compiler.kernel.chunk import Place
from sma_compiler.kernel.gates import Rows, scaled
from sma_compiler.kernel.host import Host, Tensors
from sma_compiler.kernel.inputs import Inputs
from sma_compiler.kernel.linear import is_tensor, plain
from sma_compiler.kernel.lower import operand
from sma_compiler.kernel.maker import program
from sma_compiler.kernel.nodes import Function
from sma_compiler.kernel.rows import chunk
from sma_compiler.kernel.score_kernel import inverted, keep_scores
from sma_compiler.kernel.shared_walk import ByChunk
from sma_compiler.kernel.walk import Walk


class Inverse(ByChunk):
    """Builds it, for gates that do not differ by channel: one program for each chunk of each head.

    walk: the forward one of the `solve`, whose rows are a and columns b.
    """

    def __init__(self, walk: Walk, host: Host, tensors: Tensors, reserved: frozenset[str]) -> None:
        super().__init__(walk, host, tensors, reserved, parts=False)
        self.guarded = True
        """What rows past the end have must be finite: products with it are summed."""

    def build(self, name: str) -> Function:
        """The kernel."""
        b, walk, inner = self.b, self.walk, self.walk.inner
        b.section("Which chunk, head and sequence")
        slot = b.let("slot", program(0))
        i_h = b.let("i_h", program(1).to("int64"))
        i_b = b.let("i_b", program(2).to("int64"))
        span = chunk(b, self.arguments, self.host, slot, i_b)
        inputs = Inputs(b, self.arguments, self.host, i_b, i_h, span.sequence)
        o_c = b.let("o_c", arange("C"), show=False)
        o_k = b.let("o_k", arange(self.inner), show=False)
        inputs.use_channels(inner, o_k, b.let("m_k", o_k < size("K"), show=False))
        place = Place(inputs, o_c, span, lift(0), None, span.begin, span.end)
        exprs = (walk.p, walk.s, *self.factors(rows=True))
        b.section("Where the rows of this head begin")
        static = inputs.static(exprs)
        rates = rates_inside(walk, static)
        b.section("Rows t0 .. t0 + C; what lies past the end is read as 0")
        m_t = b.let("m_t", span.begin + o_c < span.end, show=False)
        rows = Rows(o_c, m_t, pointwise("tl.minimum", span.end - span.begin, size("C"), dtype="int32"))
        inputs.enter(m_t)
        operands = {plain(x) for x in (walk.p, walk.s) if is_tensor(x)}
        lowering = inputs.chunk(exprs, static, span.begin, o_c, m_t, operands)
        p = operand(b, walk.p, walk.names[0], lowering, inputs.inside[inner])
        s = operand(b, walk.s, walk.names[1], lowering, inputs.inside[inner])
        (found,) = self._paths(place, lowering, rows, rates, span.begin, True)
        b.section("Pairs inside the chunk")
        scores = b.let("b_scores", dot(p, trans(s)))
        decays = found.between(rows)
        if decays is not None:
            b.set(scores, scores * b.let("b_w", decays))
        whole = scaled(scaled(scores, found.columns.factors, column=False), found.rows.factors, column=True)
        b.set(scores, where(found.support(rows), whole, 0.0) if decays is None else whole)
        b.section("What they are solved by")
        keep_scores(self, inputs, rows, span, inverted(b, scores, parts=True), "inverse")
        doc = "N of (I + A)^-1 = I + N, A the weighted scores of the pairs inside a chunk."
        return b.function(name, (doc,), self.arguments.parameters, jit=True)
