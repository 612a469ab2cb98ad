"""The kernel that makes Q K^T inside every chunk ahead of the others, where many programs would make it again.

Heads that share q and k share these scores, and so do the value channels of one head; [B, G, T, C] in fp32.
"""

from __future__ import annotations

from sma_compiler.kernel.build import E, arange, call, dot, size, trans
from sma_compiler.kernel.host import Host
from sma_compiler.kernel.inputs import Inputs
from sma_compiler.kernel.linear import Linear, is_tensor, plain
from sma_compiler.kernel.lower import operand
from sma_compiler.kernel.maker import Maker, program
from sma_compiler.kernel.nodes import Function, Tile
from sma_compiler.kernel.rows import chunk


class Scores(Maker):
    """Builds it: one program for each chunk of each group of heads."""

    def __init__(self, linear: Linear, host: Host, reserved: frozenset[str]) -> None:
        super().__init__(host, reserved)
        self.linear = linear

    def build(self, name: str) -> Function:
        """The kernel."""
        b, linear = self.b, self.linear
        b.section("Which chunk, group of heads and sequence")
        slot = b.let("slot", program(0))
        i_g = b.let("i_g", program(1).to("int64"))
        i_b = b.let("i_b", program(2).to("int64"))
        span = chunk(b, self.arguments, self.host, slot, i_b)
        t0 = span.begin
        inputs = Inputs(b, self.arguments, self.host, i_b, i_g, span.sequence, heads=self.host.groups)
        length = self.arguments.integer("T", self.host.sizes["time"])
        o_c = b.let("o_c", arange("C"), show=False)
        o_k = b.let("o_k", arange("BK"), show=False)
        m_t = b.let("m_t", t0 + o_c < span.end, show=False)
        inputs.use_channels("key", o_k, b.let("m_k", o_k < size("K"), show=False))
        b.section("Where the rows of these heads begin")
        exprs = (linear.q, linear.k)
        static = inputs.static(exprs)
        b.section("Rows t0 .. t0 + C; what lies past the end is read as 0")
        inputs.enter(m_t)
        operands = {plain(x) for x in exprs if is_tensor(x)}
        lowering = inputs.chunk(exprs, static, t0, o_c, m_t, operands)
        q = operand(b, linear.q, "q", lowering, inputs.inside["key"])
        k = operand(b, linear.k, "k", lowering, inputs.inside["key"])
        b.section("")
        scores = b.let("b_scores", dot(q, trans(k)))
        groups = self.arguments.integer("G", self.host.groups)
        pointer = self.arguments.pointer("scores", self.host.scores)
        b.helpers.add("store")
        at = score_address(pointer, i_b * groups + i_g, length, t0, o_c)
        b.do(call("store", at, scores, m_t.col, size("MASKED"), tile=Tile("ptr")))
        return b.function(name, ("Q K^T inside every chunk.",), self.arguments.parameters, jit=True)


def score_address(pointer: E, place: E, length: E, t0: E, rows: E) -> E:
    """Where Q K^T of a chunk is kept, for one of [B, G]."""
    return pointer + (place * length + t0) * size("C") + (rows.col * size("C") + rows.row)
