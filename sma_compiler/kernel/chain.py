"""The chain rule for gates and factors: from the sums that the walks leave behind to the gradients of parameters.

A log gate's gradient is the weight of all pairs whose path holds its position u. In the chunked plan, per chunk:

    dgate_u = weight of the pairs that lead over the whole chunk
            + what late ends from u on have of columns before the chunk
            + what early ends before u have of rows after it
            + sum over u and what follows in the chunk of what late ends less what early ends have of its pairs

In the recurrent plan the weight of the pairs that lead over u is known, and those that end there are added.
"""

from __future__ import annotations

from sma_compiler.ir.nodes import Expr, Param, postorder
from sma_compiler.kernel.backward import CHANNELS, Backward, Chain, Link
from sma_compiler.kernel.build import E, arange, call, cumsum, lift, path, reduce_sum, size, where
from sma_compiler.kernel.gates import LOWEST, log2_of, may_reset
from sma_compiler.kernel.host import Host, Tensors, suffix
from sma_compiler.kernel.inputs import EXTENT, Inputs
from sma_compiler.kernel.linear import varies
from sma_compiler.kernel.lower import Lowering
from sma_compiler.kernel.maker import Maker, program
from sma_compiler.kernel.nodes import Function, Tile
from sma_compiler.kernel.rows import chunk, entry_of_slot, slots
from sma_compiler.kernel.walk import Output
from sma_compiler.mask.nodes import Gate


class ChainKernel(Maker):
    """Builds the kernel: one program for each chunk of each head.

    tensors: `outputs` of the chain and `sums` of the walks. tiles: how many tiles of each sum there are; anchors: of
    those of pairs that lead over a chunk or out of it. backward: whether the late ends of paths are keys. apart:
    whether what goes through states leaves out the pairs inside chunks, as in the chunked plan.
    """

    def __init__(
        self,
        chain: Chain,
        host: Host,
        tensors: Tensors,
        reserved: frozenset[str],
        tiles: E,
        anchors: E,
        *,
        backward: bool,
        apart: bool,
    ) -> None:
        super().__init__(host, reserved)
        self.apart = apart
        self.chain = chain
        self.tensors = tensors
        self.tiles = tiles
        self.anchors = anchors
        self.backward = backward
        self.read = _read(chain)

    def build(self, name: str) -> Function:
        """The kernel."""
        b, chain = self.b, self.chain
        b.section("Which chunk, head and sequence")
        slot = b.let("slot", program(0))
        i_h = b.let("i_h", program(1).to("int64"))
        i_b = b.let("i_b", program(2).to("int64"))
        span = chunk(b, self.arguments, self.host, slot, i_b)
        inputs = Inputs(b, self.arguments, self.host, i_b, i_h, span.sequence)
        rows = b.let("o_c", arange("C"), show=False)
        self._channels(inputs)
        b.section("Where the rows of this head begin")
        exprs = [output.expr for output in chain.outputs]
        exprs += [gate.log for link in chain.links for gate, _ in link.gates if is_cut(gate)]
        exprs += [x for link in chain.links for x in (link.row, link.col) if x is not None]
        static = inputs.static(exprs)
        b.section("Rows t0 .. t0 + C; what lies past the end is read as 0")
        t0 = span.begin
        valid = b.let("m_t", t0 + rows < span.end, show=False)
        inputs.enter(valid)
        lowering = inputs.chunk(exprs, static, t0, rows, valid, ())
        for number, link in enumerate(chain.links):
            self._bind(number, link, inputs, lowering, t0, rows, valid, slot)
        b.section("Gradients of the parameters")
        values = {output.name: lowering.value(output.expr) for output in chain.outputs}
        for output in chain.outputs:
            value, channel = values[output.name], _channel(output)
            pointer = self.arguments.pointer(output.name, self.tensors.outputs[output.name])
            inside = valid if channel is None else inputs.inside[channel]
            with b.branch(pointer.given()):
                if "time" in output.axes:
                    b.helpers.add("store")
                    begin = inputs.made(output.name, pointer, channel)
                    at, mask = inputs.addresses(*begin, channel, t0, rows, valid)
                    value = value if len(value.tile.shape) == len(at.tile.shape) else value.col
                    b.do(call("store", at, value, mask, size("MASKED"), tile=Tile("ptr")))
                else:
                    value = b.helper("keep", value, inside, size("MASKED"))
                    self._keep(pointer, channel, inputs, slot, reduce_sum(value, 0))
        doc = ("The chain rule for gates and factors, over a chunk of one head.",)
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

    def _anchor(self, number: int, inputs: Inputs, slot: E) -> E:
        count = slots(self.arguments, self.host)
        pointer = self.arguments.pointer(f"anchors{self._suffix(number)}", self.tensors.sums["anchors", number])
        return self._over_tiles(pointer + inputs.row() * count + slot, count, self._met(), lift(True))

    def _met(self) -> E:
        """How many tiles the sums have that are made where states meet."""
        alike = self.anchors.node == self.tiles.node
        return self.arguments.integer("TILES" if alike else "ANCHORS", self.anchors)

    def _over_tiles(self, at: E, width: E, count: E, valid: E) -> E:
        """The sum over tiles of what lies at an address of the first; each tile has `width` numbers a head."""
        batches = self.arguments.integer("B", self.host.sizes["batch"])
        heads = self.arguments.integer("H", self.host.heads)
        step = call("tl.cast", batches, path("tl.int64"), tile=Tile("int64")) * heads * width
        self.b.helpers.add("over_tiles")
        return call("over_tiles", at, valid, step, count, tile=Tile("fp32", valid.tile.shape))

    def _bind(
        self,
        number: int,
        link: Link,
        inputs: Inputs,
        lowering: Lowering,
        t0: E,
        rows: E,
        valid: E,
        slot: E,
    ) -> None:
        """Give the leaves of one stream their tiles."""
        b, name = self.b, self._suffix(number)
        length = self.arguments.integer("T", self.host.sizes["time"])
        sums = self.tensors.sums

        def load(kind: str) -> E:
            pointer = self.arguments.pointer(f"{kind}{name}", sums[kind, number])
            at = pointer + inputs.row() * length + (t0 + rows)
            tiles = self._met() if kind == "through" else self.arguments.integer("TILES", self.tiles)
            return b.let(f"b_{kind}{name}", self._over_tiles(at, length, tiles, valid))

        b.section("Sums of the pairs' weights: over keys for each query, over queries for each key")
        inter = load("inter") if ("inter", number) in sums else None
        through = load("through") if ("through", number) in sums else None
        if ("rows", number) in sums and inter is not None:
            lowering.bind(link.rows, b.let(f"b_whole{name}", load("rows") + inter))
        if ("columns", number) in sums and through is not None:
            lowering.bind(link.cols, b.let(f"b_cols{name}", load("columns") + through))
        if inter is None or through is None or not {("anchors", number), ("across", number)} & set(sums):
            return
        b.section("Gradients of the log gates")
        query = inter if link.row is None else b.let(f"b_inter{name}", inter * lowering.value(link.row))
        key = through if link.col is None else b.let(f"b_through{name}", through * lowering.value(link.col))
        late, early = (key, query) if self.backward else (query, key)
        if self.apart:
            anchor = b.let(f"b_anchor{name}", self._anchor(number, inputs, slot))
            net = load("net")
            over = anchor + cumsum(net + late, reverse=True) + (cumsum(early) - early)
            over, alone = b.let(f"b_over{name}", over), net + late - early
        else:
            across = load("across")
        for gate, leaf in link.gates:
            if leaf not in self.read:
                continue
            if self.apart:
                found = self._of_gate(gate, link, over, alone, lowering)
            else:
                found = self._at_gate(gate, link, across, late, early, lowering)
            if is_cut(gate):
                found = where(log2_of(gate.log, lowering) < LOWEST, 0.0, found)
            lowering.bind(leaf, b.named(f"b_{leaf.name}", found))

    def _of_gate(self, gate: Gate, link: Link, over: E, alone: E, lowering: Lowering) -> E:
        """A log gate's gradient from that of one whose path holds the late end alone.

        alone: what late ends less early ends have, without the diagonal.
        """
        late_closed, early_closed = self._closed(gate)
        if late_closed and early_closed:
            return over + self._whole_early(link, lowering)
        if early_closed:
            return over - alone
        if late_closed:
            return over
        return over - self._whole(*((link.cols, link.col) if self.backward else (link.rows, link.row)), lowering)

    def _at_gate(self, gate: Gate, link: Link, across: E, late: E, early: E, lowering: Lowering) -> E:
        """The same of the pairs that lead over the position and those that end there, without the diagonal."""
        late_closed, early_closed = self._closed(gate)
        found = across + late if late_closed else across
        if not early_closed:
            return found
        return found + (self._whole_early(link, lowering) if late_closed else early)

    def _closed(self, gate: Gate) -> tuple[bool, bool]:
        """Whether paths hold the gate at their late ends, and at their early ones."""
        ends = gate.query_closed, gate.key_closed
        return ends[::-1] if self.backward else ends

    def _whole_early(self, link: Link, lowering: Lowering) -> E:
        return self._whole(*((link.rows, link.row) if self.backward else (link.cols, link.col)), lowering)

    def _whole(self, sums: Param, factor: Expr | None, lowering: Lowering) -> E:
        value = lowering.value(sums)
        return value if factor is None else value * lowering.value(factor)

    def _keep(self, pointer: E, channel: str | None, inputs: Inputs, slot: E, value: E) -> None:
        """Write what a parameter that does not vary in time gets from this chunk, [B, slots, H, ...]."""
        place = entry_of_slot(self.arguments, self.host, inputs.batch, slot, inputs.head)
        if channel is None:
            self.b.do(call("tl.store", pointer + place, value, tile=Tile("ptr")))
            return
        offsets, valid = inputs.channels[channel]
        at = pointer + place * size(channel[0].upper()) + offsets
        self.b.do(call("tl.store", at, value, mask=valid, tile=Tile("ptr")))


def sums_of(made: Backward, *, apart: bool) -> tuple[tuple[str, int], ...]:
    """The sums that the chain kernel reads, and the states that meet for them, by kind and stream; see `sums.py`.

    apart: whether the pairs inside chunks have sums of their own, as in the chunked plan.
    """
    found: list[tuple[str, int]] = []
    if made.chain is None:
        return ()
    read = _read(made.chain)
    for number, link in enumerate(made.chain.links):
        counts = any(leaf in read for _, leaf in link.gates)
        whole = _whole_sums(link, read, made.linear.backward)
        rows = link.rows in read or "query" in whole
        columns = link.cols in read or "key" in whole
        kinds = {
            "net": counts and apart,
            "rows": rows,
            "columns": columns,
            "inter": counts or rows,
            "through": counts or columns,
            "states": counts,
            "vectors": counts and made.dq.offset is not None,
            "anchors" if apart else "across": counts,
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
