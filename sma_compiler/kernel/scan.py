"""Gates that differ by both axes of channels: kernels that pass some positions at a time, each number of a state apart.

No product of matrices carries such a state, so a program holds [C, BK, BV] numbers, of C positions and a tile of value
channels with all keys, and carries the state of every pair of channels from position to position in registers:

    s_t = e_t s_(t-1) + k_t x_t        e_t = exp(gates of t), which are never written to memory
    y_t = sum over keys of  q_t s_t

Gates whose path holds the column (`key_closed`) decay k x as well; rows whose path lacks its own gates read s_(t-1).
"""

from __future__ import annotations

from dataclasses import dataclass

from sma_compiler.ir.nodes import Apply, Expr, Reduce, postorder
from sma_compiler.kernel.build import E, call, lift, pointwise, reduce_sum, size, zeros
from sma_compiler.kernel.chunk import Loaded, Place, State
from sma_compiler.kernel.gates import LOG2E, Rows
from sma_compiler.kernel.host import Host, Tensors
from sma_compiler.kernel.linear import Linear, plain, varies
from sma_compiler.kernel.lower import Lowering, wide_operand
from sma_compiler.kernel.nodes import Function, Literal, Name, Subscript, Tile
from sma_compiler.kernel.positions import number_of
from sma_compiler.kernel.walk import Walk
from sma_compiler.kernel.walk_kernel import WalkKernel

CHANNELS = {"key", "value"}
CUBE = ("C", "BK", "BV")
"""The shape of what every position, key and value has."""


def is_scan(member: Linear) -> bool:
    """Whether these kernels pass an op: gates of both axes, whose paths all end alike, and no sums over values."""
    if len(member.channels) < 2:
        return False
    ends = {(gate.query_closed, gate.key_closed) for gate in member.terms[0].gates}
    sums = (node for node in postorder((member.op.result, member.v)) if isinstance(node, Reduce))
    return len(ends) == 1 and all(node.axis != "value" for node in sums)


@dataclass(frozen=True)
class Steps:
    """What every position of a tile has.

    s [C, BK], x [C, BV]: its operands. All others are [C, BK, BV]: decay, of the state; rest, what rounding took of it
    (None but in fp32 files); added, its own column s x; grown, what it adds to the state.
    """

    s: E
    x: E
    decay: E
    rest: E
    added: E
    grown: E


class Scan(WalkKernel):
    """Builds the forward kernel, or that of the states of parts alone.

    every: positions from one state that is kept for the gradients to the next, a multiple of C.
    """

    def __init__(
        self, walk: Walk, host: Host, tensors: Tensors, reserved: frozenset[str], parts: bool, every: int = 0
    ) -> None:
        super().__init__(walk, host, tensors, reserved, parts)
        self.every = every
        (self.term,) = walk.terms
        gate = self.term.gates[0]
        self.reads_decayed, self.adds_decayed = gate.query_closed, gate.key_closed

    def spacing(self) -> E:
        """See `Chunked`."""
        return self.arguments.constant("EVERY", self.every) if self.every else size("C")

    def build(self, name: str) -> Function:
        """The kernel."""
        b, walk = self.b, self.walk
        place = self.place()
        rows = {output.name: self._rows(place, output) for output in walk.outputs if not output.optional}
        exprs = self.exprs()
        static = self.static(place, exprs)
        (state,) = self.initial_states(place)
        b.space()
        with b.loop("t0", self.steps(place), Tile("int32")) as t0:
            at = self.positions(place, static, t0, exprs)
            if ("states", 0) in self.tensors.sums:
                self.keep(place, t0, state)
            b.section("States at every position")
            y = self.pass_rows(place, at, state)
            b.section("Output")
            at.lowering.bind(walk.result, y)
            for output in walk.outputs:
                self.write_output(place, at, output, rows.get(output.name))
        self.final_states(place, (state,))
        doc = ("One program carries the states of one head and BV value channels along a sequence.",)
        return b.function(name, doc, self.arguments.parameters, jit=True)

    def exprs(self) -> tuple[Expr, ...]:
        """What is read of every position."""
        walk = self.walk
        return walk.p, walk.s, walk.x, *(output.expr for output in walk.outputs)

    def pass_rows(self, place: Place, at: Loaded, state: State) -> E:
        """Carry the state over a tile of positions; the contraction's rows, [C, BV]."""
        p, found = self.side(place, at, 0), self.steps_of(place, at)
        after, before = self.carried(found, state.matrix, both=self.term.strict or not self.reads_decayed)
        y = self.summed(self.read(found, after, before), p, 1)
        y = self.b.let("b_y", self.numbered(y, at.lowering))
        self.leave(state.matrix, after)
        return y

    def pass_over(self, place: Place, at: Loaded, state: E) -> tuple[E, E]:
        """Carry a state over a tile of positions; their decays, and what rounding took of them."""
        steps = self.steps_of(place, at)
        self.leave(state, self.carried(steps, state, both=False)[0])
        return steps.decay, steps.rest

    def summed(self, a: E, b: E, axis: int) -> E:
        """The sum of a product over the keys or the values of a tile; in fp64 in fp32 files."""
        product = (a.to("fp64") if self.exact else a) * b.among(CUBE)
        return reduce_sum(product, axis).to("fp32")

    turned = True
    """Whether states lie in memory as [V, K]: a thread has keys side by side."""

    def place(self) -> Place:
        """Where the program is."""
        made = super().place()
        made.inputs.turned = self.turned
        return made

    def given_state(self, place: Place, pointer: E, index: E, state: E) -> E:
        """A matrix that the program begins with, loaded as [1, BK, BV], so that threads have what they have of a tile.

        Of a load of [BK, BV] Triton makes another layout, and carries the state in that.
        """
        if not self.turned:
            return super().given_state(place, pointer, index, state)
        (o_k, m_k), (o_v, m_v) = (place.inputs.channels[axis] for axis in ("key", "value"))
        begin = pointer + index * (size("K") * size("V"))
        at = begin + (o_k.among(CUBE) + (o_v * size("K")).among(CUBE))
        cube = Tile("fp32", ("1", "BK", "BV"))
        found = call("tl.load", at, mask=m_k.among(CUBE) & m_v.among(CUBE), other=0.0, tile=cube)
        return reduce_sum(found, 0)

    def static(self, place: Place, exprs: tuple[Expr, ...]) -> Lowering:
        """Load what does not vary in time of some expressions and of the gates."""
        every = (*exprs, *self.logs(), *self.term.row)
        summed = [x for x in postorder(every) if isinstance(x, Reduce) and not varies(x)]
        place.inputs.cubic = frozenset(place.inputs.held(self.logs())).difference(postorder(summed))
        found = place.inputs.static(every)
        found.sums = "fp64" if self.exact else "fp32"
        return found

    def logs(self) -> tuple[Expr, ...]:
        """The log gates."""
        return tuple(gate.log for gate in self.term.gates)

    def _log2(self, log: Expr, lowering: Lowering) -> E:
        """A log gate in base 2: of a product, the factor with fewer channels is taken times log2 of e."""
        inner = plain(log)
        if not isinstance(inner, Apply) or inner.fn != "mul":
            return lowering.value(inner).among(CUBE) * LOG2E
        few, many = sorted(inner.args, key=lambda arg: len(CHANNELS & set(arg.axes)))
        return (lowering.value(few) * LOG2E).among(CUBE) * lowering.value(many).among(CUBE)

    def positions(self, place: Place, static: Lowering, t0: E, exprs: tuple[Expr, ...]) -> Loaded:
        """Load positions t0 .. t0 + C of what some expressions and the gates read."""
        b, inputs = self.b, place.inputs
        b.section("Positions t0 .. t0 + C; what lies past the end is read as 0")
        valid = b.let("m_t", t0 + place.offsets < place.end, show=False)
        inputs.enter_all(valid)
        held = Rows(place.offsets, valid, pointwise("tl.minimum", place.end - t0, size("C"), dtype="int32"))
        lowering = inputs.chunk((*exprs, *self.logs(), *self.term.row), static, t0, place.offsets, valid, ())
        return Loaded(t0, held, lowering)

    def side(self, place: Place, at: Loaded, number: int) -> E:
        """An operand of the walk, p, s or x, along positions and its channels."""
        walk = self.walk
        expr, axis = ((walk.p, walk.inner), (walk.s, walk.inner), (walk.x, walk.outer))[number]
        return wide_operand(self.b, expr, walk.names[number], at.lowering, place.inputs.inside[axis])

    def steps_of(self, place: Place, at: Loaded) -> Steps:
        """What the positions of a tile do to the state."""
        s, x = self.side(place, at, 1), self.side(place, at, 2)
        decay, rest = self.decay(place, at)
        added = self.b.let("b_u", s.among(CUBE) * x.among(CUBE))
        return Steps(s, x, decay, rest, added, decay * added if self.adds_decayed else added)

    def carried(self, steps: Steps, state: E, *, both: bool) -> tuple[E, E]:
        """The state after every position of a tile and, where `both` are wanted, before it."""
        given, names = self._given(steps, state), ("b_after", "b_before")
        if both:
            return self.pair("carried", given, names)
        after = self.one_of("carried", given, names, 0)
        return after, after

    def before(self, steps: Steps, state: E) -> E:
        """The state before every position of a tile."""
        return self.one_of("carried", self._given(steps, state), ("b_after", "b_before"), 1)

    def _given(self, steps: Steps, state: E) -> tuple[E, ...]:
        return steps.decay, steps.grown, state, steps.rest

    def pair(self, helper: str, given: tuple[E, ...], names: tuple[str, str]) -> tuple[E, E]:
        """The two tiles that a helper gives."""
        b, tile = self.b, given[0].tile
        b.helpers.add(helper)
        first, second = (E(Name(tile, b.fresh(name))) for name in names)
        b.assign((first, second), call(helper, *given, tile=tile))
        return first, second

    def one_of(self, helper: str, given: tuple[E, ...], names: tuple[str, str], number: int) -> E:
        """One of them, where the other is not wanted."""
        b, tile = self.b, given[0].tile
        b.helpers.add(helper)
        made = call(helper, *given, tile=tile)
        return b.let(names[number], E(Subscript(tile, made.node, (Literal(None, number),))))

    def at(self, tile: E, position: E) -> E:
        """What one position of a tile has."""
        self.b.helpers.add("at_position")
        return call("at_position", tile, position, tile=Tile(tile.tile.dtype, ("BK", "BV")))

    def leave(self, state: E, after: E) -> None:
        """The state behind a tile, from those after its positions."""
        self.b.set(state, self.at(after, size("C") - 1))

    def decay(self, place: Place, at: Loaded) -> tuple[E, E]:
        """The decay at every position, 1 past the end, and in fp32 files what rounding took of it."""
        b, lowering = self.b, at.lowering
        total: E | None = None
        for log in self.logs():
            value = lowering.value(log).among(CUBE) if self.exact else self._log2(log, lowering)
            total = value if total is None else total + value
        assert total is not None
        exponent = b.helper("keep", total, place.inputs.inside["all"], size("MASKED"))
        if not self.exact:
            return b.let("b_decay", pointwise("tl.exp2", exponent)), lift(None)
        exponent = b.let("b_log", exponent)
        decay = b.let("b_decay", b.helper("exact_exp", exponent))
        return decay, b.let("b_rest", b.helper("small_rest", exponent, decay))

    def read(self, steps: Steps, after: E, before: E) -> E:
        """What every row reads: the state that its path leads to, with its own column unless the mask is strict."""
        if not self.term.strict:
            return after if self.reads_decayed else before + steps.added
        return steps.decay * before if self.reads_decayed else before

    def numbered(self, value: E, lowering: Lowering) -> E:
        """A value times the numbers that all weights have."""
        for factor in self.term.row:
            value = value * number_of(factor, lowering)
        return value

    def keep(self, place: Place, t0: E, state: State) -> None:
        """Keep the state before every tile, or before every EVERY-th position, for the gradients."""
        b = self.b
        wanted = self.arguments.pointer("states", self.tensors.sums["states", 0]).given()
        if self.every:
            wanted = wanted.both(((t0 - place.span.begin) % self.spacing()).eq(0))
        with b.branch(wanted):
            self.keep_of_chunk(place, t0, state)


class LocalScan(Scan):
    """Builds the kernel of the states of parts alone; see `split`."""

    def build(self, name: str) -> Function:
        """The kernel."""
        b, local = self.b, self.tensors.local
        place = self.place()
        exprs = self.read_by_parts()
        static = self.static(place, exprs)
        b.section("State of this part alone, and the decay over it")
        state = self.empty_state(0).matrix
        decay = self.empty_decay()
        made = {"local": (local["matrix", 0], state), "decays": (local["decay", 0], decay), **self.more_of_parts()}
        b.space()
        with b.loop("t0", self.steps(place), Tile("int32")) as t0:
            at = self.positions(place, static, t0, exprs)
            self.decayed_by(place, at, *self.pass_over(place, at, state), decay)
        b.space()
        index = self.state_of_part(place)
        for label, (tensor, value) in made.items():
            address, mask = place.inputs.matrix(self.arguments.pointer(label, tensor), index, "key", "value")
            b.do(call("tl.store", address, value, mask=mask, tile=Tile("ptr")))
        doc = (
            "The state that each part of a sequence would end with if it began with nothing, and the decay over it.",
        )
        return b.function(name, doc, self.arguments.parameters, jit=True)

    def read_by_parts(self) -> tuple[Expr, ...]:
        """What is read of every position."""
        return self.walk.s, self.walk.x

    def more_of_parts(self) -> dict[str, tuple[E, E]]:
        """By pointer, further tensors that are written for every part, and what is written."""
        return {}

    def empty_decay(self) -> E:
        """The decay over no position."""
        return self.b.let("b_over", zeros("BK", "BV") + 1.0)

    def decayed_by(self, place: Place, at: Loaded, decays: E, rest: E, decay: E) -> None:
        """Take the decay from the start of the part over a tile of positions."""
        self.b.helpers.add("decayed_along")
        self.b.set(decay, call("decayed_along", decays, rest, decay, tile=decay.tile))
