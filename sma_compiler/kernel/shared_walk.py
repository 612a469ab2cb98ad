"""The gradients of q and k that several heads share, chunk by chunk: one program has all heads of a group.

Both are sums over those heads h. With S_h the state at the chunk's start and dS_h the one that the walk of dV has at
its end, kept in memory by the kernels that run before, chunks need not wait for each other:

    W  = sum over h of decay_h (dY_h V_h^T)
    dK = W^T Q + sum over h of decay_h (V_h dS_h)
    dQ = W K   + sum over h of decay_h (dY_h S_h)

One tensor holds dS_h until dK is made; the walk of the states then leaves S_h in its place, and where they meet, the
weights of all pairs whose path leads over the chunk or out of it. The kernel of dK keeps W for dQ.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace

from sma_compiler.ir.nodes import Expr
from sma_compiler.kernel.ahead import rates_inside
from sma_compiler.kernel.backward import Backward
from sma_compiler.kernel.build import E, arange, call, dot, pointwise, reduce_sum, size, trans, where, zeros
from sma_compiler.kernel.chunk import CHANNELS, Chunk, Chunked, Place, State
from sma_compiler.kernel.gates import Rows, scaled
from sma_compiler.kernel.host import Host, Tensors
from sma_compiler.kernel.inputs import EXTENT, Inputs, tensors_of
from sma_compiler.kernel.linear import is_tensor, plain
from sma_compiler.kernel.lower import Lowering, operand
from sma_compiler.kernel.maker import program
from sma_compiler.kernel.nodes import Function, Tile
from sma_compiler.kernel.rows import chunk as find_chunk
from sma_compiler.kernel.rows import entry_of_slot, slots
from sma_compiler.kernel.score_kernel import score_address
from sma_compiler.kernel.sums import PathSums
from sma_compiler.kernel.walk import Output, Walk
from sma_compiler.kernel.walk_kernel import WalkKernel


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
    """Builds the kernel that keeps the state that comes into every chunk, in the place of the one from its other end.

    walk: the forward one, or that of dV. tensors: `sums` has the states, and `anchors` where the products of both are
    asked for.
    """

    def build(self, name: str) -> Function:
        """The kernel."""
        b, walk = self.b, self.walk
        place = self.place()
        static = place.inputs.static((walk.s, walk.x, *self.factors(rows=False)))
        rates = rates_inside(walk, static)
        states = self.initial_states(place)
        b.space()
        with b.loop("t0", self.steps(place), Tile("int32")) as t0:
            chunk = self.chunk(place, static, rates, t0, (), rows=False)
            self._meet(place, chunk, states[0])
            if chunk.within is not None:
                pointer = self.arguments.pointer("widest", self.host.decayed["widest"])
                at = pointer + (place.inputs.row() * slots(self.arguments, self.host) + self.slot(place, t0))
                b.do(call("tl.store", at, call("tl.max", chunk.within.reach(), 0, tile=Tile("fp32")), tile=Tile("ptr")))
            b.section("The state that comes into the chunk is kept")
            self.keep_of_chunk(place, t0, states[0])
            self.advance(chunk, states)
        self.final_states(place, states)
        which = f"the state of one head and {self.outer} {walk.outer} channels"
        doc = f"One program keeps {which} that comes into every chunk."
        return b.function(name, (doc,), self.arguments.parameters, jit=True)

    def _meet(self, place: Place, chunk: Chunk, state: State) -> None:
        """Sum what meets the state from the chunk's other end: the weights of all pairs that lead over the chunk, and,
        for each position, of those that lead out of it.

        Every thread has read its part of it before a sum is known, and so before anything is written in its place.
        """
        sums = {kind: x for (kind, _), x in self.tensors.sums.items() if kind != "states"}
        if not sums:
            return
        b = self.b
        b.section("Times the state from the chunk's other end")
        pointers = {kind: self.arguments.pointer(kind, x) for kind, x in sums.items()}
        factors, across = self.leaving(chunk, 0)
        decay = factors[: len(factors) - len(chunk.paths[0].columns.factors)]
        with b.branch(next(iter(pointers.values())).given()):
            met = self.state_of_chunk(place, chunk.t0)
            if "anchors" in pointers:
                weight = reduce_sum(reduce_sum(state.matrix * met.to("fp32"), 1), 0)
                weight = weight if across is None else weight * across
                at = self.address_of_anchor(place, pointers["anchors"], chunk.t0)
                b.do(call("tl.store", at, weight, tile=Tile("ptr")))
            if "through" in pointers:
                part = b.let("b_part", dot(chunk.s, met.to("dot")))
                through = scaled(reduce_sum(chunk.x.to("fp32") * part, 1), decay, column=False)
                self.write_row(place, pointers["through"], chunk, through)


class ByChunk(Chunked):
    """A kernel whose programs have one chunk each, with the state that comes into it from memory."""

    def slot(self, place: Place, t0: E) -> E:
        """The program has one chunk alone."""
        return place.span.slot

    def place_of_chunk(self, whose: str, name: str, heads: E, runs: ExitStack | None = None) -> Place:
        """Say which program this is: of which head or group of heads, and where. heads: how many of them there are.

        runs: what a loop over a run of chunks is entered in, where the program has one.
        """
        b, outer = self.b, self.walk.outer
        letter, channels = outer[0], CHANNELS[outer]
        b.section(f"Which {outer} channels, chunk, {whose} and sequence")
        tiles = b.let(f"n_{letter}", call("tl.cdiv", size(channels), size(self.outer), tile=Tile("int32")))
        tile = b.let(f"i_{letter}", program(0) % tiles)
        i_h = b.let(name, program(1).to("int64"))
        i_b = b.let("i_b", program(2).to("int64"))
        index = program(0) // tiles
        if runs is None:
            slot = b.let("slot", index)
        else:
            row = i_b * self.arguments.integer("H", heads) + i_h
            widest = self.arguments.pointer("widest", self.host.decayed["widest"])
            slot = runs.enter_context(self.run(index, widest + row * slots(self.arguments, self.host)))
        span = find_chunk(b, self.arguments, self.host, slot, i_b)
        offsets = b.let("o_c", arange("C"), show=False)
        inputs = Inputs(b, self.arguments, self.host, i_b, i_h, span.sequence, heads=heads)
        held = {axis: arange(EXTENT[axis]) for axis in CHANNELS}
        held[outer] = tile * size(self.outer) + held[outer]
        held = {axis: b.let(f"o_{axis[0]}", held[axis], show=False) for axis in CHANNELS}
        for axis, channel in held.items():
            inputs.use_channels(axis, channel, b.let(f"m_{axis[0]}", channel < size(CHANNELS[axis]), show=False))
        b.section(f"Where the rows of this {whose.split()[0]} begin")
        return Place(inputs, offsets, span, tile, None, span.begin, span.end)


class ChunkRows(ByChunk, WalkKernel):
    """Builds the kernel of a walk that carries no state: those that come into its chunks lie in memory."""

    keeps = False

    def build(self, name: str) -> Function:
        """The kernel."""
        walk = self.walk
        place = self.place_of_chunk("head", "i_h", self.host.heads)
        around = [output.expr for output in walk.outputs]
        static = place.inputs.static((walk.p, walk.s, walk.x, *self.factors(rows=True), *around))
        chunk = self.chunk(place, static, rates_inside(walk, static), place.first, around)
        state = State(self.state_of_chunk(place, place.first), None)
        beside = self.beside()
        self.write(place, chunk, beside, self.rows_of(place, chunk, (state,), beside, None))
        doc = f"One program has a chunk and {self.outer} {walk.outer} channels of one head."
        return self.b.function(name, (doc,), self.arguments.parameters, jit=True)


class SharedHeads(ByChunk):
    """Builds the kernel of dQ or of dK, all heads of a group in one program.

    walk: of the one or the other. tensors: what it writes, the states of chunks, and `weights`, which the kernel of dK
    leaves to that of dQ.
    """

    def __init__(self, walk: Walk, host: Host, tensors: Tensors, reserved: frozenset[str]) -> None:
        super().__init__(walk, host, tensors, reserved, parts=False)
        self.guarded = True
        self.first = walk.backward
        """Whether it weighs the pairs inside chunks, for both."""

    def build(self, name: str) -> Function:
        """The kernel."""
        b, walk = self.b, self.walk
        place = self.place_of_chunk("group", "i_g", self.host.groups)
        group = place.inputs
        outputs = [output.expr for output in walk.outputs if walk.outer in output.axes]
        beside = (walk.sums.other,) if walk.sums is not None else ()
        operands = (walk.x, *beside)
        static = group.static((*operands, *outputs))
        b.section("Rows t0 .. t0 + C that the heads share; what lies past the end is read as 0")
        t0 = place.first
        valid = b.let("m_t", t0 + place.offsets < place.end, show=False)
        rows = Rows(place.offsets, valid, pointwise("tl.minimum", place.end - t0, size("C"), dtype="int32"))
        group.enter(valid)
        lowering = group.chunk((*operands, *outputs), static, t0, place.offsets, valid, _kept(*operands))
        x = operand(b, walk.x, walk.names[2], lowering, group.inside[walk.outer])
        other = None
        if walk.sums is not None:
            other = operand(b, walk.sums.other, walk.sums.name, lowering, group.inside[walk.outer])
        what = "what goes through the states"
        b.section(f"Sums over heads: the weights of pairs, and {what}" if self.first else f"Sums over heads: {what}")
        products = weights = None
        if self.first:
            products = b.let("b_products", dot(other, trans(x))) if other is not None else None
            weights = b.let("b_weights", zeros("C", "C"))
        total = b.let("b_y", zeros("C", self.outer))
        count = self.arguments.integer("R", self.host.heads // self.host.groups)
        b.space()
        heads = call("tl.range", 0, count, tile=Tile("int32"), num_stages=size("STAGES"))
        with b.loop("i_r", heads, Tile("int32")) as i_r:
            b.section("The next head of the group")
            i_h = b.let("i_h", group.head * count + i_r)
            inputs = Inputs(b, self.arguments, self.host, group.batch, i_h, group.sequence)
            inputs.channels, inputs.inside = group.channels, group.inside
            self._head(replace(place, inputs=inputs), rows, x, other, products, weights, total)
        between = self._weights(group, place, rows, weights)
        b.section("Output")
        b.set(total, self.plus_product(total, between, x))
        lowering.bind(walk.result, total)
        self._write(walk, group, place, lowering, valid)
        what = "keys" if walk.backward else "queries"
        doc = f"One program has a chunk and BK key channels of the gradients of {what} that a group of heads shares."
        return b.function(name, (doc,), self.arguments.parameters, jit=True)

    def _head(
        self,
        place: Place,
        rows: Rows,
        x: E,
        other: E | None,
        products: E | None,
        weights: E | None,
        total: E,
    ) -> None:
        """Add what one head brings."""
        b, walk, inputs = self.b, self.walk, place.inputs
        operands = (walk.p,) if weights is None else (walk.p, walk.s)
        beside = [output for output in walk.outputs if walk.outer not in output.axes]
        exprs = (*operands, *self.factors(rows=True), *(output.expr for output in beside))
        static = inputs.static(exprs)
        rates = rates_inside(walk, static)
        b.space()
        lowering = inputs.chunk(exprs, static, place.first, place.offsets, rows.valid, _kept(*operands))
        p = operand(b, walk.p, walk.names[0], lowering, inputs.inside[walk.inner])
        s = p
        if weights is not None:
            s = operand(b, walk.s, walk.names[1], lowering, inputs.inside[walk.inner])
        paths = self._paths(place, lowering, rows, rates, place.first, at_rows=True)
        chunk = Chunk(place.first, rows, lowering, p, s, x, None, None, other, paths, None)
        sums = PathSums(self, place) if walk.sums is not None else None
        self._beside(place, chunk, beside)
        if weights is not None:
            self._pairs(chunk, sums, products, weights)
        whose, when = ("columns", "later") if walk.backward else ("rows", "earlier")
        b.section(f"What {whose} have of {when} chunks, through the state")
        path = paths[0]
        decay = path.entering()
        factors = [] if decay is None else [b.let("b_in", decay)]
        state = self.state_of_chunk(place, chunk.t0).to("dot")
        part = b.let("b_part", scaled(dot(p, state), factors, column=True))
        if sums is not None and not self.first:
            sums.through(chunk, 0, part)
        b.set(total, total + scaled(part, path.rows.factors, column=True))

    def _beside(self, place: Place, chunk: Chunk, outputs: Iterable[Output]) -> None:
        """Sum over the inner channels what does not depend on pairs, by the programs of the first tile.

        [B, H, T], or summed over the chunk, too: [B, slots, H].
        """
        b, walk = self.b, self.walk
        for output in outputs:
            pointer = self.arguments.pointer(output.name, self.tensors.outputs[output.name])
            inputs = place.inputs
            b.helpers |= {"keep", "store"}
            with b.branch(pointer.given().both(place.tile.eq(0))):
                value = b.helper("keep", chunk.lowering.value(output.expr), inputs.inside[walk.inner], size("MASKED"))
                value = reduce_sum(value, 1)
                if "time" in output.axes:
                    length = self.arguments.integer("T", self.host.sizes["time"])
                    at = pointer + inputs.row() * length + (chunk.t0 + chunk.rows.offsets)
                    b.do(call("store", at, value, chunk.rows.valid, size("MASKED"), tile=Tile("ptr")))
                else:
                    slot = place.span.slot
                    at = pointer + entry_of_slot(self.arguments, self.host, inputs.batch, slot, inputs.head)
                    b.do(call("tl.store", at, reduce_sum(value, 0), tile=Tile("ptr")))

    def _pairs(self, chunk: Chunk, sums: PathSums | None, products: E | None, weights: E) -> None:
        """Add the weights that one head gives to the chunk's pairs."""
        b, path = self.b, chunk.paths[0]
        assert chunk.p is not None
        b.section("Pairs inside the chunk")
        scores = b.let("b_scores", dot(chunk.p, trans(chunk.s)))
        between = path.between(chunk.rows)
        if between is None:
            b.set(scores, where(path.support(chunk.rows), scores, 0.0))
        else:
            b.set(scores, scores * b.let("b_w", between))
        if sums is not None and products is not None:
            sums.weigh(chunk, scores, [], products)
        scores = scaled(scores, path.columns.factors, column=False)
        b.set(weights, weights + scaled(scores, path.rows.factors, column=True))

    def _weights(self, group: Inputs, place: Place, rows: Rows, weights: E | None) -> E:
        """The weights of pairs, summed over heads: written by the kernel of dQ, read by that of dK."""
        b = self.b
        pointer = self.arguments.pointer("weights", self.tensors.sums["weights", 0])
        groups = self.arguments.integer("G", self.host.groups)
        length = self.arguments.integer("T", self.host.sizes["time"])
        at = score_address(pointer, group.batch * groups + group.head, length, place.first, rows.offsets)
        if weights is None:
            b.section("Pairs inside the chunk, as the kernel of keys weighed them")
            value = b.helper("load", at, rows.valid.col, size("MASKED"), dtype="in")
            return trans(b.let("b_weights", value).to("dot"))
        b.section("The weights of pairs are kept, by the program of the first channels")
        between = b.let("b_w", weights.to("dot"))
        with b.branch(place.tile.eq(0)):
            b.helpers.add("store")
            b.do(call("store", at, between, rows.valid.col, size("MASKED"), tile=Tile("ptr")))
        return between

    def _write(self, walk: Walk, group: Inputs, place: Place, lowering: Lowering, valid: E) -> None:
        b = self.b
        for output in walk.outputs:
            if walk.outer not in output.axes:
                continue
            pointer = self.arguments.pointer(output.name, self.tensors.outputs[output.name])
            value = lowering.value(output.expr)
            b.helpers.add("store")
            with b.branch(pointer.given()):
                rows = group.made(output.name, pointer, walk.outer)
                at, mask = group.addresses(*rows, walk.outer, place.first, place.offsets, valid)
                b.do(call("store", at, value, mask, size("MASKED"), tile=Tile("ptr")))


def _kept(*operands: Expr) -> set[Expr]:
    """The operands that products take as they are."""
    return {plain(x) for x in operands if is_tensor(x)}
