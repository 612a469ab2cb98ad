"""The decoding step: one position of every sequence in a single launch, whose time is that of moving the states.

A program has a tile of a state, all channels of the inner axis and BV of the outer one. It reads the tile, carries it
over the position and writes it back, to the same addresses where the caller wants that. Where rows are normalised, the
sums of the keys belong to all tiles of a head: one program has them all in turn.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sma_compiler.ir.nodes import Expr
from sma_compiler.kernel.build import E, call, size
from sma_compiler.kernel.host import SIZES, Host, Tensors
from sma_compiler.kernel.inputs import EXTENT, Inputs
from sma_compiler.kernel.linear import Linear
from sma_compiler.kernel.lower import Lowering
from sma_compiler.kernel.maker import program
from sma_compiler.kernel.nodes import Function, Tile
from sma_compiler.kernel.positions import Operands, Positions, Row, State
from sma_compiler.kernel.walk import Walk


def without_time(linear: Linear) -> Linear:
    """The op as a step takes it: its tensors have no time axis."""
    op = linear.op
    params = tuple(replace(decl, dims=tuple(axis for axis in decl.dims if axis != "time")) for decl in op.params)
    return replace(linear, op=replace(op, params=params))


class Step(Positions):
    """Builds the kernel of a step. tensors: `initial` and `final` are the states before and after, of any strides."""

    def __init__(
        self, walk: Walk, host: Host, tensors: Tensors, reserved: frozenset[str], *, spread: bool = False
    ) -> None:
        super().__init__(walk, host, reserved)
        self.tensors = tensors
        self.spread = spread
        """Whether the values of a state may lie apart."""

    def build(self, name: str) -> Function:
        """The kernel."""
        b, walk = self.b, self.walk
        doc = ("One position of one head: its state is read once and written once.",)
        b.section("Which " + ("" if walk.vector else f"{walk.outer} channels, ") + "head and sequence")
        tiles = b.let("n_v", call("tl.cdiv", size(SIZES[walk.outer]), size(EXTENT[walk.outer]), tile=Tile("int32")))
        index, tile = program(0), None
        if not walk.vector:
            index, tile = program(0) // tiles, b.let("i_v", program(0) % tiles)
        heads = self.arguments.integer("H", self.host.heads)
        i_h = b.let("i_h", (index % heads).to("int64"))
        i_b = b.let("i_b", (index // heads).to("int64"))
        inputs = Inputs(b, self.arguments, self.host, i_b, i_h, i_b)
        self.use_channels(inputs, walk.inner, None)
        if tile is not None:
            self.use_channels(inputs, walk.outer, tile)
            states = self._matrices(inputs)
            lowering = self._lowering(inputs, self.exprs())
            self._tile(inputs, states, lowering, self.operands(inputs, lowering), None)
        else:
            self._all_tiles(inputs, tiles)
        return b.function(name, doc, self.arguments.parameters, jit=True)

    def _lowering(self, inputs: Inputs, exprs: Iterable[Expr]) -> Lowering:
        """Load every tensor that some expressions read."""
        exprs = tuple(exprs)
        self.b.section("This position")
        return self.position(inputs, exprs, inputs.static(exprs, EXTENT[self.walk.inner]), None)

    def _all_tiles(self, inputs: Inputs, tiles: E) -> None:
        """The sums of the keys, then one tile after another."""
        b, walk = self.b, self.walk
        weights = [x for term in walk.terms for x in (*term.row, *term.col)]
        gates = [gate.log for term in walk.terms for gate in term.gates]
        lowering = self._lowering(inputs, (walk.p, walk.s, *weights, *gates))
        operands = Operands(*self.inner(inputs, lowering), None)
        norm = self._keys(inputs, lowering, operands)
        b.space()
        with b.loop("i_v", call("range", tiles, tile=Tile("int32")), Tile("int32")) as tile:
            self.use_channels(inputs, walk.outer, tile)
            states = self._matrices(inputs)
            found = self._lowering(inputs, (walk.x, *weights, *(output.expr for output in walk.outputs)))
            self._tile(inputs, states, found, replace(operands, x=found.value(walk.x)), norm)

    def _keys(self, inputs: Inputs, lowering: Lowering, operands: Operands) -> E:
        """Carry the sums of the keys over the position; the sum of the row's weights."""
        b = self.b
        b.section("Sums of the keys")
        states = []
        for number in range(len(self.walk.terms)):
            address, mask = self._vector(inputs, "initial", number)
            value = b.helper("load", address, mask, size("MASKED"))
            states.append(State(None, b.let(f"b_z{self.suffix(number)}", value)))
        found = self.pass_position(states, operands, lowering)
        b.comment("No thread may still have to read what is written")
        b.do(call("tl.debug_barrier", tile=Tile("ptr")))
        for number, state in enumerate(states):
            address, mask = self._vector(inputs, "final", number)
            self._store(address, state.vector, mask)
        assert found.norm is not None
        return found.norm

    def _matrices(self, inputs: Inputs) -> list[State]:
        """A tile of every state, asked of memory before anything else."""
        self.b.section("State")
        found = []
        for number in range(len(self.walk.terms)):
            address, mask = self._matrix(inputs, "initial", number)
            value = self.b.helper("load", address, mask, size("MASKED"))
            found.append(State(self.b.let(f"b_s{self.suffix(number)}", value), None))
        return found

    def _tile(
        self, inputs: Inputs, states: list[State], lowering: Lowering, operands: Operands, norm: E | None
    ) -> None:
        """Carry a tile of every state over the position, and write the outputs."""
        b, walk = self.b, self.walk
        b.section("The state after it")
        row = self.pass_position(states, operands, lowering)
        for number, state in enumerate(states):
            address, mask = self._matrix(inputs, "final", number)
            self._store(address, state.matrix, mask)
        b.section("Output")
        lowering.bind(walk.result, self.divided(Row(row.y, norm)))
        for output in walk.outputs:
            base = self._head(inputs, output.name, self.tensors.outputs[output.name])
            offsets, valid = inputs.channels[walk.outer]
            self._store(base + offsets, lowering.value(output.expr), valid)

    def _store(self, address: E, value: E | None, mask: E) -> None:
        assert value is not None
        self.b.helpers.add("store")
        self.b.do(call("store", address, value, mask, size("MASKED"), tile=Tile("ptr")))

    def _matrix(self, inputs: Inputs, when: str, number: int) -> tuple[E, E]:
        (o_i, m_i), (o_o, m_o) = inputs.channels[self.walk.inner], inputs.channels[self.walk.outer]
        base, stride = self._state(inputs, when, "matrix", number)
        if self.spread:
            name, held = f"{when}{self.suffix(number)}", getattr(self.tensors, when)["matrix", number]
            o_o = o_o * self.arguments.stride(name, "value", held, 3)
        return base + (o_i.col * stride + o_o.row), m_i.col & m_o.row

    def _vector(self, inputs: Inputs, when: str, number: int) -> tuple[E, E]:
        offsets, valid = inputs.channels[self.walk.inner]
        base, stride = self._state(inputs, when, "vector", number)
        return base + offsets * stride, valid

    def _state(self, inputs: Inputs, when: str, part: str, number: int) -> tuple[E, E]:
        """Where this head's part of a state begins, and how far apart its rows are."""
        name = f"{when}{'_keys' if part == 'vector' else ''}{self.suffix(number)}"
        host = (self.tensors.initial if when == "initial" else self.tensors.final)[part, number]
        return self._head(inputs, name, host), self.arguments.stride(name, "key", host, 2)

    def _head(self, inputs: Inputs, name: str, host: E) -> E:
        """The address of this program's head in a tensor [B, H, ...]."""
        address = self.arguments.pointer(name, host)
        for dimension, (axis, place) in enumerate((("batch", inputs.batch), ("head", inputs.head))):
            address = address + place * self.arguments.stride(name, axis, host, dimension)
        return self.b.named(f"p_{name}", address)
