"""The kernel of a walk of `solve`: one program carries the state of one head and a tile of values along a sequence.

Of the right-hand side X of a chunk it makes the result U, which then is what the state grows by:

    R = X - decay (P S)
    U = R + N R
    S = decay S + S^T (decay U)

In the adjoint system the result has the other sign: then the state is the cotangent of the state.
"""

from __future__ import annotations

from dataclasses import replace

from sma_compiler.kernel.ahead import rates_inside
from sma_compiler.kernel.build import E, size, trans
from sma_compiler.kernel.chunk import Chunk, Place, State
from sma_compiler.kernel.gates import scaled
from sma_compiler.kernel.host import Host, Tensors
from sma_compiler.kernel.nodes import Function, Tile
from sma_compiler.kernel.score_kernel import score_address
from sma_compiler.kernel.walk import Walk
from sma_compiler.kernel.walk_kernel import WalkKernel


class SolveKernel(WalkKernel):
    """Builds the kernel."""

    rounds = False

    def __init__(self, walk: Walk, host: Host, tensors: Tensors, reserved: frozenset[str]) -> None:
        super().__init__(walk, host, tensors, reserved, parts=False)
        self.guarded = True

    def build(self, name: str) -> Function:
        """The kernel."""
        b, walk = self.b, self.walk
        place = self.place()
        around = [output.expr for output in walk.outputs]
        rows = {output.name: self._rows(place, output) for output in walk.outputs if not output.optional}
        static = place.inputs.static((walk.p, walk.s, walk.x, *self.factors(rows=True), *around))
        rates = rates_inside(walk, static)
        states = self.initial_states(place)
        (state,) = states
        b.space()
        with b.loop("t0", self.steps(place), Tile("int32")) as t0:
            chunk = self.chunk(place, static, rates, t0, around)
            if walk.scales_keys:
                self.grown(chunk, 0)
            inverse = self._inverse(place, chunk)
            if ("states", 0) in self.tensors.sums:
                self._keep_state(place, chunk, state)
            b.section(f"The chunk without what it owes to those {'after' if walk.backward else 'before'} it")
            owed = self._owed(chunk, state)
            r = b.let("b_r", -chunk.x - owed if walk.backward else chunk.x - owed)
            b.section("The inverse of the chunk's own system")
            u = b.let("b_u", self.plus_product(r, inverse, r.to("dot")))
            self.advance(replace(chunk, x=u), states)
            self.write(place, chunk, None, u, rows)
        self.final_states(place, states)
        end = ", from its end" if walk.backward else ""
        doc = f"One program solves for {self.outer} {walk.outer} channels of one head along a sequence{end}."
        return b.function(name, (doc,), self.arguments.parameters, jit=True)

    def _inverse(self, place: Place, chunk: Chunk) -> E:
        """N of the chunk, made ahead; what rows past the end have is 0."""
        length = self.arguments.integer("T", self.host.sizes["time"])
        pointer = self.arguments.pointer("inverse", self.tensors.inverse)
        at = score_address(pointer, place.inputs.row(), length, chunk.t0, chunk.rows.offsets)
        value = self.b.helper("load", at, chunk.rows.valid.col, size("MASKED"), dtype="in").to("dot")
        return self.b.let("b_n", trans(value) if self.walk.backward else value)

    def _owed(self, chunk: Chunk, state: State) -> E:
        """What rows [C, outer] owe to other chunks, through the state."""
        assert chunk.p is not None
        (path,) = chunk.paths
        decay = path.entering()
        factors = [self.b.let("b_in", decay)] if decay is not None else []
        return scaled(self.times_state(chunk.p, state.matrix), [*factors, *path.rows.factors], column=True)
