"""New positions against a cache: programs share the slots of a row of the batch among them.

A program has the rows of one head of the cache (the query heads that share it, at a tile of new positions) and goes
over its part of the slots in the order of time; the last part is the new positions themselves. What the rows of one
part sum to, against their own maximum, goes to a workspace; `Combine` sums the parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sma_compiler.ir.nodes import Expr, Kind, postorder
from sma_compiler.kernel.build import (
    MINUS_INFINITY,
    E,
    arange,
    call,
    cumsum,
    dot,
    lift,
    path,
    pointwise,
    reduce_sum,
    sequence,
    size,
    where,
    zeros,
)
from sma_compiler.kernel.cached import Cached
from sma_compiler.kernel.cached_rows import ColumnInputs, RowInputs, Rows, rows
from sma_compiler.kernel.gates import LOG2E
from sma_compiler.kernel.host import Host, Tensors
from sma_compiler.kernel.inputs import EXTENT, Inputs, shared_nodes
from sma_compiler.kernel.linear import is_tensor, plain
from sma_compiler.kernel.lower import Lowering
from sma_compiler.kernel.maker import program
from sma_compiler.kernel.nodes import Function, Tile
from sma_compiler.kernel.pair_forward import PairForward
from sma_compiler.kernel.pair_places import InKernel, PairNames, Place, Side
from sma_compiler.kernel.pairs import Along
from sma_compiler.kernel.rows import Span
from sma_compiler.kernel.score import PairLowering
from sma_compiler.kernel.support import Turns, value
from sma_compiler.kernel.walk import Walk


@dataclass(frozen=True)
class CacheNames:
    """Names in a launcher. held: the cache's tensors, by what they hold; places: the positions of slots, [B, slots].

    seen: positions before the new ones, [B]. guard: `places` where the new position goes into the cache, else None.
    slots, parts, span: how many slots, and programs of how many slots each, share a row. y, norm, most: of every part,
    [parts + 1, B, T, H, ...]. counts: [B, T], how many runs began up to each new position, by what tells them.
    """

    held: dict[str, E]
    places: E
    seen: E
    guard: E
    slots: E
    parts: E
    span: E
    y: E
    norm: E
    most: E
    decay: E
    counts: dict[Turns, E] = field(default_factory=dict)


class _Bounds(InKernel):
    """Bounds of rows by absolute positions, from 0."""

    def edge(self, end: bool) -> E:
        return lift(2**31 - 1 if end else 0)


class CachedKernel(PairForward):
    """What the kernels for new positions share."""

    def __init__(
        self, cached: Cached, walk: Walk, host: Host, tensors: Tensors, names: CacheNames, reserved: frozenset[str]
    ) -> None:
        super().__init__(cached.pairs, walk, host, PairNames(), tensors, reserved)
        self.cached = cached
        self.cache = names

    def row_side(self, exprs: Iterable[Expr]) -> tuple[Rows, RowInputs, Lowering, Side]:
        """The program's rows, with what expressions read there; positions count from the first new one."""
        b = self.b
        b.section("Which rows, heads and sequence")
        own = rows(b, self.arguments, self.host)
        inputs = RowInputs(b, self.arguments, self.host, own)
        for axis in ("key", "value"):
            offsets = b.let(f"o_{axis[0]}", arange(EXTENT[axis]), show=False)
            inputs.use_channels(axis, offsets, b.let(f"m_{axis[0]}", offsets < size(axis[0].upper()), show=False))
        b.section("Where the rows of each head begin")
        exprs = tuple(exprs)
        static = inputs.static(exprs)
        b.section("The rows of this program")
        inputs.masked = lift(True)
        inputs.enter(own.valid)
        lowering = inputs.chunk(exprs, static, lift(0), own.times, own.valid, {plain(self.pairs.linear.q)})
        lowering.rows = "BM"
        return (
            own,
            inputs,
            static,
            Side("i", True, lift(0), own.times, own.times, own.valid, dict(inputs.inside), lowering),
        )

    def oldest(self, own: Rows, seen: E) -> E:
        """The slot that comes first in the order of time, into which the next position goes."""
        b, names = self.b, self.cache
        slots = self.arguments.integer("SLOTS", names.slots)
        places = self.arguments.pointer("pos", names.places)
        at = places + own.batch * self.arguments.stride("pos", "batch", names.places, 0)
        b.helpers.add("oldest_slot")
        return b.let("oldest", call("oldest_slot", at, seen, slots, tile=Tile("int32")))

    def seen(self, own: Rows) -> E:
        """How many positions came before the new ones."""
        at = self.arguments.pointer("seen", self.cache.seen) + own.batch
        return self.b.let("seen", call("tl.load", at, tile=Tile("int64")).to("int32"))

    def partial(self, own: Rows, part: E) -> E:
        """The index of the rows' sums of one part."""
        batch = self.arguments.integer("B", self.host.sizes["batch"])
        length = self.arguments.integer("T", self.host.sizes["time"])
        heads = self.arguments.integer("H", self.host.heads)
        return ((part * batch + own.batch) * length + own.times) * heads + own.heads

    def totals(self) -> tuple[E, E, E]:
        """Nothing yet, of what rows sum to: y, the sum of weights, and the largest exponent."""
        b = self.b
        y = b.let("b_y", zeros("BM", "BV"))
        norm = b.let("b_norm", zeros("BM"))
        shape = sequence([size("BM")], "[")
        start = call("tl.full", shape, MINUS_INFINITY, tile=Tile("fp32", ("BM",)), dtype=path("tl.float32"))
        return y, norm, b.let("b_max", start)


@dataclass
class _Columns:
    """A tile of columns. places: absolute positions, exists: which there are, [BN]; k, v: operands.

    reads, following: what masks read there, and at the column after each. counts: how many runs began up to there.
    known, ahead: which gates count: up to the row, in the tile, those after each column; [BM or 1, BN].
    """

    places: E
    exists: E
    k: E
    v: E
    reads: Lowering
    following: Lowering | None
    counts: dict[Turns, E]
    known: E
    ahead: E


@dataclass
class _State:
    """What a program has at hand. own: its rows; p_m: their absolute positions; lo, hi: what they see at most."""

    own: Rows
    inputs: RowInputs
    static: Lowering
    side: Side
    q: E
    scale: E | None
    lo: E | None
    hi: E | None
    counts: dict[Turns, E]
    y: E
    norm: E
    most: E
    decay: E | None


class CachedForward(CachedKernel):
    """Builds the kernel of the parts."""

    def build(self, name: str) -> Function:
        """The kernel."""
        b, pairs, linear, names = self.b, self.pairs, self.pairs.linear, self.cache
        i_s = b.let("i_s", program(0))
        own, inputs, static, side = self.row_side((linear.q, *self.at_end("i"), *self.static_exprs()))
        q = self.operand(side, linear.q, "q", "key")
        scale = self.scale(static)
        seen = self.seen(own)
        side.positions = b.let("p_m", seen + own.times)
        place = Place(Span(own.batch, own.batch, lift(0), lift(0), lift(0)), lift(0), lift(0), lift(0), {})
        bounds, cached = _Bounds(self.arguments, self.host, self.names, place), self.cached
        lo = None if cached.lo is None else b.let("lo_m", value(cached.lo, side.positions, bounds))
        hi = None if cached.hi is None else b.let("hi_m", value(cached.hi, side.positions, bounds))
        counts = {turns: self._count(own, turns, own.times, own.valid, "c_m") for turns in cached.counts}
        decay = b.let("b_decay", zeros("BM")) if pairs.paths else None
        state = _State(own, inputs, static, side, q, scale, lo, hi, counts, *self.totals(), decay)
        columns = ColumnInputs(b, self.arguments, self.host, own)
        reads = columns.static(self.column_exprs())
        o_n = b.let("o_n", arange("BN"), show=False)
        self._slots(state, i_s, seen, reads, o_n)
        self._fresh(state, i_s, seen, columns, reads, o_n)
        b.section("What the rows of this part sum to")
        index = b.let("at", self.partial(own, i_s))
        sums = [("part_max", names.most, state.most), ("part_norm", names.norm, state.norm)]
        if decay is not None:
            sums.append(("part_decay", names.decay, decay))
        for part, tensor, x in sums:
            b.do(call("tl.store", self.arguments.pointer(part, tensor) + index, x, mask=own.valid, tile=Tile("ptr")))
        offsets, valid = inputs.channels["value"]
        at = self.arguments.pointer("part_y", names.y) + (index.col * size("V") + offsets.row)
        b.do(call("tl.store", at, state.y, mask=own.valid.col & valid.row, tile=Tile("ptr")))
        doc = ("One program sums what the rows of one head of the cache see of one part of it.",)
        return b.function(name, doc, self.arguments.parameters, jit=True)

    def column_exprs(self) -> tuple[Expr, ...]:
        """What masks read at columns."""
        return (*self.at_end("j"), *(plain(along.gate.log) for along in self.pairs.paths))

    def _count(self, own: Rows, turns: Turns, times: E, valid: E, name: str) -> E:
        """How many runs began up to some new positions."""
        tensor = self.cache.counts[turns]
        length = self.arguments.integer("T", self.host.sizes["time"])
        at = self.arguments.pointer("count", tensor) + (own.batch * length + times)
        return self.b.let(name, call("tl.load", at, mask=valid, other=0, tile=Tile("int64", times.tile.shape)))

    def _slots(self, state: _State, i_s: E, seen: E, reads: Lowering, o_n: E) -> None:
        """Go over the slots of this part."""
        b, names, own = self.b, self.cache, state.own
        b.section("Slots of this part, in the order of time; empty ones come first")
        slots = self.arguments.integer("SLOTS", names.slots)
        span = self.arguments.integer("SPAN", names.span)
        oldest = self.oldest(own, seen)
        filled = pointwise("tl.minimum", seen, slots, dtype="int32")
        first = b.let(
            "start", pointwise("tl.maximum", i_s * span, (slots - filled) // size("BN") * size("BN"), dtype="int32")
        )
        stop = b.let("stop", pointwise("tl.minimum", (i_s + 1) * span, slots, dtype="int32"))
        bases = {held: self._base(own, held) for held in self.cached.held}
        places = self._row_of(own, "pos", names.places)
        places = b.let("p_pos", places)
        b.space()
        steps = call("tl.range", first, stop, size("BN"), tile=Tile("int32"), num_stages=size("STAGES"))
        with b.scope(), b.loop("n0", steps, Tile("int32")) as n0:
            n = b.let("n", n0 + o_n, show=False)
            inside = b.let("v_n", n < stop, show=False)
            slot = b.let("slot", self._turned(oldest + n, slots))
            at = places + slot.to("int64") * self.arguments.stride("pos", "time", names.places, 1)
            found = call("tl.load", at, mask=inside, other=-1, tile=Tile("int64", ("BN",)))
            p_n = b.let("p_n", found.to("int32"))
            held = {name: self._held(state, name, bases[name], slot, inside) for name in self.cached.held}
            lowered = self._bound(reads, held)
            following, ahead = None, inside
            if self.pairs.paths:
                ahead = b.let("v_next", (n + 1 < stop) & (o_n + 1 < size("BN")), show=False)
                after = b.let("slot_next", self._turned(oldest + n + 1, slots))
                others = {name: self._held(state, name, bases[name], after, ahead) for name in self._gates()}
                following = self._bound(reads, others)
            counts = {turns: held[self._name(expr)] for turns, expr in self.cached.counts.items()}
            exists = p_n >= 0
            k, v = held["k"].to("dot"), held["v"].to("dot")
            self._sum(state, _Columns(p_n, exists, k, v, lowered, following, counts, inside.row, ahead.row))

    def _fresh(self, state: _State, i_s: E, seen: E, columns: ColumnInputs, reads: Lowering, o_n: E) -> None:
        """Go over the new positions, in the last part."""
        b, linear, own = self.b, self.pairs.linear, state.own
        b.section("The new positions are the last part")
        keys = Inputs(b, self.arguments, self.host, own.batch, own.group, own.batch, self.host.groups)
        keys.channels = state.inputs.channels
        keys.masked = columns.masked = lift(True)
        operands = (linear.k, linear.v)
        static = keys.static(operands)
        length = self.arguments.integer("T", self.host.sizes["time"])
        stop = b.let("new", where(i_s.eq(self.arguments.integer("PARTS", self.cache.parts)), length, 0))
        b.space()
        steps = call("tl.range", 0, stop, size("BN"), tile=Tile("int32"), num_stages=1)
        with b.scope(), b.loop("t0", steps, Tile("int32")) as t0:
            t_n = b.let("t_n", t0 + o_n, show=False)
            inside = b.let("v_n", t_n < length, show=False)
            keys.enter(inside)
            lowering = keys.chunk(operands, static, t0, o_n, inside, {plain(x) for x in operands if is_tensor(x)})
            lowering.rows = "BN"
            p_n = b.let("p_n", seen + t_n)
            other = Side("j", False, t0, o_n, p_n, inside, dict(keys.inside), lowering)
            k, v = self.operand(other, linear.k, "k", "key"), self.operand(other, linear.v, "v", "value")
            lowered = self._new(columns, reads, self.column_exprs(), t0, o_n, inside)
            following, known, ahead = None, inside.row, inside.row
            if self.pairs.paths:
                last = own.times.col
                known = b.let("m_known", inside.row & (t_n.row <= last), show=False)
                after = b.let("v_next", (t_n + 1 < length) & (o_n + 1 < size("BN")), show=False)
                ahead = b.let("m_next", after.row & (t_n.row < last), show=False)
                following = self._new(columns, reads, self.column_exprs(), t0 + 1, o_n, after)
            counts = {turns: self._count(own, turns, t_n, inside, "c_n").row for turns in self.cached.counts}
            self._sum(state, _Columns(p_n, inside, k, v, lowered, following, counts, known, ahead))

    def _new(self, columns: ColumnInputs, reads: Lowering, exprs: Iterable[Expr], t0: E, o_n: E, inside: E) -> Lowering:
        """What masks read at new positions."""
        lowered = columns.chunk(exprs, reads, t0, o_n, inside, ())
        lowered.rows = ""
        return lowered

    def _sum(self, state: _State, columns: _Columns) -> None:
        """Add what a tile of columns gives to the sums of the rows."""
        b, pairs, side = self.b, self.pairs, state.side
        at = columns.places.row
        live = columns.exists.row
        if state.lo is not None:
            live = live & (at >= state.lo.col)
        if state.hi is not None:
            live = live & (at < state.hi.col)
        for turns, count in columns.counts.items():
            live = live & count.eq(state.counts[turns].col)
        leaves: dict[Expr, E] = {
            x: tile.col if tile.tile.shape == ("BM",) else tile for x, tile in state.static.bound().items()
        }
        leaves[pairs.i], leaves[pairs.j] = side.positions.col, at
        for end in pairs.ends:
            leaves[end.leaf] = columns.reads.value(end.x) if end.end == "j" else side.laid(side.lowering.value(end.x))
        paths = {along.leaf: self._along(state, columns, along) for along in pairs.paths}
        pair = PairLowering(b, leaves, paths, shared_nodes(self.pair_exprs()), b.let(self.live_name, live))
        if pairs.condition is not None:
            pair.seen = b.let(self.live_name, pair.value(pairs.condition) & live)
        scores = b.let("b_s", self.product(state.q, columns.k).to("fp32"))
        weights = self.online(pair, scores, state.scale, state.most, state.norm, state.y)
        b.set(state.y, dot(weights.to("dot"), columns.v, state.y))

    def _along(self, state: _State, columns: _Columns, along: Along) -> E:
        """log2 of the decay from each column to the end of the tile; what was summed before decays over all of it."""
        b, gate = self.b, plain(along.gate.log)
        assert columns.following is not None
        assert state.decay is not None
        log = where(columns.known, columns.reads.value(gate) * LOG2E, 0.0)
        total = b.let("b_total", reduce_sum(log, 1))
        if total.tile.shape != ("BM",):
            total = b.let("b_total", total + zeros("BM"))
        b.set(state.most, state.most + total)
        b.set(state.decay, state.decay + total)
        after = where(columns.ahead, columns.following.value(gate) * LOG2E, 0.0)
        return b.let("b_path", cumsum(b.let("b_after", after), 1, reverse=True))

    def _gates(self) -> tuple[str, ...]:
        """What the cache holds of gates."""
        read = set(postorder([plain(along.gate.log) for along in self.pairs.paths]))
        return tuple(name for name, expr in self.cached.held.items() if plain(expr) in read and name not in ("k", "v"))

    def _name(self, expr: Expr) -> str:
        return next(name for name, held in self.cached.held.items() if held is expr)

    def _bound(self, reads: Lowering, held: Mapping[str, E]) -> Lowering:
        """What masks read of columns in the cache."""
        lowered = Lowering(self.b, reads.bound(), "", shared_nodes(self.column_exprs()))
        for name, tile in held.items():
            lowered.bind(plain(self.cached.held[name]), tile)
        return lowered

    def _turned(self, slot: E, slots: E) -> E:
        """A slot, of a ring."""
        return where(slot < slots, slot, slot - slots)

    def _row_of(self, own: Rows, name: str, tensor: E) -> E:
        return self.arguments.pointer(name, tensor) + own.batch * self.arguments.stride(name, "batch", tensor, 0)

    def _base(self, own: Rows, name: str) -> E:
        """The address of what the cache holds for this program: for one head of k and v, for those of rows else."""
        tensor, expr = self.cache.held[name], self.cached.held[name]
        address = self._row_of(own, f"held_{name}", tensor)
        if "head" in expr.axes:
            head = own.heads
            if name in ("k", "v"):
                shared = self.host.groups // tensor.attr("shape").at(2)
                head = own.group // self.arguments.constant(f"{name.upper()}_SHARED", shared)
            address = address + head * self.arguments.stride(f"held_{name}", "head", tensor, 2)
        return self.b.let(f"p_{name}", address, show=False)

    def _held(self, state: _State, name: str, base: E, slot: E, inside: E) -> E:
        """A tile of what the cache holds: [BN, channels] of k and v, [BM or 1, BN] of what masks read."""
        b, expr = self.b, self.cached.held[name]
        steps = slot.to("int64") * self.arguments.stride(f"held_{name}", "time", self.cache.held[name], 1)
        channel = {"k": "key", "v": "value"}.get(name)
        if channel is None:
            wide = bool(base.tile.shape)
            at = (base.col if wide else base) + steps.row
            mask = inside.row & state.own.valid.col if wide else inside.row
            kind = {Kind.BOOL: "bool", Kind.INT: "int64", Kind.REAL: "fp32"}[expr.kind]
            return b.let(f"b_{name}", call("tl.load", at, mask=mask, other=0, tile=Tile(kind, at.tile.shape)))
        offsets, valid = state.inputs.channels[channel]
        at = base + (steps.col + offsets.row)
        mask = inside.col & valid.row
        return b.let(f"b_{name}", call("tl.load", at, mask=mask, other=0, tile=Tile("in", ("BN", EXTENT[channel]))))
