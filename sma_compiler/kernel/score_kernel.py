"""The kernels that make scores inside every chunk ahead of the others, where many programs would make them again.

Heads that share q and k share Q K^T, and so do the value channels of one head; [B, G, T, C] in their dtype. Where a
gate differs by the channels that scores sum over, the weights are part of them, [B, H, T, C].
"""

from __future__ import annotations

from sma_compiler.ir.nodes import Expr
from sma_compiler.kernel.build import E, arange, call, dot, pointwise, reduce_sum, size, trans, where, zeros
from sma_compiler.kernel.channels import axis_of, channel_path
from sma_compiler.kernel.gates import Rows
from sma_compiler.kernel.host import SIZES, Host
from sma_compiler.kernel.inputs import EXTENT, Inputs, tensors_of
from sma_compiler.kernel.linear import Linear, Term, is_tensor, plain
from sma_compiler.kernel.lower import Lowering, operand, wide_operand
from sma_compiler.kernel.maker import Maker, program
from sma_compiler.kernel.nodes import Function, Tile
from sma_compiler.kernel.rows import chunk, slots

CHANNELS = ("key", "value")


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


class ChannelScores(Maker):
    """Builds the kernel of gates along the axis that scores sum over: one program for each chunk of each head.

    late, early: the operands at both ends of paths, and names: what the kernel calls them.
    """

    def __init__(
        self, term: Term, late: Expr, early: Expr, names: tuple[str, ...], host: Host, reserved: frozenset[str]
    ) -> None:
        super().__init__(host, reserved)
        self.term = term
        self.operands = ((late, names[0]), (early, names[1]))

    def build(self, name: str) -> Function:
        """The kernel."""
        b, term = self.b, self.term
        axis = axis_of(term)
        b.section("Which chunk, head and sequence")
        slot = b.let("slot", program(0))
        i_h = b.let("i_h", program(1).to("int64"))
        i_b = b.let("i_b", program(2).to("int64"))
        span = chunk(b, self.arguments, self.host, slot, i_b)
        t0 = span.begin
        inputs = Inputs(b, self.arguments, self.host, i_b, i_h, span.sequence)
        o_c = b.let("o_c", arange("C"), show=False)
        m_t = b.let("m_t", t0 + o_c < span.end, show=False)
        rows = Rows(o_c, m_t, pointwise("tl.minimum", span.end - t0, size("C"), dtype="int32"))
        exprs = (*(expr for expr, _ in self.operands), *(gate.log for gate in term.gates))
        for other in (letter for letter in CHANNELS if letter != axis):
            if any(other in node.axes for node in tensors_of(exprs)):
                held = b.let(f"o_{other[0]}", arange(EXTENT[other]), show=False)
                inputs.use_channels(other, held, b.let(f"m_{other[0]}", held < size(SIZES[other]), show=False))
        scores = b.let("b_scores", zeros("C", "C"))
        b.space()
        steps = call("tl.range", 0, size(SIZES[axis]), size(EXTENT[axis]), tile=Tile("int32"))
        with b.loop("n0", steps, Tile("int32")) as n0:
            held = b.let(f"o_{axis[0]}", n0 + arange(EXTENT[axis]), show=False)
            inputs.use_channels(axis, held, b.let(f"m_{axis[0]}", held < size(SIZES[axis]), show=False))
            b.section("Where the rows of this head begin")
            static = inputs.static(exprs)
            b.section("Rows t0 .. t0 + C; what lies past the end is read as 0")
            inputs.enter(m_t)
            lowering = inputs.chunk(exprs, static, t0, o_c, m_t, ())
            self._channels(inputs, lowering, rows, t0, slot, scores)
        b.space()
        heads = self.arguments.integer("H", self.host.heads)
        length = self.arguments.integer("T", self.host.sizes["time"])
        b.helpers.add("store")
        pointer = self.arguments.pointer("scores", self.host.scores)
        at = score_address(pointer, i_b * heads + i_h, length, t0, o_c)
        b.do(call("store", at, scores, m_t.col, size("MASKED"), tile=Tile("ptr")))
        doc = ("Weighted scores inside every chunk, and both operands decayed to its start and to its end.",)
        return b.function(name, doc, self.arguments.parameters, jit=True)

    def _channels(self, inputs: Inputs, lowering: Lowering, rows: Rows, t0: E, slot: E, scores: E) -> None:
        """Some channels of a chunk: what they add to the scores, and their operands decayed."""
        b, term = self.b, self.term
        axis = axis_of(term)
        inside = inputs.inside[axis]
        late, early = (wide_operand(b, expr, label, lowering, inside) for expr, label in self.operands)
        path = channel_path(term, False, lowering, rows, inside)
        b.section("Pairs inside the chunk")
        b.set(scores, scores + path.scores(late, early, rows))
        if not term.strict:
            pairs, decay = late * early, path.own()
            own = b.let("b_own", reduce_sum(pairs if decay is None else pairs * decay, 1))
            diagonal = rows.offsets.col.eq(rows.offsets.row)
            b.set(scores, scores + where(diagonal, own.col, 0.0))
        b.section("What the state is read with and grows by")
        b.helpers.add("store")
        for part, value in (("late", late * path.from_start()), ("early", early * path.to_end())):
            begin = inputs.made(part, self.arguments.pointer(part, self.host.decayed[part]), axis)
            at, mask = inputs.addresses(*begin, axis, t0, rows.offsets, rows.valid)
            b.do(call("store", at, value, mask, size("MASKED"), tile=Tile("ptr")))
        pointer = self.arguments.pointer("across", self.host.decayed["across"])
        place = inputs.row() * slots(self.arguments, self.host) + slot
        offsets, valid = inputs.channels[axis]
        at = pointer + place * size(SIZES[axis]) + offsets
        b.do(call("store", at, path.across(), valid, size("MASKED"), tile=Tile("ptr")))


def score_address(pointer: E, place: E, length: E, t0: E, rows: E) -> E:
    """Where Q K^T of a chunk is kept, for one of [B, G]."""
    return pointer + (place * length + t0) * size("C") + (rows.col * size("C") + rows.row)
