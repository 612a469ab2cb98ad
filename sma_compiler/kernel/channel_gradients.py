"""The gradients of q, k and of gates by key channel, chunk by chunk: one program has both of some channels.

With S the state that comes into a chunk and dS the one that the walk of dV has at its end, kept in memory by the
kernels that run before, chunks need not wait for each other. A = dY V^T of the chunk's pairs:

    dQ = decay (dY S) + the sum over earlier columns of A K, decayed by channel
    dK = decay (V dS) + the sum over later rows of A^T Q, decayed by channel

What pairs weigh in these two sums, and S times dS for those that lead over the whole chunk, gives the gates' gradients
(`channel_sums.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from sma_compiler.ir.nodes import Apply, Expr, Reduce, postorder
from sma_compiler.kernel.ahead import rates_inside
from sma_compiler.kernel.backward import Backward
from sma_compiler.kernel.build import E, arange, call, cumsum, dot, pointwise, reduce_sum, size, trans, where, zeros
from sma_compiler.kernel.build import path as named
from sma_compiler.kernel.channel_sums import after_positions, over_positions
from sma_compiler.kernel.channels import ChannelPath, channel_path
from sma_compiler.kernel.chunk import Loaded, Place
from sma_compiler.kernel.gates import Path, Rows, scaled
from sma_compiler.kernel.host import Host, Tensors
from sma_compiler.kernel.inputs import Inputs, tensors_of
from sma_compiler.kernel.linear import is_tensor, plain
from sma_compiler.kernel.lower import Lowering, operand, wide_operand
from sma_compiler.kernel.nodes import Function, Tile
from sma_compiler.kernel.rows import slots
from sma_compiler.kernel.score_kernel import NARROW
from sma_compiler.kernel.shared_walk import ByChunk
from sma_compiler.kernel.walk import Output, Walk


def reads_values(made: Backward) -> bool:
    """Whether the gradients' expressions read value channels, of which a program then has all."""
    exprs = [output.expr for output in (*made.dq.outputs, *made.dk.outputs)]
    known = {node for node in sums_over_values(exprs) if is_diagonal(made.dq, node)}
    return any("value" in node.axes for node in tensors_of(exprs, known))


def sums_over_values(exprs: Iterable[Expr]) -> list[Reduce]:
    """The sums over value channels that expressions read."""
    return [x for x in postorder(exprs) if isinstance(x, Reduce) and x.axis == "value"]


def is_diagonal(queries: Walk, node: Reduce) -> bool:
    """Whether a sum over value channels is what scores of positions with themselves are."""
    product = plain(node.x)
    if not (isinstance(product, Apply) and product.fn == "mul"):
        return False
    return {plain(x) for x in product.args} == {plain(queries.p), plain(queries.s)}


def summed_by_chunk(made: Backward) -> Backward:
    """The same where gradients of what does not vary in time are summed over each chunk: [B, slots, H, K]."""
    still = {decl.name for decl in made.linear.op.params if "time" not in decl.dims}
    names = {p.tensor for p in made.pieces if p.param in still and p.axes == ("batch", "time", "head", "key")}

    def axes(name: str, given: tuple[str, ...]) -> tuple[str, ...]:
        return tuple("slot" if axis == "time" else axis for axis in given) if name in names else given

    def of(walk: Walk) -> Walk:
        outputs = tuple(replace(output, axes=axes(output.name, output.axes)) for output in walk.outputs)
        return replace(walk, outputs=outputs)

    pieces = tuple(replace(piece, axes=axes(piece.tensor, piece.axes)) for piece in made.pieces)
    return replace(made, dq=of(made.dq), dk=of(made.dk), pieces=pieces)


class ChannelGradients(ByChunk):
    """Builds the kernel. made: with the walks of dQ and dK. tensors: what it writes, and the states of chunks.

    narrow: whether it has the chunks of which no power of 2 leaves the range of bf16, or all others.
    """

    def __init__(self, made: Backward, host: Host, tensors: Tensors, reserved: frozenset[str], narrow: bool) -> None:
        super().__init__(made.dq, host, tensors, reserved, parts=False)
        self.queries, self.keys = made.dq, made.dk
        self.gate = made.dk.sums.gate if made.dk.sums is not None else None
        self.narrow = narrow

    def build(self, name: str) -> Function:
        """The kernel."""
        b, queries = self.b, self.queries
        with ExitStack() as stack:
            place = self.place_of_chunk("head", "i_h", self.host.heads, None if self.narrow else stack)
            inputs = place.inputs
            for node in inputs.held((queries.p, queries.s, *self._gates_read(), *self._exprs())):
                inputs.base(node.name)
            valid = b.let("m_t", place.first + place.offsets < place.end, show=False)
            count = pointwise("tl.minimum", place.end - place.first, size("C"), dtype="int32")
            rows = Rows(place.offsets, valid, count)
            at = self.arguments.pointer("widest", self.host.decayed["widest"]) + self._index(inputs, place)
            dtype, dot, width = named("tl.bfloat16"), named("DOT"), call("tl.load", at, tile=Tile("fp32"))
            b.space()
            narrow, wide = dtype.eq(dot).both(width < NARROW), dtype.ne(dot).either(width >= NARROW)
            stack.enter_context(b.branch(narrow if self.narrow else wide))
            (self._narrow if self.narrow else self._wide)(place, rows)
        lines = [f"One program has a chunk and {self.outer} key channels of the gradients of queries, keys and gates."]
        if self.narrow:
            lines += ["", "Where no power of 2 leaves the range of bf16: all count from the chunk's start."]
        else:
            lines += ["", "Where powers of 2 leave the range of bf16: of pairs by halves, none is larger than 1."]
        return b.function(name, lines, self.arguments.parameters, jit=True)

    def _narrow(self, place: Place, rows: Rows) -> None:
        """With one product for each sum over pairs. What late ends have, Q decayed, and early ends, K restored, is
        rounded alike in both, so that sums for gates may subtract them. What goes through both states is made at once
        where registers last: paths without their late end read gates once more, and computed keys take some. Elsewhere
        little is held while what goes through the later state is made: what can be is made again.
        """
        b, keys = self.b, self.keys
        static = self._static(place, rows)
        plainly = is_tensor(self.queries.x)
        scores, y, through = self._from_states(place, rows, static, both=plainly and not self.queries.paths[0].strict)
        self._apart(place, rows, static)
        path = self._path(place, rows, static)
        across = b.let("b_across", path.across())
        late, early = path.powers(b.let("b_sums", cumsum(path.steps)))
        lowering, ends, (k,) = self._rows(place, rows, static, self.queries)
        b.section("Gradients of queries")
        self._scale(scores, ends)
        diagonal = self._diagonal(path, place, scores)
        seen = place.offsets.col > place.offsets.row
        weights = b.let("b_weights", where(seen, scores, 0.0).to("dot"))
        sooner = b.let("b_sooner", (k * early).to("dot"))
        b.set(y, self.plus_product(scaled(y, ends.rows.factors, column=True), weights, sooner))
        self._finish(self.queries, place, rows, lowering, y * late, self._own(path, diagonal, k))
        _, _, (q,) = self._rows(place, rows, lowering, keys)
        b.section("What both ends have of the chunk's pairs")
        later = b.let("b_later", (q * late).to("dot"))
        pairs = b.let("b_pairs", dot(trans(weights), later))
        after = None
        if self.gate is not None:
            after = after_positions(path, later.to("fp32") * y, sooner.to("fp32") * pairs)
            after = b.let("b_after", after)
        z, anchor = through or self._to_state(place, rows)
        if through is None:
            path = self._path(place, rows, static)
            _, early = path.powers(b.let("b_sums", cumsum(path.steps)))
            if plainly:
                k = self._operand(self.queries, place, self._load(place, rows, static, (self.queries.x,)))
                sooner = b.let("b_sooner", (k * early).to("dot"))
        lowering, ends, (q,) = self._rows(place, rows, static, keys)
        b.section("Gradients of keys")
        b.set(z, scaled(z * across.row, ends.columns.factors, column=True))
        own, over = self._own(path, diagonal, q), None
        if after is not None:
            over = over_positions(b, path, after, sooner.to("fp32") * z, k, own)
        self._finish(keys, place, rows, lowering, (z + pairs) * early, own)
        if over is not None:
            self._gates(place, rows, lowering, over, anchor * across)

    def _wide(self, place: Place, rows: Rows) -> None:
        """With pairs by halves."""
        b, keys, helper = self.b, self.keys, "product_by_halves"
        static = self._static(place, rows)
        scores, y, _ = self._from_states(place, rows, static, both=False)
        self._apart(place, rows, static)
        path = self._path(place, rows, static)
        lowering, ends, (k, q) = self._rows(place, rows, static, self.queries, keys)
        b.section("Gradients of queries")
        self._scale(scores, ends)
        b.set(y, scaled(y * path.entering(), ends.rows.factors, column=True))
        late = b.let("b_late", q * y)
        path.add_product(scores, k, y, q, late, helper)
        diagonal = self._diagonal(path, place, scores)
        self._finish(self.queries, place, rows, lowering, y, self._own(path, diagonal, k))
        z, anchor = self._to_state(place, rows)
        lowering, ends, (k, q) = self._rows(place, rows, static, self.queries, keys)
        b.section("Gradients of keys")
        path = replace(path, backward=True)
        b.set(z, scaled(z * path.entering(), ends.columns.factors, column=True))
        early = b.let("b_early", k * z)
        pairs = b.let("b_pairs", zeros("C", self.outer))
        path.add_product(trans(scores), q, z, k, pairs, helper)
        own, over = self._own(path, diagonal, q), None
        if self.gate is not None:
            over = over_positions(b, path, after_positions(path, late, pairs), early, k, own)
        self._finish(keys, place, rows, lowering, z, own)
        if over is not None:
            self._gates(place, rows, lowering, over, anchor * path.across(), path)

    def _gates_read(self) -> tuple[Expr, ...]:
        """The log gates."""
        return tuple(gate.log for gate in self.queries.paths[0].gates)

    def _exprs(self) -> tuple[Expr, ...]:
        """What is read of the rows beside them and the operands along `value`."""
        outputs = (output.expr for output in (*self.queries.outputs, *self.keys.outputs))
        (term,) = self.queries.paths
        return (self.queries.x, self.keys.x, *term.row, *term.col, *outputs)

    def _static(self, place: Place, rows: Rows) -> Lowering:
        """What does not vary in time, and sums over value channels."""
        b, inputs = self.b, place.inputs
        static = inputs.static((*self._exprs(), *self._gates_read()))
        inputs.enter(rows.valid)
        summed = [node for node in sums_over_values(self._exprs()) if not is_diagonal(self.queries, node)]
        if summed:
            b.section("Sums over value channels")
            lowering = self._load(place, rows, static, summed)
            for node in summed:
                static.bind(node, b.let("b_sum", lowering.value(node)))
        return static

    def _path(self, place: Place, rows: Rows, static: Lowering) -> ChannelPath:
        """The path of the chunk."""
        b, inputs = self.b, place.inputs
        (term,) = self.queries.paths
        b.section("Log gates of rows t0 .. t0 + C, as powers of 2; past the end there are none")
        lowering = self._load(place, rows, static, self._gates_read())
        return channel_path(term, False, lowering, rows, inputs.inside["key"])

    def _apart(self, place: Place, rows: Rows, static: Lowering) -> None:
        """Write what no sum over positions is part of."""
        apart = [(walk, self._outputs(walk, "neither")) for walk in (self.queries, self.keys)]
        exprs = [output.expr for _, outputs in apart for output in outputs]
        if exprs:
            self.b.section("What no sum over positions is part of")
            lowering = self._load(place, rows, static, exprs)
            for walk, _ in apart:
                self._write(walk, place, rows, lowering, "neither")

    def _rows(self, place: Place, rows: Rows, static: Lowering, *walks: Walk) -> tuple[Lowering, Path, tuple[E, ...]]:
        """Tiles of the chunk that some walks read: the lowering that has them, the factors, and each walk's operand."""
        b = self.b
        b.section("Rows t0 .. t0 + C; what lies past the end is read as 0")
        (term,) = self.queries.paths
        read = [x for walk in walks for x in (walk.x, *(output.expr for output in walk.outputs))]
        lowering = self._load(place, rows, static, (*read, *term.row, *term.col))
        operands = tuple(self._operand(walk, place, lowering) for walk in walks)
        rates = rates_inside(self.queries, static)
        (ends,) = self._paths(place, lowering, rows, rates, place.first, True)
        return lowering, ends, operands

    def _operand(self, walk: Walk, place: Place, lowering: Lowering) -> E:
        """What a walk sums over positions."""
        return wide_operand(self.b, walk.x, walk.names[2], lowering, place.inputs.inside["key"])

    def _load(self, place: Place, rows: Rows, static: Lowering, exprs: Iterable[Expr]) -> Lowering:
        """The tiles that expressions read, but for what is known already."""
        read = tensors_of(exprs, static.bound())
        return place.inputs.chunk(read, static, place.first, rows.offsets, rows.valid, ())

    def _from_states(
        self, place: Place, rows: Rows, static: Lowering, *, both: bool
    ) -> tuple[E, E, tuple[E, E] | None]:
        """Scores of the chunk's pairs, what rows have through the state that comes into it, and with `both` what
        `_to_state` makes; without decays.

        What outputs read of scores of positions with themselves is bound in `static`.
        """
        b, queries = self.b, self.queries
        what = "what queries and keys have through states" if both else "what queries have through the state before it"
        b.section(f"Pairs inside the chunk, and {what}")
        scores, y = b.let("b_scores", zeros("C", "C")), b.let("b_y", zeros("C", self.outer))
        found = self._empty() if both else None
        with self._values(place.inputs) as held:
            p, s = self._operands(held, rows, place.first, queries.p, queries.s)
            b.set(scores, self.plus_product(scores, p, trans(s)))
            before = self._state(held, place, "states")
            b.set(y, self.plus_product(y, p, before.to("dot")))
            if found is not None:
                self._add(held, place, s, before, found)
        same = [node for node in sums_over_values(self._exprs()) if is_diagonal(queries, node)]
        if same:
            offsets = place.offsets
            own = b.let("b_sum", reduce_sum(where(offsets.col.eq(offsets.row), scores, 0.0), 1))
            for node in same:
                static.bind(node, own)
        return scores, y, found

    def _to_state(self, place: Place, rows: Rows) -> tuple[E, E]:
        """What columns have through the state that comes in from the chunk's end, and what leads over all of it: the
        product of both states [BK]; without decays.
        """
        b = self.b
        b.section("What keys have through the state that comes in from the chunk's end, and the product of both states")
        found = self._empty()
        with self._values(place.inputs) as held:
            _, s = self._operands(held, rows, place.first, None, self.queries.s)
            self._add(held, place, s, None, found)
        return found

    def _empty(self) -> tuple[E, E]:
        """What `_add` adds to."""
        return self.b.let("b_z", zeros("C", self.outer)), self.b.let("b_anchor", zeros(self.outer))

    def _add(self, held: Inputs, place: Place, s: E, before: E | None, found: tuple[E, E]) -> None:
        """Add what columns have through the state from the chunk's end, and the product of both states."""
        z, anchor = found
        after = self._state(held, place, "after")
        self.b.set(z, self.plus_product(z, s, after.to("dot")))
        if self.gate is not None:
            before = before or self._state(held, place, "states")
            self.b.set(anchor, anchor + reduce_sum(before.to("fp32") * after.to("fp32"), 0))

    def _gates(
        self, place: Place, rows: Rows, lowering: Lowering, over: E, whole: E, cut: ChannelPath | None = None
    ) -> None:
        """Write what needs the gradients of the log gates.

        over: without what leads over the whole chunk, [BK]. cut: the path, where gates may cut it.
        """
        b = self.b
        assert self.gate is not None
        b.section("Gradients of the log gates")
        b.set(over, over + whole.row)
        lowering.bind(self.gate, over if cut is None else cut.uncut(over))
        self._write(self.keys, place, rows, lowering, "gate")

    @contextmanager
    def _values(self, inputs: Inputs) -> Iterator[Inputs]:
        """A loop over all value channels, and the tensors with some of them.

        Where halves take most registers it must stay one: Triton hoists the loads of a loop that it knows to be short.
        """
        b = self.b
        b.space()
        last = size("V") if self.narrow else self.arguments.integer("LAST", self.host.sizes["value"])
        steps = call("tl.range", 0, last, size("BV"), tile=Tile("int32"), num_stages=size("STAGES"))
        with b.scope(), b.loop("v0", steps, Tile("int32")) as v0:
            channels = b.let("o_v", v0 + arange("BV"), show=False)
            yield inputs.holding("value", channels, b.let("m_v", channels < size("V"), show=False))

    def _operands(self, held: Inputs, rows: Rows, t0: E, p: Expr | None, s: Expr) -> tuple[E, E]:
        """Operands [C, BV] of some value channels; without p, s twice."""
        exprs = (s,) if p is None else (p, s)
        held.enter(rows.valid)
        kept = {plain(x) for x in exprs if is_tensor(x)}
        lowering = held.chunk(exprs, held.static(exprs), t0, rows.offsets, rows.valid, kept)
        names = self.queries.names[2 - len(exprs) : 2]
        made = [operand(self.b, x, n, lowering, held.inside["value"]) for x, n in zip(exprs, names, strict=True)]
        return made[0], made[-1]

    def _state(self, held: Inputs, place: Place, kind: str) -> E:
        """A state of the chunk that was kept, some value channels of it, [BV, BK]."""
        pointer = self.arguments.pointer(kind, self.tensors.sums[kind, 0])
        at, mask = held.matrix(pointer, self._index(held, place), "value", "key")
        return self.b.let(
            "b_s" if kind == "states" else "b_ds", self.b.helper("load", at, mask, size("MASKED"), dtype="in")
        )

    def _index(self, inputs: Inputs, place: Place) -> E:
        """The entry of the chunk, of [B, H, slots]."""
        return inputs.row() * slots(self.arguments, self.host) + place.span.slot

    def _scale(self, scores: E, ends: Path) -> None:
        """Multiply scores with the factors of both ends."""
        whole = scaled(scores, [*ends.columns.factors, *ends.rows.factors], column=False)
        if whole is not scores:
            self.b.set(scores, whole)

    def _diagonal(self, path: ChannelPath, place: Place, scores: E) -> E | None:
        """The scores of positions with themselves, [C, 1]; None: paths leave them out."""
        if path.strict:
            return None
        found = where(place.offsets.col.eq(place.offsets.row), scores, 0.0)
        return self.b.let("b_diagonal", reduce_sum(found, 1)).col

    def _own(self, path: ChannelPath, diagonal: E | None, x: E) -> E | None:
        """What positions have of themselves."""
        if diagonal is None:
            return None
        decay = path.own()
        return diagonal * x if decay is None else self.b.let("b_own", diagonal * x * decay)

    def _finish(self, walk: Walk, place: Place, rows: Rows, lowering: Lowering, y: E, own: E | None) -> None:
        """Write what one walk would, but what needs the gradients of gates."""
        y = self.b.let(f"b_{walk.name}", y if own is None else y + own)
        lowering.bind(walk.result, y)
        if any(output.plus for output in walk.outputs):
            self.b.comment("What other threads have written for queries is read")
            self.b.do(call("tl.debug_barrier", tile=Tile("ptr")))
        self._write(walk, place, rows, lowering, "sum")

    def _outputs(self, walk: Walk, reads: str) -> list[Output]:
        """Outputs of a walk that read the gradient of a "gate", or else its "sum" over positions, or "neither"."""
        found: list[Output] = []
        for output in walk.outputs:
            nodes = set(postorder((output.expr,)))
            kind = "gate" if self.gate in nodes else "sum" if walk.result in nodes else "neither"
            found += [output] if kind == reads else []
        return found

    def _write(self, walk: Walk, place: Place, rows: Rows, lowering: Lowering, reads: str) -> None:
        """Write those outputs."""
        chunk = Loaded(place.first, rows, lowering)
        for output in self._outputs(walk, reads):
            self.write_output(place, chunk, output, None)
