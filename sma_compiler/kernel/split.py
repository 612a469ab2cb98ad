"""The chunked plan, split: sequences are cut in parts that run at once, for long sequences and few heads.

1. The state that each part alone would end with, from its keys and values.
2. A scan over the parts of a sequence: the state that each one begins with.
3. The fused kernel on every part, from that state.
"""

from __future__ import annotations

from sma_compiler.kernel.build import E, call, exp2, lift, size, where
from sma_compiler.kernel.chunk import Chunked, State
from sma_compiler.kernel.gates import static_rates
from sma_compiler.kernel.nodes import Function, Tile

GONE = -1e30
"""log2 of a decay that a cut has made 0."""


class LocalStates(Chunked):
    """Builds the kernel of step 1: what a part adds to each state, and how much of an earlier state it keeps."""

    def build(self, name: str) -> Function:
        """The kernel."""
        b, linear = self.b, self.linear
        inputs, o_c, begin, end = self.place()
        static = inputs.static((linear.k, linear.v, *self.factors(queries=False)))
        rates = static_rates(linear.terms, static)
        b.section("State of this part alone, and log2 of the decay over it")
        states: list[State] = []
        decays: list[E | None] = []
        for number, term in enumerate(linear.terms):
            suffix = self.suffix(number)
            states.append(self.empty_state(number))
            decays.append(b.let(f"b_decay{suffix}", lift(0.0)) if term.gates else None)
        steps = call("tl.range", begin, end, size("C"), tile=Tile("int32"), num_stages=size("STAGES"))
        b.space()
        with b.loop("t0", steps, Tile("int32")) as t0:
            chunk = self.keys(inputs, static, rates, t0, o_c, end)
            self.advance(chunk, tuple(states))
            for path, decay in zip(chunk.paths, decays, strict=True):
                if decay is None or path.total is None:
                    continue
                b.set(decay, decay + path.total)
                if path.resets is not None:
                    b.set(decay, where(path.resets[2].eq(0), decay, GONE))
        b.space()
        for number, (state, decay) in enumerate(zip(states, decays, strict=True)):
            suffix = self.suffix(number)
            pointer = self.arguments.pointer(f"local{suffix}", self.host.state("local", "matrix", number))
            b.do(inputs.keep_state(pointer, "matrix", state.matrix, of_part=True))
            if state.keys is not None:
                keys = self.host.state("local", "keys", number)
                pointer = self.arguments.pointer(f"local_keys{suffix}", keys)
                b.do(inputs.keep_state(pointer, "keys", state.keys, of_part=True))
            if decay is not None:
                pointer = self.arguments.pointer(f"decay{suffix}", self.host.state("local", "decay", number))
                address = pointer + inputs.place(of_part=True)
                b.do(call("tl.store", address, exp2(decay), tile=Tile("ptr")))
        doc = ("The state that each part of a sequence would end with if nothing came before it.",)
        return b.function(name, doc, self.arguments.parameters, jit=True)
