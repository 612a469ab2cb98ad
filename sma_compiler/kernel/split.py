"""The chunked plan, split: sequences are cut in parts that run at once, for long sequences and few heads.

1. The state that each part alone would end with, from its keys and values.
2. A scan over the parts of a sequence: the state that each one begins with.
3. The fused kernel on every part, from that state.
"""

from __future__ import annotations

from sma_compiler.kernel.ahead import rates_inside
from sma_compiler.kernel.build import E, call, exp2, lift, where
from sma_compiler.kernel.chunk import Chunked, State
from sma_compiler.kernel.nodes import Function, Tile

GONE = -1e30
"""log2 of a decay that a cut has made 0."""


class LocalStates(Chunked):
    """Builds the kernel of step 1: what a part adds to each state, and how much of an earlier state it keeps."""

    def build(self, name: str) -> Function:
        """The kernel."""
        b, walk = self.b, self.walk
        place = self.place()
        static = place.inputs.static((walk.s, walk.x, *self.factors(rows=False)))
        rates = rates_inside(walk, static)
        b.section("State of this part alone, and log2 of the decay over it")
        states: list[State] = []
        decays: list[E | None] = []
        for number, term in enumerate(walk.terms):
            suffix = self.suffix(number)
            states.append(self.empty_state(number))
            decays.append(b.let(f"b_decay{suffix}", lift(0.0)) if term.gates else None)
        b.space()
        with b.loop("t0", self.steps(place), Tile("int32")) as t0:
            chunk = self.chunk(place, static, rates, t0, (), rows=False)
            self.advance_vectors(chunk, tuple(states))
            self.advance(chunk, tuple(states))
            for path, decay in zip(chunk.paths, decays, strict=True):
                if decay is None or path.total is None:
                    continue
                b.set(decay, decay + path.total)
                if path.cuts is not None:
                    b.set(decay, where(path.cuts.eq(0), decay, GONE))
        b.space()
        local, index = self.tensors.local, self.state_of_part(place)
        for number, (state, decay) in enumerate(zip(states, decays, strict=True)):
            suffix = self.suffix(number)
            for part, label in (("matrix", "local"), ("vector", "local_keys")):
                if (part, number) in local:
                    pointer = self.arguments.pointer(f"{label}{suffix}", local[part, number])
                    self.keep_state(place, state, part, pointer, index)
            if decay is not None:
                pointer = self.arguments.pointer(f"decay{suffix}", local["decay", number])
                b.do(call("tl.store", pointer + index, exp2(decay), tile=Tile("ptr")))
        doc = ("The state that each part of a sequence would end with if it began with nothing.",)
        return b.function(name, doc, self.arguments.parameters, jit=True)
