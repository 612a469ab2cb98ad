"""The gradients of q and k that several heads share, chunk by chunk: one program has all heads of a group.

Both are sums over those heads h. With S_h the state at the chunk's start and dS_h the one that the walk of dV has at
its end, kept in memory by the kernels that run before, chunks need not wait for each other:

    W  = sum over h of decay_h (dY_h V_h^T)
    dQ = W K   + sum over h of decay_h (dY_h S_h)
    dK = W^T Q + sum over h of decay_h (V_h dS_h)
"""

from __future__ import annotations

from dataclasses import replace

from sma_compiler.ir.nodes import Expr
from sma_compiler.kernel.backward import Backward
from sma_compiler.kernel.build import E, arange, call, dot, pointwise, reduce_sum, size, trans, where, zeros
from sma_compiler.kernel.chunk import CHANNELS, Chunk, Chunked, Place, State
from sma_compiler.kernel.gates import Rows, scaled, static_rates
from sma_compiler.kernel.host import Host, Tensors
from sma_compiler.kernel.inputs import EXTENT, Inputs, tensors_of
from sma_compiler.kernel.linear import is_tensor, plain
from sma_compiler.kernel.lower import Lowering, operand
from sma_compiler.kernel.maker import program
from sma_compiler.kernel.nodes import Function, Tile
from sma_compiler.kernel.rows import chunk as find_chunk
from sma_compiler.kernel.sums import PathSums
from sma_compiler.kernel.walk import Walk


def may_share(made: Backward) -> bool:
    """Whether the gradients of q and k have this form: what they are read with is the same for all heads of a group."""
    dq, dk = made.dq, made.dk
    if len(dq.terms) != 1 or dq.offset is not None or dq.backward:
        return False
    outputs = (*dq.outputs, *dk.outputs)
    group = tensors_of((dq.x, dk.x, *(output.expr for output in outputs)))
    factors = (*dq.terms[0].row, *dq.terms[0].col, *(gate.log for gate in dq.terms[0].gates))
    own = {node.name for node in tensors_of((dq.p, dq.s, *factors))}
    alike = all(node.name not in own and ("head" not in node.axes or "key" in node.axes) for node in group)
    return alike and all("key" in output.axes for output in outputs)


class ChunkStates(Chunked):
    """Builds the kernel that keeps the state at the start of every chunk, and weighs the pairs that lead over it.

    walk: that of dQ. tensors: `sums` has the states, `dstates` of the walk of dV, and `anchors` where they are asked.
    """

    def build(self, name: str) -> Function:
        """The kernel."""
        b, walk = self.b, self.walk
        place = self.place()
        static = place.inputs.static((walk.s, walk.x, *self.factors(rows=False)))
        rates = static_rates(walk.paths, static)
        states = self.initial_states(place)
        b.space()
        with b.loop("t0", self.steps(place), Tile("int32")) as t0:
            chunk = self.chunk(place, static, rates, t0, (), rows=False)
            self.keep_each("states", place, chunk, states)
            if ("anchors", 0) in self.tensors.sums:
                self._meet(place, chunk, states[0])
            self.advance(chunk, states)
        doc = "One program keeps the state of one head and BK key channels at the start of every chunk."
        return b.function(name, (doc,), self.arguments.parameters, jit=True)

    def _meet(self, place: Place, chunk: Chunk, state: State) -> None:
        b = self.b
        b.section("Pairs across the whole chunk: its state, times that of the walk from the end")
        anchors = self.arguments.pointer("anchors", self.tensors.sums["anchors", 0])
        across = self.leaving(chunk, 0)[1]
        with b.branch(anchors.given()):
            after = self.state_of_chunk("dstates", place, chunk.t0)
            weight = reduce_sum(reduce_sum(state.matrix * after.to("fp32"), 1), 0)
            weight = weight if across is None else weight * across
            b.do(call("tl.store", self.address_of_anchor(place, anchors, chunk.t0), weight, tile=Tile("ptr")))


class SharedHeads(Chunked):
    """Builds the kernel of dQ and dK. dq, dk: their walks; tensors: what both write, and the sums and states."""

    def __init__(self, dq: Walk, dk: Walk, host: Host, tensors: Tensors, reserved: frozenset[str]) -> None:
        super().__init__(dq, host, tensors, reserved, parts=False)
        self.dk = dk
        self.guarded = True

    def build(self, name: str) -> Function:
        """The kernel."""
        b, walk, dk = self.b, self.walk, self.dk
        group, place = self._place()
        outputs = [output.expr for output in (*walk.outputs, *dk.outputs)]
        static = group.static((walk.x, dk.x, *outputs))
        b.section("Rows t0 .. t0 + C that the heads share; what lies past the end is read as 0")
        t0 = place.first
        valid = b.let("m_t", t0 + place.offsets < place.end, show=False)
        rows = Rows(place.offsets, valid, pointwise("tl.minimum", place.end - t0, size("C"), dtype="int32"))
        group.enter(valid)
        lowering = group.chunk((walk.x, dk.x, *outputs), static, t0, place.offsets, valid, _kept(walk.x, dk.x))
        q = operand(b, dk.x, dk.names[2], lowering, group.inside[walk.outer])
        k = operand(b, walk.x, walk.names[2], lowering, group.inside[walk.outer])
        b.section("Sums over heads: the weights of pairs, and what goes through the states")
        products = b.let("b_products", dot(q, trans(k))) if walk.sums is not None else None
        weights = b.let("b_weights", zeros("C", "C"))
        totals = [b.let(label, zeros("C", self.outer)) for label in ("b_dq", "b_dk")]
        count = self.arguments.integer("R", self.host.heads // self.host.groups)
        b.space()
        heads = call("tl.range", 0, count, tile=Tile("int32"), num_stages=size("STAGES"))
        with b.loop("i_r", heads, Tile("int32")) as i_r:
            b.section("The next head of the group")
            i_h = b.let("i_h", group.head * count + i_r)
            inputs = Inputs(b, self.arguments, self.host, group.batch, i_h, group.sequence)
            inputs.channels, inputs.inside = group.channels, group.inside
            self._head(_of(place, inputs), rows, (q, k), products, weights, totals)
        b.section("Output")
        between = b.let("b_w", weights.to("dot"))
        for total, a, x in ((totals[0], between, k), (totals[1], trans(between), q)):
            b.set(total, self.plus_product(total, a, x))
        for each, total in ((walk, totals[0]), (dk, totals[1])):
            lowering.bind(each.result, total)
        for each in (walk, dk):
            self._write(each, group, place, lowering, valid)
        doc = "One program has a chunk and BK key channels of the gradients of q and k that a group of heads shares."
        return b.function(name, (doc,), self.arguments.parameters, jit=True)

    def slot(self, place: Place, t0: E) -> E:
        """The program has one chunk alone."""
        return place.span.slot

    def _place(self) -> tuple[Inputs, Place]:
        """Say which program this is: of which group, and where."""
        b, outer = self.b, self.walk.outer
        letter, channels = outer[0], CHANNELS[outer]
        b.section(f"Which {outer} channels, chunk, group of heads and sequence")
        tiles = b.let(f"n_{letter}", call("tl.cdiv", size(channels), size(self.outer), tile=Tile("int32")))
        tile = b.let(f"i_{letter}", program(0) % tiles)
        slot = b.let("slot", program(0) // tiles)
        i_g = b.let("i_g", program(1).to("int64"))
        i_b = b.let("i_b", program(2).to("int64"))
        span = find_chunk(b, self.arguments, self.host, slot, i_b)
        offsets = b.let("o_c", arange("C"), show=False)
        group = Inputs(b, self.arguments, self.host, i_b, i_g, span.sequence, heads=self.host.groups)
        held = {axis: arange(EXTENT[axis]) for axis in CHANNELS}
        held[outer] = tile * size(self.outer) + held[outer]
        held = {axis: b.let(f"o_{axis[0]}", held[axis], show=False) for axis in CHANNELS}
        for axis, channel in held.items():
            group.use_channels(axis, channel, b.let(f"m_{axis[0]}", channel < size(CHANNELS[axis]), show=False))
        b.section("Where the rows of this group begin")
        return group, Place(group, offsets, span, tile, None, span.begin, span.end)

    def _head(
        self, place: Place, rows: Rows, shared: tuple[E, E], products: E | None, weights: E, totals: list[E]
    ) -> None:
        """Add what one head brings."""
        b, walk, inputs = self.b, self.walk, place.inputs
        q, k = shared
        exprs = (walk.p, walk.s, *self.factors(rows=True))
        static = inputs.static(exprs)
        rates = static_rates(walk.paths, static)
        b.space()
        lowering = inputs.chunk(exprs, static, place.first, place.offsets, rows.valid, _kept(walk.p, walk.s))
        p = operand(b, walk.p, walk.names[0], lowering, inputs.inside[walk.inner])
        s = operand(b, walk.s, walk.names[1], lowering, inputs.inside[walk.inner])
        paths = self._paths(place, lowering, rows, rates, place.first, at_rows=True)
        chunk = Chunk(place.first, rows, lowering, p, s, k, None, None, q, paths)
        path = paths[0]
        late, early = path.rows.factors, path.columns.factors
        b.section("Pairs inside the chunk")
        scores = b.let("b_scores", dot(p, trans(s)))
        between = path.between(rows)
        if between is None:
            b.set(scores, where(path.support(rows), scores, 0.0))
        else:
            b.set(scores, scores * b.let("b_w", between))
        sums = PathSums(self, place) if products is not None else None
        if sums is not None and products is not None:
            sums.weigh(chunk, scores, [], products)
        b.set(weights, weights + scaled(scaled(scores, early, column=False), late, column=True))
        b.section("What rows have of earlier chunks, through the state")
        before = self.state_of_chunk("states", place, chunk.t0)
        self._through("inter", chunk, place, (p, q), before, self._factors(path.entering(), late, "in"), totals[0])
        b.section("What columns have of later ones, through the state of the walk from the end")
        after = self.state_of_chunk("dstates", place, chunk.t0)
        self._through("through", chunk, place, (s, k), after, self._factors(path.leaving(), early, "out"), totals[1])

    def _pointer(self, kind: str) -> E:
        return self.arguments.pointer(kind, self.tensors.sums[kind, 0])

    def _factors(self, decay: E | None, others: list[E], label: str) -> tuple[list[E], list[E]]:
        """The decay of what rows have through a state, and their other factors."""
        return [] if decay is None else [self.b.let(f"b_{label}", decay)], others

    def _through(
        self,
        kind: str,
        chunk: Chunk,
        place: Place,
        rows: tuple[E, E],
        state: E,
        factors: tuple[list[E], list[E]],
        total: E,
    ) -> None:
        """Add what rows have through a state, and write their weights. rows: with the inner and with the outer axis."""
        b = self.b
        decay, others = factors
        inner, outer = rows
        part = b.let("b_y", scaled(dot(inner, state.to("dot")), decay, column=True))
        if (kind, 0) in self.tensors.sums:
            pointer = self._pointer(kind)
            with b.branch(pointer.given()):
                self.write_row(place, pointer, chunk, reduce_sum(outer.to("fp32") * part, 1))
        b.set(total, total + scaled(part, others, column=True))

    def _write(self, walk: Walk, group: Inputs, place: Place, lowering: Lowering, valid: E) -> None:
        b = self.b
        for output in walk.outputs:
            pointer = self.arguments.pointer(output.name, self.tensors.outputs[output.name])
            value = lowering.value(output.expr)
            b.helpers.add("store")
            with b.branch(pointer.given()):
                rows = group.made(output.name, pointer, walk.outer)
                at, mask = group.addresses(*rows, walk.outer, place.first, place.offsets, valid)
                b.do(call("store", at, value, mask, size("MASKED"), tile=Tile("ptr")))


def _of(place: Place, inputs: Inputs) -> Place:
    """The place of one head of a group."""
    return replace(place, inputs=inputs)


def _kept(*operands: Expr) -> set[Expr]:
    """The operands that products take as they are."""
    return {plain(x) for x in operands if is_tensor(x)}
