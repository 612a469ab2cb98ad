"""The kernel that makes Q K^T inside every chunk ahead of the others, where many programs would make it again.

Heads that share q and k share these scores, and so do the value channels of one head; [B, G, T, C] in fp32.
"""

from __future__ import annotations

from sma_compiler.kernel.build import arange, call, dot, size, trans
from sma_compiler.kernel.chunk import Chunked, program, score_address
from sma_compiler.kernel.inputs import Inputs
from sma_compiler.kernel.linear import is_tensor, plain
from sma_compiler.kernel.nodes import Function, Tile


class Scores(Chunked):
    """Builds it: one program for each chunk of each group of heads."""

    def build(self, name: str) -> Function:
        """The kernel."""
        b, linear = self.b, self.linear
        b.section("Which chunk, group of heads and sequence")
        t0 = b.let("t0", program(0) * size("C"))
        i_g = b.let("i_g", program(1).to("int64"))
        i_b = b.let("i_b", program(2).to("int64"))
        inputs = Inputs(b, self.arguments, linear.op, self.host, i_b, i_g, heads=self.host.groups)
        length = self.arguments.integer("T", self.host.sizes["time"])
        o_c = b.let("o_c", arange("C"), show=False)
        o_k = b.let("o_k", arange("BK"), show=False)
        m_t = b.let("m_t", t0 + o_c < length, show=False)
        inputs.use_channels("key", o_k, b.let("m_k", o_k < size("K"), show=False))
        b.section("Where the rows of these heads begin")
        exprs = (linear.q, linear.k)
        static = inputs.static(exprs)
        b.section("Rows t0 .. t0 + C; what lies past the end is read as 0")
        inputs.enter(m_t)
        operands = {plain(x) for x in exprs if is_tensor(x)}
        lowering = inputs.chunk(exprs, static, t0, o_c, m_t, operands)
        q = self.operand(linear.q, "q", lowering, inputs.inside["key"])
        k = self.operand(linear.k, "k", lowering, inputs.inside["key"])
        b.section("")
        scores = b.let("b_scores", dot(q, trans(k)))
        groups = self.arguments.integer("G", self.host.groups)
        pointer = self.arguments.pointer("scores", self.host.scores)
        b.helpers.add("store")
        at = score_address(pointer, i_b * groups + i_g, length, t0, o_c)
        b.do(call("store", at, scores, m_t.col, size("MASKED"), tile=Tile("ptr")))
        return b.function(name, ("Q K^T inside every chunk.",), self.arguments.parameters, jit=True)
