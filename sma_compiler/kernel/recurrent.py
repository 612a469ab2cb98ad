"""The recurrent plan: kernels that pass positions in order with the state of one head in registers.

`Recurrent` walks a whole sequence; `Step` passes one position of every sequence, in a single launch whose time is that
of reading and writing the states.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

from sma_compiler.kernel.build import E, call, lift, reduce_sum, size, where
from sma_compiler.kernel.channel_positions import ChannelPositions
from sma_compiler.kernel.host import SIZES, Host, Tensors
from sma_compiler.kernel.inputs import EXTENT, Inputs
from sma_compiler.kernel.maker import program
from sma_compiler.kernel.nodes import Function, Tile
from sma_compiler.kernel.position_sums import PositionSums
from sma_compiler.kernel.positions import Operands, Positions, Row, State
from sma_compiler.kernel.rows import Span, lone, sequence
from sma_compiler.kernel.walk import Output, Walk


class Recurrent(Positions):
    """Builds the kernel of a walk: one program a head and tile of outer channels, position by position."""

    def __init__(self, walk: Walk, host: Host, tensors: Tensors, reserved: frozenset[str]) -> None:
        super().__init__(walk, host, reserved)
        self.tensors = tensors

    def build(self, name: str) -> Function:
        """The kernel."""
        b, walk = self.b, self.walk
        inputs, span, tile = self._place()
        rows = {output.name: self._rows(inputs, output) for output in walk.outputs if not output.optional}
        exprs = (*self.exprs(), *([walk.sums.other] if walk.sums is not None else []))
        static = inputs.static(exprs, EXTENT[walk.inner])
        self.static_decays(static)
        sums: PositionSums | ChannelPositions | None = None
        if walk.sums is not None:
            apart = bool(walk.terms[0].axes)
            given = self, inputs, span, static
            sums = ChannelPositions(*given) if apart else PositionSums(*given, tile)
        states = self._initial(inputs)
        begin, end = (lift(0), span.end - span.begin) if walk.backward else (span.begin, span.end)
        b.space()
        steps = call("tl.range", begin, end, tile=Tile("int32"), num_stages=size("STAGES"))
        with b.loop("n" if walk.backward else "t", steps, Tile("int32")) as t:
            b.section("Position t")
            if walk.backward:
                t = b.let("t", span.end - 1 - t)
            lowering = self.position(inputs, exprs, static, t)
            operands = self.operands(inputs, lowering)
            if walk.lone:
                operands = self._without_lone(operands, span, t)
            if sums is not None:
                sums.enter(t, lowering)
                (sums.keep if sums.asked.pairs else sums.cross)(states)
            b.section("State and row")
            row = self.pass_position(states, operands, lowering, None if sums is None else sums.weigh)
            self._keep_norm(inputs, row, t, tile)
            lowering.bind(walk.result, self.divided(row))
            b.section("Output")
            for output in walk.outputs:
                self._write(inputs, output, rows.get(output.name), lowering.value(output.expr), t, tile)
        b.space()
        for number, state in enumerate(states):
            self._final(inputs, number, state)
        carries = f"carries the state of one head and {EXTENT[walk.outer]} {walk.outer} channels along a sequence"
        doc = f"One program {carries}{', from its end' if walk.backward else ''}."
        return b.function(name, (doc,), self.arguments.parameters, jit=True)

    def _without_lone(self, at: Operands, span: Span, t: E) -> Operands:
        """The operands where the cotangent of what pairs with itself alone is 0; see `Walk.lone`."""
        b, (a, column) = self.b, at.offset
        only, without_state = lone(self.walk, self.tensors, self.arguments, span)
        live = b.let("live", lift(1.0))
        with b.branch(without_state):
            b.set(live, where(t.eq(only), 0.0, 1.0))
        if self.walk.lone == "rows":
            return replace(at, p=at.p * live, offset=(live if a is None else a * live, column))
        return replace(at, s=at.s * live, offset=(a, live if column is None else column * live))

    def _place(self) -> tuple[Inputs, Span, E]:
        """Say which program this is: its inputs, its sequence, and which tile of the outer axis it has."""
        b, outer = self.b, self.walk.outer
        b.section(f"Which {outer} channels, head and sequence")
        count = b.let(f"n_{outer[0]}", call("tl.cdiv", size(SIZES[outer]), size(EXTENT[outer]), tile=Tile("int32")))
        tile = b.let(f"i_{outer[0]}", program(0) % count)
        i_h = b.let("i_h", (program(0) // count).to("int64"))
        i_s = b.let("i_s", program(1).to("int64"))
        span = sequence(b, self.arguments, self.host, i_s, lift(1))
        inputs = Inputs(b, self.arguments, self.host, span.batch, i_h, span.sequence)
        for axis in ("key", "value"):
            self.use_channels(inputs, axis, tile if axis == outer else None)
        b.section("Where the rows of this head begin")
        return inputs, span, tile

    def _rows(self, inputs: Inputs, output: Output) -> tuple[E, E]:
        return inputs.result(output.name, self.tensors.outputs[output.name], output.axes)

    def _write(self, inputs: Inputs, output: Output, rows: tuple[E, E] | None, value: E, t: E, tile: E) -> None:
        """Write an output at position t, or the sum of its channels."""
        b, outer = self.b, self.walk.outer
        offsets, valid = inputs.channels[outer]
        pointer = self.arguments.pointer(output.name, self.tensors.outputs[output.name])
        with b.branch(pointer.given()) if output.optional else nullcontext():
            if outer not in output.axes:
                total = reduce_sum(b.helper("keep", value, valid, size("MASKED")), 0)
                b.do(call("tl.store", self.position_of_tile(inputs, tile, pointer, t), total, tile=Tile("ptr")))
                return
            base, stride = rows or inputs.made(output.name, pointer, outer)
            b.helpers.add("store")
            b.do(call("store", self.entry(base, t, stride) + offsets, value, valid, size("MASKED"), tile=Tile("ptr")))

    def row_of_tile(self, inputs: Inputs, tile: E) -> E:
        """The index of this program's rows in [tiles, B, H]."""
        batches = self.arguments.integer("B", self.host.sizes["batch"])
        heads = self.arguments.integer("H", self.host.heads)
        return (tile * batches + inputs.batch) * heads + inputs.head

    def position_of_tile(self, inputs: Inputs, tile: E, pointer: E, t: E) -> E:
        """The address of position t in [tiles, B, H, T]."""
        length = self.arguments.integer("T", self.host.sizes["time"])
        return pointer + self.row_of_tile(inputs, tile) * length + t

    def _keep_norm(self, inputs: Inputs, row: Row, t: E, tile: E) -> None:
        """Write what rows are divided by, [B, T, H], once for all tiles."""
        if row.norm is None or self.tensors.norm is None:
            return
        pointer = self.arguments.pointer("norm", self.tensors.norm)
        heads = self.arguments.integer("H", self.host.heads)
        length = self.arguments.integer("T", self.host.sizes["time"])
        with self.b.branch(pointer.given()):
            at = pointer + (inputs.batch * length + t) * heads + inputs.head
            self.b.do(call("tl.store", at, row.norm, mask=tile.eq(0), tile=Tile("ptr")))

    def _initial(self, inputs: Inputs) -> list[State]:
        b, given = self.b, self.tensors.initial
        b.section(f"State: what the positions {'after' if self.walk.backward else 'before'} sum to")
        states = [self.empty(number) for number in range(len(self.walk.terms))]
        for number, state in enumerate(states):
            for part, value, name in (("matrix", state.matrix, "initial"), ("vector", state.vector, "initial_keys")):
                if value is not None and (part, number) in given:
                    pointer = self.arguments.pointer(f"{name}{self.suffix(number)}", given[part, number])
                    with b.branch(pointer.given()):
                        address, mask = self._state(inputs, pointer, part)
                        b.set(value, call("tl.load", address, mask=mask, other=0.0, tile=value.tile))
        return states

    def _final(self, inputs: Inputs, number: int, state: State) -> None:
        given = self.tensors.final
        for part, value, name in (("matrix", state.matrix, "final"), ("vector", state.vector, "final_keys")):
            if value is not None and (part, number) in given:
                pointer = self.arguments.pointer(f"{name}{self.suffix(number)}", given[part, number])
                with self.b.branch(pointer.given()):
                    address, mask = self._state(inputs, pointer, part)
                    self.b.do(call("tl.store", address, value, mask=mask, tile=Tile("ptr")))

    def _state(self, inputs: Inputs, pointer: E, part: str) -> tuple[E, E]:
        place = inputs.place()
        if part == "vector":
            return inputs.vector(pointer, place)
        return inputs.matrix(pointer, place, self.walk.inner, self.walk.outer)
