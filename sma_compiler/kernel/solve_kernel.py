"""The kernel of a walk of `solve`: one program carries the state of one head and a tile of values along a sequence."""

from __future__ import annotations

from dataclasses import replace

from sma_compiler.kernel.build import E, dot, size, trans
from sma_compiler.kernel.chunk import Chunk, Chunked, Place, State
from sma_compiler.kernel.gates import scaled, static_rates
from sma_compiler.kernel.host import Host, Tensors
from sma_compiler.kernel.nodes import Function, Tile
from sma_compiler.kernel.score_kernel import score_address
from sma_compiler.kernel.walk import Walk


class SolveKernel(Chunked):
    """Builds the kernel. Of the right-hand side x of a chunk it makes the result, which then is the x of the state:

    R = X - decay (P S)
    U = R + N R
    S = decay S + S^T (decay U)
    """

    rounds = False

    def __init__(self, walk: Walk, host: Host, tensors: Tensors, reserved: frozenset[str]) -> None:
        super().__init__(walk, host, tensors, reserved, parts=False)
        self.guarded = True

    def build(self, name: str) -> Function:
        """The kernel."""
        b, walk = self.b, self.walk
        place = self.place()
        (output,) = walk.outputs
        rows = place.inputs.result(output.name, self.tensors.outputs[output.name], output.axes)
        static = place.inputs.static((walk.p, walk.s, walk.x, *self.factors(rows=True)))
        rates = static_rates(walk.paths, static)
        states = self.initial_states(place)
        b.space()
        with b.loop("t0", self.steps(place), Tile("int32")) as t0:
            chunk = self.chunk(place, static, rates, t0, ())
            inverse = self._inverse(place, chunk)
            b.section(f"The chunk without what it owes to those {'after' if walk.backward else 'before'} it")
            r = b.let("b_r", chunk.x - self._through_states(chunk, states))
            b.section("The inverse of the chunk's own system")
            u = b.let(f"b_{output.name}", self.plus_product(r, inverse, r.to("dot")))
            self.advance(replace(chunk, x=u), states)
            b.section("Output")
            chunk.lowering.bind(walk.result, u)
            self.write_output(place, chunk, output, rows)
        self.final_states(place, states)
        doc = f"One program solves for {self.outer} {walk.outer} channels of one head along a sequence"
        return b.function(
            name, (f"{doc}{', from its end' if walk.backward else ''}.",), self.arguments.parameters, True
        )

    def _inverse(self, place: Place, chunk: Chunk) -> E:
        """N of the chunk, made ahead; what rows past the end have is 0."""
        length = self.arguments.integer("T", self.host.sizes["time"])
        pointer = self.arguments.pointer("inverse", self.host.scores)
        at = score_address(pointer, place.inputs.row(), length, chunk.t0, chunk.rows.offsets)
        value = self.b.helper("load", at, chunk.rows.valid.col, size("MASKED"), dtype="in").to("dot")
        return self.b.let("b_n", trans(value) if self.walk.backward else value)

    def _through_states(self, chunk: Chunk, states: tuple[State, ...]) -> E:
        """What rows [C, outer] owe to other chunks, through the states of all streams."""
        assert chunk.p is not None
        total: E | None = None
        for path, state in zip(chunk.paths, states, strict=True):
            decay = path.entering()
            factors = [self.b.let("b_in", decay)] if decay is not None else []
            factors += path.rows.factors
            made = scaled(dot(chunk.p, state.matrix.to("dot")), factors, column=True)
            total = made if total is None else total + made
        assert total is not None
        return total
