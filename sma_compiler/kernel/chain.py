"""The chain rule for gates and factors: from the sums that the walks leave behind to the gradients of parameters.

A log gate's gradient is the weight of all pairs whose path holds its position u. Per stretch of chunks, from its end b
down, with z what late ends have less what early ends have of their pairs (without the diagonal):

    dgate_u = weight of the pairs that lead over b + sum of z over u .. b

Pairs that lie wholly to one side of u cancel, and no sum is longer than a stretch. What leads over b is known to the
rounding of states; where a chunk decays so much that nothing leads over all of it, what leads over its end is taken
from the chunk's own sums, so that this rounding stays out of the positions before.
"""

from __future__ import annotations

from sma_compiler.ir.nodes import Expr, Param, postorder
from sma_compiler.kernel.backward import CHANNELS, Backward, Chain, Link
from sma_compiler.kernel.build import E, arange, call, cumsum, lift, reduce_sum, size, where, zeros
from sma_compiler.kernel.gates import LOWEST, log2_of, may_reset
from sma_compiler.kernel.host import Host, Tensors, suffix
from sma_compiler.kernel.inputs import EXTENT, Inputs
from sma_compiler.kernel.linear import varies
from sma_compiler.kernel.lower import Lowering
from sma_compiler.kernel.maker import Maker, program
from sma_compiler.kernel.nodes import Function, Tile
from sma_compiler.kernel.rows import chunk
from sma_compiler.kernel.walk import STRETCH, Output
from sma_compiler.mask.nodes import Gate

FADED = -12.0
"""log2 of a decay over a chunk beyond which nothing is taken to lead over all of it: less than rounding leaves."""


class ChainKernel(Maker):
    """Builds the kernel: one program for each stretch of each head.

    tensors: `outputs` of the chain and `sums` of the walks. tiles: how many tiles of each sum there are.
    backward: whether the late ends of paths are keys. rounded: whether states were rounded for products, and the sums
    of what leads through states leave pairs inside chunks out.
    """

    def __init__(
        self,
        chain: Chain,
        host: Host,
        tensors: Tensors,
        reserved: frozenset[str],
        tiles: E,
        *,
        backward: bool,
        rounded: bool,
    ) -> None:
        super().__init__(host, reserved)
        self.rounded = rounded
        self.chain = chain
        self.tensors = tensors
        self.tiles = tiles
        self.backward = backward
        self.read = _read(chain)

    def build(self, name: str) -> Function:
        """The kernel."""
        b, chain = self.b, self.chain
        b.section("Which stretch of chunks, head and sequence")
        slot = b.let("slot", program(0))
        i_h = b.let("i_h", program(1).to("int64"))
        i_b = b.let("i_b", program(2).to("int64"))
        span = chunk(b, self.arguments, self.host, slot, i_b, STRETCH)
        inputs = Inputs(b, self.arguments, self.host, i_b, i_h, span.sequence)
        rows = b.let("o_c", arange("C"), show=False)
        self._channels(inputs)
        b.section("Where the rows of this head begin")
        exprs = [output.expr for output in chain.outputs]
        gates = [(link.term.gates if self.rounded else [gate for gate, _ in link.gates]) for link in chain.links]
        exprs += [gate.log for several in gates for gate in several if self.rounded or is_cut(gate)]
        exprs += [x for link in chain.links for x in (link.row, link.col) if x is not None]
        static = inputs.static(exprs)
        b.section("What the pairs that lead over the end of the stretch weigh")
        carried = {
            number: b.let(f"b_carry{self._suffix(number)}", self._anchor(number, inputs, slot))
            for number, link in enumerate(chain.links)
            if ("net", number) in self.tensors.sums
        }
        sums = {output.name: self._start(output) for output in chain.outputs if "time" not in output.axes}
        b.space()
        with b.loop("i_c", call("tl.range", 0, STRETCH, tile=Tile("int32")), Tile("int32")) as i_c:
            b.section("Rows t0 .. t0 + C, from the last chunk of the stretch; what lies past the end is read as 0")
            t0 = b.let("t0", span.begin + (STRETCH - 1 - i_c) * size("C"))
            valid = b.let("m_t", t0 + rows < span.end, show=False)
            inputs.enter(valid)
            lowering = inputs.chunk(exprs, static, t0, rows, valid, ())
            for number, link in enumerate(chain.links):
                self._bind(number, link, inputs, lowering, t0, rows, valid, carried.get(number))
            b.section("Gradients of the parameters")
            values = {output.name: lowering.value(output.expr) for output in chain.outputs}
            for output in chain.outputs:
                value, channel = values[output.name], _channel(output)
                if output.name not in sums:
                    b.helpers.add("store")
                    pointer = self._pointer(output)
                    with b.branch(pointer.given()):
                        begin = inputs.made(output.name, pointer, channel)
                        at, mask = inputs.addresses(*begin, channel, t0, rows, valid)
                        value = value if len(value.tile.shape) == len(at.tile.shape) else value.col
                        b.do(call("store", at, value, mask, size("MASKED"), tile=Tile("ptr")))
                else:
                    inside = valid if channel is None else inputs.inside[channel]
                    value = b.helper("keep", value, inside, size("MASKED"))
                    b.set(sums[output.name], sums[output.name] + reduce_sum(value, 0))
        b.space()
        for output in chain.outputs:
            if output.name in sums:
                with b.branch(self._pointer(output).given()):
                    self._keep(output, inputs, slot, sums[output.name])
        doc = ("The chain rule for gates and factors, over a stretch of chunks of one head.",)
        return b.function(name, doc, self.arguments.parameters, jit=True)

    def _suffix(self, number: int) -> str:
        return suffix(number, len(self.chain.links))

    def _channels(self, inputs: Inputs) -> None:
        """All channels of the axes that some expression has."""
        b = self.b
        for axis in CHANNELS:
            if any(isinstance(node, Param) and axis in node.axes for node in self.read):
                offsets = b.let(f"o_{axis[0]}", arange(EXTENT[axis]), show=False)
                inputs.use_channels(axis, offsets, b.let(f"m_{axis[0]}", offsets < size(axis[0].upper()), show=False))

    def _pointer(self, output: Output) -> E:
        return self.arguments.pointer(output.name, self.tensors.outputs[output.name])

    def _anchor(self, number: int, inputs: Inputs, slot: E) -> E:
        stretches = self.arguments.integer("STRETCHES", self.host.stretches)
        pointer = self.arguments.pointer(f"anchors{self._suffix(number)}", self.tensors.sums["anchors", number])
        return self._over_tiles(pointer + inputs.row() * stretches + slot, stretches, lift(True))

    def _over_tiles(self, at: E, width: E, valid: E) -> E:
        """The sum over tiles of what lies at an address of the first; each tile has `width` numbers a head."""
        batches = self.arguments.integer("B", self.host.sizes["batch"])
        heads = self.arguments.integer("H", self.host.heads)
        count = self.arguments.integer("TILES", self.tiles)
        self.b.helpers.add("over_tiles")
        return call("over_tiles", at, valid, batches * heads * width, count, tile=Tile("fp32", valid.tile.shape))

    def _start(self, output: Output) -> E:
        channel = _channel(output)
        return self.b.let(f"b_{output.name}", lift(0.0) if channel is None else zeros(EXTENT[channel]))

    def _bind(
        self,
        number: int,
        link: Link,
        inputs: Inputs,
        lowering: Lowering,
        t0: E,
        rows: E,
        valid: E,
        carried: E | None,
    ) -> None:
        """Give the leaves of one stream their tiles."""
        b, name = self.b, self._suffix(number)
        length = self.arguments.integer("T", self.host.sizes["time"])

        def load(kind: str) -> E:
            pointer = self.arguments.pointer(f"{kind}{name}", self.tensors.sums[kind, number])
            at = pointer + inputs.row() * length + (t0 + rows)
            return b.let(f"b_{kind}{name}", self._over_tiles(at, length, valid))

        b.section("Sums of the pairs' weights: over keys for each query, over queries for each key")
        sums = self.tensors.sums
        through = load("through") if ("through", number) in sums else None
        if ("rows", number) in sums:
            lowering.bind(link.rows, load("rows"))
        if ("columns", number) in sums and through is not None:
            lowering.bind(link.cols, b.let(f"b_cols{name}", load("columns") + through))
        if carried is None or through is None:
            return
        b.section("Gradients of the log gates")
        past = through if link.col is None else through * lowering.value(link.col)
        net = load("net")
        z = b.let(f"b_z{name}", net + past if self.backward else net - past)
        if self.rounded:
            inside = reduce_sum(-net if self.backward else past, 0)  # pairs inside the chunk cancel in the sum of net
            b.set(carried, where(self._decay(link, lowering, valid) < FADED, inside, carried))
        over = b.let(f"b_over{name}", carried + cumsum(z, reverse=True))
        b.set(carried, carried + reduce_sum(z, 0))
        for gate, leaf in link.gates:
            if leaf in self.read:
                lowering.bind(leaf, b.named(f"b_{leaf.name}", self._of_gate(gate, link, over, z, lowering)))

    def _decay(self, link: Link, lowering: Lowering, valid: E) -> E:
        """log2 of the decay over the chunk."""
        total = lift(0.0)
        for gate in link.term.gates:
            log = log2_of(gate.log, lowering)
            if varies(gate.log):
                total = reduce_sum(self.b.helper("keep", log, valid, size("MASKED")), 0) + total
            else:
                total = log * size("C") + total
        return total

    def _of_gate(self, gate: Gate, link: Link, over: E, z: E, lowering: Lowering) -> E:
        """A log gate's gradient from that of one whose path holds the late end alone."""
        late_closed, early_closed = gate.query_closed, gate.key_closed
        queries, keys = (link.rows, link.row), (link.cols, link.col)
        late, early = (keys, queries) if self.backward else (queries, keys)
        if self.backward:
            late_closed, early_closed = early_closed, late_closed
        if late_closed and early_closed:
            over = over + self._whole(*early, lowering)
        elif early_closed:
            over = over - z
        elif not late_closed:
            over = over - self._whole(*late, lowering)
        if is_cut(gate):
            over = where(log2_of(gate.log, lowering) < LOWEST, 0.0, over)
        return over

    def _whole(self, sums: Param, factor: Expr | None, lowering: Lowering) -> E:
        value = lowering.value(sums)
        return value if factor is None else value * lowering.value(factor)

    def _keep(self, output: Output, inputs: Inputs, slot: E, value: E) -> None:
        """Write what a parameter that does not vary in time gets from this stretch, [B, stretches, H, ...]."""
        heads = self.arguments.integer("H", self.host.heads)
        stretches = self.arguments.integer("STRETCHES", self.host.stretches)
        place = (inputs.batch * stretches + slot) * heads + inputs.head
        channel = _channel(output)
        pointer = self._pointer(output)
        if channel is None:
            self.b.do(call("tl.store", pointer + place, value, tile=Tile("ptr")))
            return
        offsets, valid = inputs.channels[channel]
        at = pointer + place * size(channel[0].upper()) + offsets
        self.b.do(call("tl.store", at, value, mask=valid, tile=Tile("ptr")))


def sums_of(made: Backward) -> tuple[tuple[str, int], ...]:
    """The sums that the chain kernel reads, and the states that meet for them, by kind and stream; see `sums.py`."""
    found: list[tuple[str, int]] = []
    if made.chain is None:
        return ()
    read = _read(made.chain)
    for number, link in enumerate(made.chain.links):
        counts = any(leaf in read for _, leaf in link.gates)
        whole = _whole_sums(link, read, made.linear.backward)
        columns = link.cols in read or "key" in whole
        kinds = {
            "net": counts,
            "rows": link.rows in read or "query" in whole,
            "columns": columns,
            "through": counts or columns,
            "states": counts,
            "vectors": counts and made.dq.offset is not None,
            "anchors": counts,
        }
        found += [(kind, number) for kind, asked in kinds.items() if asked]
    return tuple(found)


def _whole_sums(link: Link, read: frozenset[Expr], backward: bool) -> set[str]:
    """Whose sums the gradients of its gates take whole, because of their ends: those of a "query" or of a "key"."""
    found: set[str] = set()
    for gate, leaf in link.gates:
        if leaf in read and gate.query_closed == gate.key_closed:
            found.add("key" if gate.key_closed != backward else "query")
    return found


def _read(chain: Chain) -> frozenset[Expr]:
    return frozenset(postorder(output.expr for output in chain.outputs))


def is_cut(gate: Gate) -> bool:
    """Whether a log gate may cut a path off; its gradient is then 0."""
    return varies(gate.log) and may_reset(gate.log)


def _channel(output: Output) -> str | None:
    return next((axis for axis in CHANNELS if axis in output.axes), None)
