"""The kernels that make scores inside every chunk ahead of the others, where many programs would make them again.

Heads that share q and k share Q K^T, and so do the value channels of one head; [B, G, T, C] in their dtype. Where a
gate differs by the channels that scores sum over, the weights are part of them, [B, H, T, C].
"""

from __future__ import annotations

from contextlib import ExitStack

from sma_compiler.ir.nodes import Expr
from sma_compiler.kernel.build import (
    Builder,
    E,
    arange,
    call,
    cumsum,
    dot,
    lift,
    path,
    pointwise,
    reduce_sum,
    size,
    trans,
    where,
    zeros,
)
from sma_compiler.kernel.channels import axis_of, channel_path
from sma_compiler.kernel.gates import Rows
from sma_compiler.kernel.host import SIZES, Host
from sma_compiler.kernel.inputs import EXTENT, Inputs, tensors_of
from sma_compiler.kernel.linear import Linear, Term, is_tensor, plain
from sma_compiler.kernel.lower import operand, wide_operand
from sma_compiler.kernel.maker import Maker, program
from sma_compiler.kernel.nodes import Function, Tile
from sma_compiler.kernel.rows import Span, chunk, slots

CHANNELS = ("key", "value")
NARROW = 64.0
"""log2 of decays up to which no power of 2 leaves the range of bf16, nor do products of some."""


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

    late, early: the operands at both ends of paths, and names: what the kernel calls them. narrow: whether it takes no
    power of 2 to leave the range of bf16, and says of each chunk how far they reach; the other kernel then makes again
    what that was wrong for. again: whether a walk has said so of whole sequences. inverse: whether N is kept in place
    of scores A, see `inverse_kernel`.
    """

    def __init__(
        self,
        term: Term,
        late: Expr,
        early: Expr,
        names: tuple[str, ...],
        host: Host,
        reserved: frozenset[str],
        *,
        narrow: bool,
        again: bool = False,
        inverse: bool = False,
    ) -> None:
        super().__init__(host, reserved)
        self.term = term
        self.operands = ((late, names[0]), (early, names[1]))
        self.narrow = narrow
        self.again = again
        self.inverse = inverse

    def build(self, name: str) -> Function:
        """The kernel."""
        b = self.b
        b.section("Which chunk, head and sequence")
        i_h = b.let("i_h", program(1).to("int64"))
        i_b = b.let("i_b", program(2).to("int64"))
        o_c = b.let("o_c", arange("C"), show=False)
        with ExitStack() as stack:
            row = i_b * self.arguments.integer("H", self.host.heads) + i_h
            reach = "reach" if self.again else "widest"
            widest = self.arguments.pointer(reach, self.host.decayed[reach])
            if not self.again:
                widest = widest + row * slots(self.arguments, self.host)
            if self.narrow:
                slot = b.let("slot", program(0))
            else:
                slot = stack.enter_context(self.run(program(0), None if self.again else widest))
            span = chunk(b, self.arguments, self.host, slot, i_b)
            inputs = Inputs(b, self.arguments, self.host, i_b, i_h, span.sequence)
            m_t = b.let("m_t", span.begin + o_c < span.end, show=False)
            rows = Rows(o_c, m_t, pointwise("tl.minimum", span.end - span.begin, size("C"), dtype="int32"))
            widest = widest + (inputs.place() if self.again else slot)
            dtype, dot_dtype = path("tl.bfloat16"), path("DOT")
            wide = dtype.ne(dot_dtype).either(call("tl.load", widest, tile=Tile("fp32")) >= NARROW)
            if not self.narrow:
                stack.enter_context(b.branch(wide))
            self._chunk(inputs, rows, span, slot, widest)
        doc = "Weighted scores inside every chunk, and both operands decayed to its start and to its end."
        powers = "no power of 2 leaves" if self.narrow else "powers of 2 leave"
        return b.function(name, (doc, "", f"Where {powers} the range of bf16."), self.arguments.parameters, jit=True)

    def _chunk(self, inputs: Inputs, rows: Rows, span: Span, slot: E, at: E) -> None:
        """All of a chunk. at: where it is said how far powers of 2 reach."""
        b, axis = self.b, axis_of(self.term)
        exprs = (*(expr for expr, _ in self.operands), *(gate.log for gate in self.term.gates))
        for other in (letter for letter in CHANNELS if letter != axis):
            if any(other in node.axes for node in tensors_of(exprs)):
                held = b.let(f"o_{other[0]}", arange(EXTENT[other]), show=False)
                inputs.use_channels(other, held, b.let(f"m_{other[0]}", held < size(SIZES[other]), show=False))
        scores = b.let("b_scores", zeros("C", "C"))
        own = None if self.term.strict or self.narrow else b.let("b_own", zeros("C"))
        widest = b.let("widest", lift(0.0)) if self.narrow else None
        b.space()
        steps = call("tl.range", 0, size(SIZES[axis]), size(EXTENT[axis]), tile=Tile("int32"), num_stages=1)
        with b.loop("n0", steps, Tile("int32")) as n0:
            held = b.let(f"o_{axis[0]}", n0 + arange(EXTENT[axis]), show=False)
            inputs.use_channels(axis, held, b.let(f"m_{axis[0]}", held < size(SIZES[axis]), show=False))
            b.section("Where the rows of this head begin")
            static = inputs.static(exprs)
            b.section("Rows t0 .. t0 + C; what lies past the end is read as 0")
            inputs.enter(rows.valid)
            lowering = inputs.chunk(exprs, static, span.begin, rows.offsets, rows.valid, ())
            inside = inputs.inside[axis]
            late, early = (wide_operand(b, expr, label, lowering, inside) for expr, label in self.operands)
            path = channel_path(self.term, False, lowering, rows, inside)
            across = b.let("b_across", path.across())
            if widest is None:
                b.section("What the state is read with and grows by")
                decayed = late * path.from_start(), early * path.to_end()
            else:
                b.section("What the state is read with and grows by, from powers counted from the chunk's start")
                sums = b.let("b_sums", cumsum(path.steps))
                b.set(widest, pointwise("tl.maximum", widest, path.farthest(sums)))
                later, sooner = path.powers(sums)
                later, sooner = b.let("b_late", late * later), b.let("b_early", early * sooner)
                decayed = later, sooner * across.row
            self._keep(inputs, rows, span, slot, decayed, across)
            b.section("Pairs inside the chunk")
            if widest is None:
                b.set(scores, scores + path.scores(late, early))
            else:
                b.set(scores, dot(later.to("dot"), trans(sooner.to("dot")), scores))
            if own is not None:
                pairs, decay = late * early, path.own()
                b.set(own, own + reduce_sum(pairs if decay is None else pairs * decay, 1))
        b.space()
        o_c = rows.offsets
        if widest is not None:
            b.do(call("tl.store", at, widest, tile=Tile("ptr")))
            seen = o_c.col > o_c.row if self.term.strict else o_c.col >= o_c.row
            b.set(scores, where(seen, scores, 0.0))
        if own is not None:
            b.set(scores, where(o_c.col.eq(o_c.row), own.col, scores))
        if self.inverse:
            b.section("What they are solved by")
            scores = inverted(b, scores, parts=False)
        keep_scores(self, inputs, rows, span, scores, "inverse" if self.inverse else "scores")

    def _keep(self, inputs: Inputs, rows: Rows, span: Span, slot: E, decayed: tuple[E, E], across: E) -> None:
        """Write the operands of some channels, decayed, and the decay of a state."""
        b, axis = self.b, axis_of(self.term)
        b.helpers.add("store")
        for part, value in zip(("late", "early"), decayed, strict=True):
            begin = inputs.made(part, self.arguments.pointer(part, self.host.decayed[part]), axis)
            at, mask = inputs.addresses(*begin, axis, span.begin, rows.offsets, rows.valid)
            b.do(call("store", at, value, mask, size("MASKED"), tile=Tile("ptr")))
        pointer = self.arguments.pointer("across", self.host.decayed["across"])
        place = inputs.row() * slots(self.arguments, self.host) + slot
        offsets, valid = inputs.channels[axis]
        at = pointer + place * size(SIZES[axis]) + offsets
        b.do(call("store", at, across, valid, size("MASKED"), tile=Tile("ptr")))


def score_address(pointer: E, place: E, length: E, t0: E, rows: E) -> E:
    """Where Q K^T of a chunk is kept, for one of [B, G]."""
    return pointer + (place * length + t0) * size("C") + (rows.col * size("C") + rows.row)


def keep_scores(kernel: Maker, inputs: Inputs, rows: Rows, span: Span, scores: E, name: str) -> None:
    """Write what a head has of the pairs of its chunk, [C, C]."""
    b, host = kernel.b, kernel.host
    b.helpers.add("store")
    length = kernel.arguments.integer("T", host.sizes["time"])
    pointer = kernel.arguments.pointer(name, host.scores)
    place = score_address(pointer, inputs.row(), length, span.begin, rows.offsets)
    b.do(call("store", place, scores, rows.valid.col, size("MASKED"), tile=Tile("ptr")))


def inverted(b: Builder, scores: E, *, parts: bool) -> E:
    """N of (I + A)^-1 = I + N for the scores A of a chunk, strictly lower. parts: see the helper."""
    b.helpers.add("inverse_of_chunk")
    return b.let("b_inverse", call("inverse_of_chunk", scores, path("DOT"), path("PRECISION"), parts, tile=scores.tile))
