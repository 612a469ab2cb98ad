"""The kernels of `scan_gradients`: `Again` goes from the start and keeps states, `Back` from the end."""

from __future__ import annotations

from sma_compiler.ir.nodes import Expr
from sma_compiler.kernel.build import E, call, lift, pointwise, reduce_sum, size, zeros
from sma_compiler.kernel.chunk import Loaded, Place, State
from sma_compiler.kernel.host import Host, Tensors
from sma_compiler.kernel.lower import CHANNELS, Lowering, wide_operand
from sma_compiler.kernel.maker import program
from sma_compiler.kernel.nodes import Function, Tile
from sma_compiler.kernel.scan import CUBE, LocalScan, Scan, Steps
from sma_compiler.kernel.scan_gradients import Leaves
from sma_compiler.kernel.walk import Output, Walk


class ScanGradient(Scan):
    """A kernel of gradients. leaves: what stands for cotangents in the outputs; every: see `Scan`."""

    def __init__(
        self,
        walk: Walk,
        host: Host,
        tensors: Tensors,
        reserved: frozenset[str],
        parts: bool,
        every: int,
        leaves: Leaves,
    ) -> None:
        super().__init__(walk, host, tensors, reserved, parts, every)
        self.leaves = leaves


class Back(ScanGradient):
    """Builds the kernel."""

    def build(self, name: str) -> Function:
        """The kernel."""
        place, exprs, static, state, totals = self._begun()
        (self._remade if self.every else self._straight)(place, static, exprs, state, totals)
        self._write_totals(place, totals)
        self.final_states(place, (state,))
        doc = ("One program makes the gradients of one head and BV value channels, from the end of a sequence.",)
        return self.b.function(name, doc, self.arguments.parameters, jit=True)

    def _begun(self) -> tuple[Place, tuple[Expr, ...], Lowering, State, dict[str, E]]:
        """Where a program is, what it reads, what does not vary in time, its state, and what it sums up."""
        walk = self.walk
        place = self.place()
        exprs = (walk.p, walk.s, walk.x, self.leaves.given, *(output.expr for output in walk.outputs))
        static = self.static(place, exprs)
        (state,) = self.initial_states(place)
        return place, exprs, static, state, self._totals()

    def _straight(
        self, place: Place, static: Lowering, exprs: tuple[Expr, ...], state: State, totals: dict[str, E]
    ) -> None:
        """From the end, tile by tile, from the states that were kept before every tile."""
        b, first = self.b, place.first
        count = b.let("tiles", self._count(place.end - first, size("C")))
        tiles = call("tl.range", count, tile=Tile("int32"), num_stages=size("STAGES"))
        b.space()
        with b.loop("n", tiles, Tile("int32")) as n:
            t0 = b.let("t0", first + (count - 1 - n) * size("C"))
            at = self.positions(place, static, t0, exprs)
            self._pass(place, at, state, b.let("b_s_0", self.state_of_chunk(place, t0).to("fp32")), totals)

    def _remade(
        self, place: Place, static: Lowering, exprs: tuple[Expr, ...], state: State, totals: dict[str, E]
    ) -> None:
        """The same where states are kept more seldom: those between are made again, and left in memory meanwhile."""
        b = self.b
        every, first, end = self.spacing(), place.first, place.end
        scratch = self._scratch()
        b.space()
        with b.loop("n", call("range", self._count(end - first, every), tile=Tile("int32")), Tile("int32")) as n:
            b.section("The states before every C of the EVERY positions from start on, from the one that was kept")
            start = b.let("start", first + (self._count(end - first, every) - 1 - n) * every)
            stop = b.let("stop", pointwise("tl.minimum", start + every, end, dtype="int32"))
            known = b.let("b_known", self.state_of_chunk(place, start).to("fp32"))
            earlier = call("tl.range", start, stop, size("C"), tile=Tile("int32"), num_stages=size("STAGES"))
            with b.scope(), b.loop("t0", earlier, Tile("int32")) as t0:
                self._leave_there(place, scratch, t0 - start, known)
                at = self.positions(place, static, t0, (self.walk.s, self.walk.x))
                self.pass_over(place, at, known)
            self.enter(place, stop, state, known)
            b.comment("Threads read what others have written")
            b.do(call("tl.debug_barrier", tile=Tile("ptr")))
            tiles = b.let("tiles", self._count(stop - start, size("C")))
            with b.loop("m", self.from_behind(tiles), Tile("int32")) as m:
                t0 = b.let("t0", start + (tiles - 1 - m) * size("C"))
                at = self.positions(place, static, t0, exprs)
                self._pass(place, at, state, self._found_there(place, scratch, t0 - start), totals)
            b.comment("No thread may still have to read what is written next")
            b.do(call("tl.debug_barrier", tile=Tile("ptr")))

    def from_behind(self, tiles: E) -> E:
        """The loop over the tiles of positions whose states were made again, which are many and large."""
        return call("range", tiles, tile=Tile("int32"))

    def enter(self, place: Place, stop: E, state: State, known: E) -> None:
        """Have the cotangent of the state behind positions up to `stop`, `known`, as it is carried over them."""

    def _pass(self, place: Place, at: Loaded, state: State, known: E, totals: dict[str, E]) -> None:
        """Carry the cotangent of the state over a tile of positions, and write what it makes."""
        self.pass_back(place, at, state, known)
        self._write_all(place, at, totals)

    def pass_back(self, place: Place, at: Loaded, state: State, known: E) -> None:
        """Carry the cotangent of the state over a tile of positions, and bind what stands for cotangents.

        known: the state before the tile.
        """
        b, leaves, lowering, inside = self.b, self.leaves, at.lowering, place.inputs.inside
        b.section("States at every position, and the cotangents of what they are read for and of what comes behind")
        steps = self.steps_of(place, at)
        before = self.before(steps, known)
        weights = self.weights_of(place, at)
        out, later = self.carried_back(steps, weights, state.matrix)
        b.set(state.matrix, self.at(out, lift(0)))
        b.section("Cotangents of keys, values and log gates")
        grown = self._grown(steps, weights, out, later)
        for leaf, label, other, axis, kept in (
            (leaves.k, "b_dk", steps.x, 2, "key"),
            (leaves.v, "b_dv", steps.s, 1, "value"),
        ):
            found = b.helper("keep", self.summed(grown, other, axis), inside[kept], size("MASKED"))
            lowering.bind(leaf, b.let(label, found))
        gate = self._gate(steps, before, out, later)
        lowering.bind(leaves.gate, b.let("b_dgate", b.helper("keep", gate, inside["all"], size("MASKED"))))

    def given(self, place: Place, at: Loaded) -> E:
        """The cotangent of rows, [C, BV]."""
        return wide_operand(self.b, self.leaves.given, "dn", at.lowering, place.inputs.inside["value"])

    def weights_of(self, place: Place, at: Loaded) -> E:
        """The cotangent of what rows read, with the numbers of all weights, [C, BK, BV]."""
        b = self.b
        scaled = b.named("b_dn", self.numbered(self.given(place, at), at.lowering))
        return b.let("b_w", self.side(place, at, 0).among(CUBE) * scaled.among(CUBE))

    def carried_back(self, steps: Steps, weights: E, state: E) -> tuple[E, E]:
        """The cotangents of the states before every position and after it.

        The second are with the weights where rows read the state after their position.
        """
        if self._reads_after:
            return self.pair("given_back", (steps.decay, weights, state, steps.rest), ("b_out", "b_grown"))
        grown = steps.decay * weights if self.reads_decayed else weights
        return self.pair("carried_back", (steps.decay, grown, state, steps.rest), ("b_out", "b_later"))

    @property
    def _reads_after(self) -> bool:
        """Whether rows read the state that their own column is part of, all of it decayed as the column of the next."""
        return self.reads_decayed and not self.term.strict

    def _grown(self, steps: Steps, weights: E, out: E, later: E) -> E:
        """The cotangent of k x."""
        if self.term.strict:
            return steps.decay * later if self.adds_decayed else later
        return out if self.adds_decayed else later if self._reads_after else later + weights

    def _gate(self, steps: Steps, before: E, out: E, later: E) -> E:
        """The cotangent of the sum of the log gates: what they decay times what is made of it."""
        decayed = out if self.reads_decayed else steps.decay * later
        found = before * decayed
        if not self.adds_decayed:
            return found
        own = steps.decay * later if self.term.strict else decayed
        return found + steps.added * own

    def _count(self, length: E, step: E) -> E:
        return call("tl.cdiv", length, step, tile=Tile("int32"))

    def _pointer(self, output: Output) -> E:
        return self.arguments.pointer(output.name, self.tensors.outputs[output.name])

    def _scratch(self) -> E:
        """Where this program keeps states for itself, [EVERY / C, BK, BV]."""
        pointer = self.arguments.pointer("scratch", self.tensors.sums["scratch", 0])
        index = program(1) * call("tl.num_programs", 0, tile=Tile("int32")) + program(0)
        held = self.spacing() // size("C") * size("BK") * size("BV")
        return self.b.let("p_scratch", pointer + self.b.let("i_program", index).to("int64") * held)

    def _address(self, scratch: E, offset: E) -> E:
        """Of the state before the tile of positions that begins at an offset."""
        o_k, o_v = (call("tl.arange", 0, size(x), tile=Tile("int32", (x,))) for x in ("BK", "BV"))
        return scratch + offset // size("C") * (size("BK") * size("BV")) + (o_k.col * size("BV") + o_v.row)

    def _leave_there(self, place: Place, scratch: E, offset: E, state: E) -> None:
        self.b.do(call("tl.store", self._address(scratch, offset), state, tile=Tile("ptr")))

    def _found_there(self, place: Place, scratch: E, offset: E) -> E:
        return self.b.let("b_s_0", call("tl.load", self._address(scratch, offset), tile=Tile("fp32", ("BK", "BV"))))

    def _write_all(self, place: Place, at: Loaded, totals: dict[str, E]) -> None:
        """Write, or add to their sums, the gradients that a tile of positions has."""
        b = self.b
        b.section("Gradients")
        for output in self.walk.outputs:
            if output.name in totals:
                value = reduce_sum(at.lowering.value(output.expr), 0).to(totals[output.name].tile.dtype)
                with b.branch(self._pointer(output).given()):
                    b.set(totals[output.name], totals[output.name] + value)
            else:
                self._write_rows(place, at, output)

    def _write_rows(self, place: Place, at: Loaded, output: Output) -> None:
        """Write what a tile of positions has: rows of this head, or this tile's part of them."""
        b, inputs, axes, pointer = self.b, place.inputs, output.axes, self._pointer(output)
        value = at.lowering.value(output.expr)
        channels = [axis for axis in axes if axis in CHANNELS]
        length = self.arguments.integer("T", self.host.sizes["time"])
        with b.branch(pointer.given()):
            if len(channels) == 2:
                heads = self.arguments.integer("H", self.host.heads)
                matrix = size("K") * size("V")
                begin = pointer + (inputs.batch * length * heads + inputs.head) * matrix
                address = inputs.cubes(begin, heads * matrix, self._offsets(place, channels), at.t0, at.rows.offsets)
                mask = inputs.inside["all"]
            else:
                channel = channels[0] if channels else None
                begin, stride = pointer, lift(1)
                if axes[0] == "tile":
                    stride = size("K") if channels else stride
                    begin = pointer + self.row_of_tile(place) * length * stride
                else:
                    begin, stride = inputs.made(output.name, pointer, channel)
                rows = at.rows
                address, mask = inputs.addresses(begin, stride, channel, at.t0, rows.offsets, rows.valid)
            b.helpers.add("store")
            b.do(call("store", address, value, mask, size("MASKED"), tile=Tile("ptr")))

    def _offsets(self, place: Place, channels: list[str]) -> E:
        """The offsets of this program's channels in one entry of a contiguous tensor."""
        (o_k, _), (o_v, _) = (place.inputs.channels[axis] for axis in CHANNELS)
        if len(channels) == 2:
            return o_k.col * size("V") + o_v.row
        return o_k if channels == ["key"] else o_v if channels else lift(0)

    def _totals(self) -> dict[str, E]:
        """Zeros for what is summed over all positions."""
        self.b.section("What is summed over all positions")
        return {output.name: self._total(output) for output in self.walk.outputs if output.axes[0] == "row"}

    def _write_totals(self, place: Place, totals: dict[str, E]) -> None:
        self.b.space()
        for output in self.walk.outputs:
            if output.name in totals:
                self._write_total(place, output, totals[output.name])

    def _total(self, output: Output) -> E:
        """Zeros for a sum over all positions; fp64 in fp32 files, where torch sums as many in parts."""
        shape = tuple(CHANNELS[axis] for axis in output.axes if axis in CHANNELS)
        dtype = "fp64" if self.exact else "fp32"
        return self.b.let(f"b_{output.name}", zeros(*shape, dtype=dtype) if shape else lift(0.0))

    def _write_total(self, place: Place, output: Output, value: E) -> None:
        """Write a sum over all positions, [programs of a head and tile, tiles or 1, H, channels]."""
        b, inputs, pointer = self.b, place.inputs, self._pointer(output)
        channels = [axis for axis in output.axes if axis in CHANNELS]
        index = program(1).to("int64")
        if output.axes[1] == "tile":
            tiles = call("tl.cdiv", size("V"), size("BV"), tile=Tile("int32"))
            index = index * tiles + place.tile
        index = index * self.arguments.integer("H", self.host.heads) + inputs.head
        for axis in channels:
            index = index * size(axis[0].upper())
        masks = [inputs.channels[axis][1] for axis in channels]
        with b.branch(pointer.given()):
            at = pointer + index + self._offsets(place, channels)
            if not masks:
                b.do(call("tl.store", at, value, tile=Tile("ptr")))
                return
            mask = masks[0].col & masks[1].row if len(masks) == 2 else masks[0]
            b.do(call("tl.store", at, value, mask=mask, tile=Tile("ptr")))


class Again(Back):
    """Builds the kernel that goes from the start, keeps states, and makes the gradients that read them: of queries."""

    def build(self, name: str) -> Function:
        """The kernel."""
        b, walk, leaves = self.b, self.walk, self.leaves
        place, exprs, static, state, totals = self._begun()
        b.space()
        with b.loop("t0", self.steps(place), Tile("int32")) as t0:
            at = self.positions(place, static, t0, exprs)
            self.keep(place, t0, state)
            b.section("States at every position, and cotangents of queries")
            steps = self.steps_of(place, at)
            after, before = self.carried(steps, state.matrix, both=self.term.strict or not self.reads_decayed)
            read = self.read(steps, after, before)
            found = self.summed(read, self.given(place, at), 2)
            at.lowering.bind(leaves.q, b.let("b_dq", self.numbered(found, at.lowering)))
            y = self.summed(read, self.side(place, at, 0), 1)
            at.lowering.bind(walk.result, b.let("b_y", self.numbered(y, at.lowering)))
            self.leave(state.matrix, after)
            self._write_all(place, at, totals)
        self._write_totals(place, totals)
        doc = ("One program keeps the states of one head and BV value channels, and makes gradients that read them.",)
        return b.function(name, doc, self.arguments.parameters, jit=True)


class Locals(LocalScan, Back):
    """The same, and with the cotangents that parts alone hand to the positions before them.

    These need no second walk: what a position hands back is decayed over all from the start of its part.
    """

    def read_by_parts(self) -> tuple[Expr, ...]:
        """What is read of every position."""
        return *super().read_by_parts(), self.walk.p, self.leaves.given

    def more_of_parts(self) -> dict[str, tuple[E, E]]:
        """The cotangents."""
        self.handed = self.b.let("b_handed", zeros("BK", "BV"))
        return {"handed": (self.tensors.sums["handed", 0], self.handed)}

    def decayed_by(self, place: Place, at: Loaded, decays: E, rest: E, decay: E) -> None:
        """Add what the positions of a tile hand back."""
        b = self.b
        b.helpers.add("handed_back")
        weights = self.weights_of(place, at)
        made = call("handed_back", decays, rest, weights, self.handed, decay, self.reads_decayed, tile=decay.tile)
        b.assign((self.handed, decay), made)
