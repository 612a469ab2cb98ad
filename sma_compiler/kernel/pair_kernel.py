"""What the quadratic kernels share: a program has the tile of its own positions and goes over the tiles it pairs with.

The forward pass and the gradients of queries own rows and go over columns; the gradients of keys and values own columns
and go over rows. Tiles of pairs are [own, other]. A tile that every own position sees whole needs no mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext

from sma_compiler.ir.graph import COMPARISONS
from sma_compiler.ir.nodes import Apply, Const, Expr, Param, children, postorder
from sma_compiler.kernel import rows as rows_of
from sma_compiler.kernel.build import (
    E,
    Operand,
    arange,
    call,
    dot,
    lift,
    path,
    pointwise,
    reduce_sum,
    size,
    trans,
    where,
)
from sma_compiler.kernel.gates import LOG2E
from sma_compiler.kernel.host import SIZES, TABLES, Host
from sma_compiler.kernel.inputs import EXTENT, Inputs, shared_nodes
from sma_compiler.kernel.linear import is_tensor, plain
from sma_compiler.kernel.lower import Lowering
from sma_compiler.kernel.maker import program
from sma_compiler.kernel.nodes import Tile
from sma_compiler.kernel.pair_paths import EXTENTS, LETTERS, PathKernel
from sma_compiler.kernel.pair_places import InKernel, PairNames, Place, Seen, Side, Tiles, Visit
from sma_compiler.kernel.pairs import Pairs, Table
from sma_compiler.kernel.positions import number_of
from sma_compiler.kernel.rows import Span
from sma_compiler.kernel.score import PairLowering
from sma_compiler.kernel.support import Bound, value
from sma_compiler.kernel.walk import Output

RELATIVE = frozenset({"sub", *COMPARISONS})


class PairKernel(PathKernel):
    """What the kernels share."""

    def __init__(self, pairs: Pairs, host: Host, names: PairNames, reserved: frozenset[str], own: str) -> None:
        super().__init__(pairs, host, names, reserved, own)
        self.support = pairs.support if own == "i" else pairs.support.transposed(pairs.graph)
        self.relative = _relative(pairs)
        self.tables: dict[Param, tuple[E, Inputs]] = {}
        self.indices: dict[Param, E] = {}
        self.ramp: tuple[E, E] | None = None

    def place(self) -> Place:
        """Say which program this is; of tiles that see more the further they lie, the last come first."""
        b, letter = self.b, LETTERS[self.own]
        b.section(f"Which {'rows' if self.own == 'i' else 'columns'}, head and sequence")
        tile: Operand = program(0)
        if self.own == "i" and self.support.hi is not None:
            tile = call("tl.num_programs", 0, tile=Tile("int32")) - 1 - program(0)
        slot = b.let(f"i_{letter}", tile)
        i_b = b.let("i_b", program(2).to("int64"))
        own = rows_of.chunk(b, self.arguments, self.host, slot, i_b, self.extent[True])
        with b.branch(own.begin >= own.end):
            b.give(None)
        whole = rows_of.sequence(b, self.arguments, self.host, own.sequence)
        last = b.let("last", pointwise("tl.minimum", own.begin + size(self.extent[True]), own.end, dtype="int32") - 1)
        offsets = {x: b.let(f"o_{LETTERS[x]}", arange(EXTENTS[x]), show=False) for x in (self.own, self.other)}
        span = Span(own.batch, own.sequence, whole.begin, own.end, whole.slot)
        return Place(span, whole.begin, own.begin, last, offsets)

    def inputs(self, place: Place, head: E, heads: E | None = None) -> Inputs:
        """The parameters of one head."""
        b = self.b
        found = Inputs(b, self.arguments, self.host, place.span.batch, head, place.span.sequence, heads)
        for axis in ("key", "value"):
            letter = axis[0]
            offsets = b.let(f"o_{letter}", arange(EXTENT[axis]), show=False)
            found.use_channels(axis, offsets, b.let(f"m_{letter}", offsets < size(SIZES[axis]), show=False))
        return found

    def at_end(self, letter: str) -> tuple[Expr, ...]:
        """What the mask reads at one end of pairs."""
        return tuple(end.x for end in self.pairs.ends if end.end == letter)

    def static_exprs(self) -> tuple[Expr, ...]:
        """What is read of expressions of pairs, beside their ends."""
        return (*self.pairs.exprs, self.pairs.scale)

    def own_side(
        self, place: Place, inputs: Inputs, static: Lowering, exprs: Iterable[Expr], *, weighed: bool = True
    ) -> Side:
        """Load the program's own tile. weighed: with what the mask reads there."""
        offsets = place.offsets[self.own]
        if weighed:
            self.start_paths(place, inputs)
            for table in self.pairs.tables:
                self.tables[table.leaf] = inputs.base(table.x.name), inputs
            self.b.space()
        valid = self.b.let(f"v_{LETTERS[self.own]}", place.start + offsets < place.span.end, show=False)
        return self._side(place, inputs, static, self.own, place.start, valid, exprs, weighed=weighed)

    def other_side(self, place: Place, inputs: Inputs, static: Lowering, visit: Visit, exprs: Iterable[Expr]) -> Side:
        """Load a tile that is visited."""
        valid = None
        if visit.masked:
            positions = visit.start + place.offsets[self.other]
            valid = self.b.let(f"v_{LETTERS[self.other]}", positions < place.span.end, show=False)
        return self._side(place, inputs, static, self.other, visit.start, valid, exprs)

    def _side(
        self,
        place: Place,
        inputs: Inputs,
        static: Lowering,
        letter: str,
        start: E,
        valid: E | None,
        exprs: Iterable[Expr],
        *,
        weighed: bool = True,
    ) -> Side:
        """Load one end of pairs. weighed: with what the mask reads there."""
        offsets = place.offsets[letter]
        inputs.masked = size("MASKED") if valid is None else lift(True)
        inputs.enter(valid)
        exprs = (*exprs, *(self.at_end(letter) if weighed else ()))
        kept = {plain(x) for x in self.products() if is_tensor(x)}
        lowering = inputs.chunk(exprs, static, start, offsets, valid, kept)
        lowering.rows = EXTENTS[letter]
        positions = self.b.let(f"t_{LETTERS[letter]}", start + offsets, show=False)
        side = Side(letter, letter == self.own, start, offsets, positions, valid, dict(inputs.inside), lowering)
        for along in self.pairs.paths if weighed else ():
            side.paths[along.leaf] = self.path_end(along, side)
            if side.own and along.one_sided:
                self.clear(along, side)
        return side

    def products(self) -> tuple[Expr, ...]:
        """The operands of matrix products."""
        linear = self.pairs.linear
        return linear.q, linear.k, linear.v

    def operand(self, side: Side, expr: Expr, name: str, axis: str) -> E:
        """An operand as a matrix product takes it; what is computed is 0 outside the tensor."""
        b = self.b
        if is_tensor(expr):
            return side.lowering.raw(expr).to("dot")
        computed = side.lowering.value(expr)
        masked = size("MASKED") if side.valid is None else lift(True)
        kept = b.helper("keep", b.let(f"b_{name}", computed), side.inside[axis], masked)
        return b.let(f"b_{name}", b.helper("pin", kept.to("dot"), size("PINNED"), dtype="dot"))

    def in_registers(self, name: str, operand: E) -> E:
        """An own operand, in registers where these have room for it."""
        if self.pairs.wide:
            return operand
        return self.b.let(f"b_own_{name}", self.b.helper("in_registers", operand, size("HELD"), dtype="dot"))

    def see(self, place: Place, own: Side) -> Seen:
        """What every own position sees."""
        b, bounds = self.b, InKernel(self.arguments, self.host, self.names, place, own.valid)
        letter = LETTERS[self.own]
        lo = hi = None
        if self.pairs.support.exact and self.support.lo is not None:
            lo = b.let(f"lo_{letter}", value(self.support.lo, own.positions, bounds))
        if self.pairs.support.exact and self.support.hi is not None:
            end = pointwise("tl.minimum", value(self.support.hi, own.positions, bounds), place.span.end, dtype="int32")
            hi = b.let(f"hi_{letter}", end)
        return Seen(lo, hi)

    def plus(self, total: E, a: E, b: E) -> E:
        """A tile plus a product; in fp32 the product is summed apart: what Triton sees is no sum."""
        if not self.pairs.wide:
            return dot(a, b, total)
        if self.pairs.exact and total.tile.dtype == "fp64":
            self.b.helpers.add("exact_dot")
            return total + call("exact_dot", a, b, path("PRECISION"), tile=total.tile)
        return total - dot(a, -b).to(total.tile.dtype)

    def tiles(self, place: Place) -> Tiles:
        """Which tiles the own one sees something of."""
        b, wide, support, begin = self.b, size(self.extent[False]), self.support, place.begin
        b.section("Tiles that are seen")
        end = self._clipped(place, support.hi, place.last, place.span.end)
        first = lift(0)
        stop = call("tl.cdiv", end - begin, wide, tile=Tile("int32"))
        if support.lo is not None:
            lowest = b.let("lowest", self._clipped(place, support.lo, place.start, begin))
            end = b.named("highest", end)
            first = b.let("first", (lowest - begin) // wide)
            stop = where(lowest < end, call("tl.cdiv", end - begin, wide, tile=Tile("int32")), first)
        stop = b.let("stop", stop)
        if self.faded is not None and self.own == "i":  # a path leaves nothing of what comes before
            left = (self.faded - begin) // wide
            first = b.let("first", left if support.lo is None else pointwise("tl.maximum", first, left, dtype="int32"))
        elif self.faded is not None:
            left = call("tl.cdiv", self.faded - begin, wide, tile=Tile("int32"))
            b.set(stop, pointwise("tl.minimum", stop, left, dtype="int32"))
        return Tiles(first, stop)

    def _clipped(self, place: Place, bound: Bound | None, position: E, default: E) -> E:
        """A bound of what a position sees, inside the sequence. default: that of a position that sees all."""
        if bound is None:
            return default
        bounds = InKernel(self.arguments, self.host, self.names, place)
        held = self.b.named("bound", value(bound, position, bounds))
        held = pointwise("tl.maximum", held, place.begin, dtype="int32")
        return held if default is place.begin else pointwise("tl.minimum", held, default, dtype="int32")

    def each(
        self,
        place: Place,
        tiles: Tiles,
        body: Callable[[Visit], None],
        *,
        masked: bool = True,
        careful: bool = False,
        skip: Tiles | None = None,
    ) -> None:
        """Go over tiles; `body` builds what is done with one. careful: see `Visit`; as these are rare, none is in
        flight. skip: the tiles among them that are left out, or not masked where all are `joined`.
        """
        b, letter = self.b, LETTERS[self.other]
        stages = lift(1) if careful else self.masked_stages if masked else size("STAGES")
        rare = {"disable_licm": True} if careful else {}  # what does not vary is not held in registers, either
        steps = call("tl.range", tiles.first, tiles.stop, tile=Tile("int32"), num_stages=stages, **rare)
        with b.scope(), b.loop(f"i_{letter}", steps, Tile("int32")) as tile:
            partial: E | None = None
            if skip is not None and self.joined:
                partial = (tile < skip.first) | (tile >= skip.stop)
            elif skip is not None:
                tile = b.let(f"n_{letter}", tile + where(tile < skip.first, 0, skip.stop - skip.first))
            start = b.let(f"{letter}0", place.begin + tile * size(self.extent[False]))
            body(Visit(start, masked, partial, careful))

    def visits(self, place: Place, tiles: Tiles, body: Callable[[Visit], None]) -> None:
        """Go over the tiles that the own one sees something of; `body` builds what is done with one.

        Those that every own position sees whole come first, then those on either side of them; where all are `joined`,
        they come in order.
        """
        b, wide, begin, support = self.b, size(self.extent[False]), place.begin, self.support
        first, stop = tiles.first, tiles.stop
        if not self.pairs.support.exact:
            self.each(place, tiles, body)
            return
        b.section("From `near` to `far` they are seen whole")
        near = first
        if support.lo is not None:
            shared = self.in_chunks(place, self._clipped(place, support.lo, place.last, begin), follows=True)
            shared = call("tl.cdiv", shared - begin, wide, tile=Tile("int32"))
            near = b.let("near", pointwise("tl.minimum", shared, stop, dtype="int32"))
            if self.faded is not None and self.own == "i":
                b.set(near, pointwise("tl.maximum", near, first, dtype="int32"))
        shared = self._clipped(place, support.hi, place.start, place.span.end)
        shared = b.named("shared", self.in_chunks(place, shared, follows=False))
        far = b.let("far", (shared - begin) // wide)
        if self.faded is not None and self.own == "j":
            b.set(far, pointwise("tl.minimum", far, stop, dtype="int32"))
        if support.lo is not None:
            b.set(far, pointwise("tl.maximum", far, near, dtype="int32"))
        b.space()
        whole = Tiles(near, far)
        if self.joined:
            self.each(place, tiles, body, skip=whole)
            return
        self.each(place, whole, body, masked=False)
        b.space()
        if support.lo is None:
            self.each(place, Tiles(far, stop), body)
        else:
            self.each(place, Tiles(first, stop - (far - near)), body, skip=whole)

    def lowering(
        self, place: Place, own: Side, other: Side, static: Lowering, visit: Visit, seen: Seen
    ) -> PairLowering:
        """What the expressions of a tile's pairs are lowered by. static: what does not vary in time."""
        b, pairs = self.b, self.pairs
        live = self.live_pairs(place, own, other, seen) if visit.masked and visit.partial is None else None
        leaves: dict[Expr, E] = static.bound()
        for side in (own, other):
            leaf = pairs.i if side.letter == "i" else pairs.j
            leaves[leaf] = side.laid(side.positions if self.relative else side.positions - place.begin)
            for end in pairs.ends:
                if end.end == side.letter:
                    leaves[end.leaf] = side.laid(side.lowering.value(end.x))
        paths = {along.leaf: self.path(place, along, own, other, leaves, visit) for along in pairs.paths}
        made = PairLowering(b, leaves, paths, shared_nodes(self.pair_exprs()), live, wide=pairs.wide)
        apart = pairs.graph.apply("sub", pairs.i, pairs.j)
        if any(node is apart for node in postorder(self.pair_exprs())):
            made.bind(apart, b.let("b_apart", leaves[pairs.i] - leaves[pairs.j]))
        for table in pairs.tables:
            made.bind(table.leaf, self._look_up(table, place, own, other, made, visit))
        self.ramp = self._ramp(made, own, other)
        if pairs.condition is not None:
            condition = made.value(pairs.condition)
            made.seen = b.let(self.live_name, condition if live is None else live & condition)
        return made

    def _slope(self) -> Expr | None:
        """The number that exponents of weights are, times the distance i - j, under a softmax; None: they are not."""
        pairs = self.pairs
        if not pairs.softmax or pairs.wide or not isinstance(pairs.weight, Apply) or pairs.weight.fn != "mul":
            return None
        apart = pairs.graph.apply("sub", pairs.i, pairs.j)
        ends = {pairs.i, pairs.j, *(end.leaf for end in pairs.ends), *(along.leaf for along in pairs.paths)}
        ends |= {table.leaf for table in pairs.tables}
        for slope, distance in (pairs.weight.args, pairs.weight.args[::-1]):
            if distance is apart and ends.isdisjoint(postorder((slope,))):
                return slope
        return None

    def _ramp(self, pair: PairLowering, own: Side, other: Side) -> tuple[E, E] | None:
        """Exponents that are a number times the distance of a pair, as what own and visited ends add to them."""
        slope, b = self._slope(), self.b
        if slope is None:
            return None
        rate = b.let("rate", pair.value(slope) * LOG2E)
        mine = (own.positions - other.start).to("fp32") * rate
        theirs = other.offsets.to("fp32") * rate
        late = own.letter == "i"
        names = (f"b_ramp_{LETTERS[side.letter]}" for side in (own, other))
        own_ramp, ramp = (b.let(name, x) for name, x in zip(names, (mine, theirs), strict=True))
        return (own_ramp, -ramp) if late else (-own_ramp, ramp)

    @property
    def joined(self) -> bool:
        """Whether one loop goes over all tiles, and pairs are masked under a branch."""
        return False

    @property
    def masked_stages(self) -> E:
        """How many tiles are in flight where some pairs are not live."""
        return size("STAGES")

    @property
    def live_name(self) -> str:
        """What the tile of live pairs is called."""
        return "m_mn" if self.own == "i" else "m_nm"

    def pair_exprs(self) -> tuple[Expr, ...]:
        """The expressions that are lowered for pairs."""
        return self.pairs.exprs

    def live_pairs(self, place: Place, own: Side, other: Side, seen: Seen) -> E | None:
        """Where own positions see other ones, by the support."""
        if not self.pairs.support.exact:
            return None if other.valid is None else other.laid(other.valid)
        at = other.laid(other.positions)
        live = at < (own.laid(seen.hi) if seen.hi is not None else place.span.end)
        if seen.lo is not None:
            live = (at >= own.laid(seen.lo)) & live
        return self.b.let(self.live_name, live)

    def index(self, table: Table, place: Place, own: Side, other: Side, pair: PairLowering, visit: Visit) -> E:
        """Where every pair of a tile is in a table; one number, where all are at one place."""
        if table.index is not None:
            return pair.value(table.index)
        ends = pair.value(self.pairs.i), pair.value(self.pairs.j)
        if table.alike and not visit.masked:
            ends = own.start - place.begin, other.start - place.begin
        return self.b.helper("level_of", *ends, dtype="int32")

    def _look_up(self, table: Table, place: Place, own: Side, other: Side, pair: PairLowering, visit: Visit) -> E:
        """What a table has for every pair of a tile."""
        b, host = self.b, self.host
        name, axis = table.x.name, table.axis
        index = b.let(f"b_{axis}", self.index(table, place, own, other, pair, visit))
        self.indices[table.leaf] = index
        at, inputs = self.tables[table.leaf]
        dims = host.decls[name].dims
        inside = index < self.arguments.integer(TABLES[axis], host.sizes[axis])
        if table.index is not None:
            inside = inside & (index >= 0)
        if table.row:
            side = own if own.letter == table.row else other
            at = at + side.laid(side.positions.to("int64") * inputs.stride(name))
            inside = inside if side.valid is None else inside & side.laid(side.valid)
        at = at + index * self.arguments.stride(name, axis, host.parameters[name], dims.index(axis))
        value = call("tl.load", at, mask=inside, other=0, tile=Tile("in", at.tile.shape)).to("fp32")
        return b.let(f"b_{table.leaf.name}", value)

    def product(self, own: E, other: E, total: E | None = None) -> E:
        """The scores of a tile, on top of a total; with fp32 operands the same whichever end the program owns."""
        if self.pairs.exact:
            self.b.helpers.add("exact_dot")
            tile = Tile("fp64", (self.extent[True], self.extent[False]))
            found = call("exact_dot", own, trans(other), path("PRECISION"), tile=tile)
        elif self.pairs.wide and self.own == "j":
            found = trans(dot(other, trans(own)))
        else:
            found = dot(own, trans(other), total)
        return found.to("fp64" if self.pairs.wide and self.pairs.softmax else "fp32")

    def scale(self, static: Lowering) -> E | None:
        """What scores are multiplied by, under a softmax times log2(e); None: 1."""
        scale = self.pairs.scale
        one = isinstance(scale, Const) and scale.value == 1
        if not self.pairs.softmax:
            return None if one else static.value(scale)
        return lift(LOG2E) if one else self.b.let("scale", static.value(scale) * LOG2E)

    def exponents(self, pair: PairLowering, scores: E, scale: E | None, *, wide: bool) -> E:
        """log2 of the weights that a softmax divides, of scores [own, other]; without what own ends add to a ramp.

        wide: in fp64, where none is rounded.
        """
        found = scores.to("fp64") if wide else scores
        found = found if scale is None else found * scale
        if self.ramp is not None:
            found = found + self.ramp[1].row
        elif self.pairs.weight is not None:
            found = found + self.b.named("b_bias", pair.scaled(self.pairs.weight))
        if wide:
            return self.b.let("b_e", found)
        self.b.set(scores, found)
        return scores

    def weights(self, pair: PairLowering, scores: E, scale: E | None) -> E:
        """The weights of pairs without a softmax, 0 where they are not live."""
        b, pairs = self.b, self.pairs
        found = self.activated(pair, scores if scale is None else scores * scale)
        if pairs.weight is not None:
            found = found * number_of(pairs.weight, pair)
        if pair.seen is not None:
            found = where(pair.seen, found, 0.0)
        return b.let("b_w", found)

    def activated(self, pair: PairLowering, scores: E) -> E:
        """The activation of scaled scores."""
        pairs = self.pairs
        if pairs.activation == "none":
            return scores
        pair.bind(pairs.score, self.b.let("b_score", scores))
        return pair.value(pairs.graph.apply(pairs.activation, pairs.score))

    def write(self, inputs: Inputs, own: Side, output: Output, tensor: E) -> None:
        """Write an output at own positions: its channels, or their sum."""
        b = self.b
        value = own.lowering.value(output.expr)
        pointer = self.arguments.pointer(output.name, tensor)
        outer = next((axis for axis in ("value", "key") if axis in output.axes), None)
        with b.branch(pointer.given()) if output.optional else nullcontext():
            if outer is None:
                axis = "value" if value.tile.shape[1] == "BV" else "key"
                summed = reduce_sum(b.helper("keep", value, own.inside[axis], lift(True)), 1)
                length = self.arguments.integer("T", self.host.sizes["time"])
                heads = self.arguments.integer("H" if inputs.heads is self.host.heads else "G", inputs.heads)
                at = pointer + (inputs.batch * heads + inputs.head) * length + own.positions
                b.do(call("tl.store", at, summed, mask=own.valid, tile=Tile("ptr")))
                return
            base, stride = inputs.made(output.name, pointer, outer)
            at, _ = inputs.addresses(base, stride, outer, own.start, own.offsets, lift(True))
            b.helpers.add("store")
            b.do(call("store", at, value, own.inside[outer], lift(True), tile=Tile("ptr")))


def _relative(pairs: Pairs) -> bool:
    """Whether expressions of pairs read positions against each other only, so that these may count from anywhere."""
    if any(table.index is None for table in pairs.tables):
        return False
    ends = {pairs.i, pairs.j}
    for node in postorder(pairs.exprs):
        both = isinstance(node, Apply) and node.fn in RELATIVE and ends == set(node.args)
        if not both and not ends.isdisjoint(children(node)):
            return False
    return ends.isdisjoint(pairs.exprs)
