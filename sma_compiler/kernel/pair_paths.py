"""Paths in the quadratic kernels: the exponents of their ends as tiles need them, and those of pairs."""

from __future__ import annotations

from dataclasses import replace

from sma_compiler.ir.nodes import Expr
from sma_compiler.kernel.ahead import Split, split
from sma_compiler.kernel.build import INFINITY, MINUS_INFINITY, E, call, lift, pointwise, size, where
from sma_compiler.kernel.host import Host, suffix
from sma_compiler.kernel.inputs import Inputs
from sma_compiler.kernel.maker import Maker
from sma_compiler.kernel.nodes import Tile
from sma_compiler.kernel.pair_places import PairNames, Place, Side, Visit
from sma_compiler.kernel.pairs import Along, Pairs
from sma_compiler.kernel.score import PathEnds

EXTENTS = {"i": "BM", "j": "BN"}
"""How many positions a tile has of each end of pairs."""
LETTERS = {"i": "m", "j": "n"}
"""What names of each end's positions end in."""


def chunked(pairs: Pairs, along: Along) -> bool:
    """Whether tiles that are live as a whole are weighed by chunks: every pair has its late end in a later one."""
    whole = pairs.support.exact and not pairs.wide
    return whole and along.one_sided and split_of(pairs, along).cuts


def end_of(pairs: Pairs, along: Along, late: bool) -> str:
    """Which array has the exponents of one end of a path."""
    return "row" if late or not split_of(pairs, along).two_ended else "col"


def split_of(pairs: Pairs, along: Along) -> Split:
    """How a path is made ahead."""
    made = split(pairs.linear.terms[along.number])
    assert made is not None
    return made


class PathKernel(Maker):
    """What the kernels know of paths. own: the end that a program owns."""

    def __init__(self, pairs: Pairs, host: Host, names: PairNames, reserved: frozenset[str], own: str) -> None:
        super().__init__(host, reserved)
        self.pairs = pairs
        self.names = names
        self.own = own
        self.other = "j" if own == "i" else "i"
        self.extent = {True: EXTENTS[self.own], False: EXTENTS[self.other]}
        self.path_rows: dict[tuple[int, str], E] = {}
        self.origins: dict[int, tuple[E, ...]] = {}
        self.gap: E | None = None
        self.faded: E | None = None
        self.logs: E | None = None

    def start_paths(self, place: Place, inputs: Inputs) -> None:
        """Take the addresses of what was made ahead of paths, of one head, and what comes before the own tile."""
        b = self.b
        if not self.pairs.paths:
            return
        b.section("Where its paths are summed")
        length = self.arguments.integer("T", self.host.sizes["time"])
        for along in self.pairs.paths:
            tag = suffix(along.number, len(self.pairs.linear.terms))

            def pointer(part: str, made: E, tag: str = tag, number: int = along.number) -> None:
                at = self.arguments.pointer(f"{part}{tag}", made) + inputs.row() * length
                self.path_rows[number, part] = b.let(f"p_{part}{tag}", at)

            for name in split_of(self.pairs, along).arrays:
                if name.endswith("all"):
                    continue
                high, low = self.names.whole[along.number, name]
                pointer(name, high)
                if not (self.pairs.wide or name.startswith("cut")):
                    pointer(f"low_{name}", low)
            if chunked(self.pairs, along):
                late = along.early != self.other
                pointer("within", self.names.within[along.number, late])
            if not self.pairs.wide:
                self.origins[along.number] = tuple(
                    b.let(
                        f"{part}{tag}_0",
                        call("tl.load", self.path_rows[along.number, part] + place.start, tile=Tile("fp32")),
                    )
                    for part in ("row", "low_row")
                )

        if self.pairs.fading is not None:
            rows = self.own == "i"
            made = self.arguments.pointer("since" if rows else "until", self.names.fading[not rows])
            at = made + inputs.row() * length + (place.start if rows else place.last)
            self.faded = b.let("faded", call("tl.load", at, tile=Tile("int32")))

    def path_end(self, along: Along, side: Side) -> tuple[E, E | None]:
        """log2 of the decay from the start of the own tile to one end of a path, and how many cuts come before it.

        In fp64 the decay is that from the start of the first sequence.
        """
        b, made = self.b, split_of(self.pairs, along)
        if side.valid is None and chunked(self.pairs, along):
            return b.named("b_within", self.within(along, side)), None
        end = end_of(self.pairs, along, along.early != side.letter)
        tag = suffix(along.number, len(self.pairs.linear.terms))
        name = f"b_{end}{tag}_{LETTERS[side.letter]}"
        exponent = b.let(name, self._made(along, side, end, "fp64" if self.pairs.wide else "fp32"))
        if not self.pairs.wide:
            high, low = self.origins[along.number]
            rest = b.named(f"{name}_low", self.low(along, side, end))
            side.parts[along.leaf] = exponent, rest
            exponent = b.let(name, (exponent - high) + (rest - low))
        if not made.cuts:
            return exponent, None
        return exponent, b.let(
            f"b_cut_{end}{tag}_{LETTERS[side.letter]}", self._made(along, side, f"cut_{end}", "int32")
        )

    def holds_logs(self, along: Along) -> bool:
        """Whether what exponents of rows lose where they are rounded holds the logarithms of the sums of rows, too: in
        tiles that take care these are left to `logs`."""
        return False

    def within(self, along: Along, side: Side) -> E:
        """The decays between visited ends and the end of their chunk that is nearer to the own tile."""
        return self._made(along, side, "within", "fp32")

    def low(self, along: Along, side: Side, end: str) -> E:
        """What exponents lose where they are rounded."""
        return self._made(along, side, f"low_{end}", "fp32")

    def _made(self, along: Along, side: Side, part: str, dtype: str) -> E:
        """What was made ahead of a path, of the positions of one end."""
        return self.vector(self.path_rows[along.number, part], side, dtype)

    def vector(self, pointer: E, side: Side, dtype: str) -> E:
        """What lies behind a pointer for the positions of one end; those that are visited as often as threads need."""
        at, options = pointer + side.positions, {}
        if not (side.own or self.pairs.wide):
            self.b.helpers.add("again")
            at = call("again", at, size("REPEATS"), tile=Tile("ptr", ("REPEATS", *at.tile.shape)))
        if side.valid is not None:
            mask = side.valid if len(at.tile.shape) == 1 else side.valid.row
            options = {"mask": mask, "other": lift(0)}
        return call("tl.load", at, tile=Tile(dtype, at.tile.shape), **options)

    def laid(self, side: Side, vector: E) -> E:
        """A vector over the positions of one end, laid out along the axes of a tile."""
        if len(vector.tile.shape) < 2:
            return vector.col if side.own else vector.row
        self.b.helpers.add("spread")
        extent = self.extent[True]
        tile = Tile(vector.tile.dtype, (extent, vector.tile.shape[1]))
        return call("spread", vector, size(extent), tile=tile)

    def clear(self, along: Along, own: Side) -> None:
        """Say which own ends may be paired in tiles that are live as a whole, where all late ends follow early ones.

        As cuts only add up, a path that none lies on has at both ends as many as the first late or the last early end
        of the own tile: what has another count is paired with nothing.
        """
        b, late = self.b, along.early != own.letter
        exponent, cuts = own.paths[along.leaf]
        if exponent is None or cuts is None or own.valid is None:
            return
        counted = where(own.valid, cuts, 2**31 - 1 if late else -1)
        count = b.let("n_clear", call("tl.min" if late else "tl.max", counted, 0, tile=Tile("int32")))
        own.clear[along.leaf] = b.let("b_clear", self._uncut(exponent, cuts, count, late)), count

    def _uncut(self, exponent: E, cuts: E, count: E, late: bool) -> E:
        """The exponents of ends with a count of cuts; those that weigh every pair 0 at the others."""
        return where(cuts.eq(count), exponent, MINUS_INFINITY if late else INFINITY)

    def path(self, place: Place, along: Along, own: Side, other: Side, leaves: dict[Expr, E], visit: Visit) -> E:
        """log2 of the decay along a path, of every pair of a tile."""
        if not visit.masked and along.leaf in own.clear:
            if chunked(self.pairs, along):
                return self._by_chunk(place, along, own, other)
            (mine, count), (theirs, cuts) = own.clear[along.leaf], other.paths[along.leaf]
            assert mine is not None
            assert theirs is not None
            assert cuts is not None
            follows = along.early != other.letter
            laid = (
                self.laid(own, mine),
                self.laid(other, self.b.let("b_uncut", self._uncut(theirs, cuts, count, follows))),
            )
            return (PathEnds(laid[1], laid[0]) if follows else PathEnds(*laid)).exponent
        pairs = self.pairs
        ends = {side.letter: side for side in (own, other)}
        early, late = ends[along.early], ends["j" if along.early == "i" else "i"]
        places = {"i": leaves[pairs.i], "j": leaves[pairs.j]}
        apart = places[late.letter] - places[early.letter]
        empty = None
        if not along.one_sided:
            both = along.gate.key_closed and along.gate.query_closed
            empty = apart < (0 if both else 1)
        (b_late, late_cuts), (b_early, early_cuts) = late.paths[along.leaf], early.paths[along.leaf]
        laid_late, laid_early = (None if x is None else self.laid(s, x) for x, s in ((b_late, late), (b_early, early)))
        if along.leaf in late.parts and along.leaf in early.parts and laid_late is not None and laid_early is not None:
            (until, rest), (since, less) = ([self.laid(s, x) for x in s.parts[along.leaf]] for s in (late, early))
            if not (visit.careful and self.holds_logs(along)):
                laid_late = (until - since) + (rest - less)
            elif late.letter == "i":
                self.logs, laid_late = -rest, (until - since) - less
            else:
                self.logs, laid_late = less, (until - since) + rest
            laid_early = None
        found = PathEnds(laid_late, laid_early, empty=empty)
        if late_cuts is not None and early_cuts is not None:
            found = replace(found, late_cuts=self.laid(late, late_cuts), early_cuts=self.laid(early, early_cuts))
        return found.exponent

    def in_chunks(self, place: Place, bound: E, *, follows: bool) -> E:
        """A bound of tiles that are live as a whole, behind which they lie in other chunks than own positions.

        follows: whether they come after these.
        """
        if not any(chunked(self.pairs, along) and follows == (along.early == self.own) for along in self.pairs.paths):
            return bound
        at = (place.last if follows else place.start) - place.begin
        at = at // size("C") * size("C") + place.begin
        if follows:
            return pointwise("tl.maximum", bound, at + size("C"), dtype="int32")
        return pointwise("tl.minimum", bound, at, dtype="int32")

    def _by_chunk(self, place: Place, along: Along, own: Side, other: Side) -> E:
        """`path` in a tile that is live as a whole: what it has in the tile's chunk, and between that and own ends."""
        b, late = self.b, along.early != other.letter
        (mine, count), (theirs, _) = own.clear[along.leaf], other.paths[along.leaf]
        assert theirs is not None
        at = place.begin + (other.start - place.begin) // size("C") * size("C")
        at = b.let("at", at if late else at + (size("C") - 1))
        end = end_of(self.pairs, along, late)
        high, low = self.origins[along.number]
        value = call("tl.load", self.path_rows[along.number, end] + at, tile=Tile("fp32"))
        rest = call("tl.load", self.path_rows[along.number, f"low_{end}"] + at, tile=Tile("fp32"))
        cuts = call("tl.load", self.path_rows[along.number, f"cut_{end}"] + at, tile=Tile("int32"))
        apart = b.let("gap", (value - high) + (rest - low))
        gap = b.let("gap", where(cuts.eq(count), apart if late else -apart, MINUS_INFINITY))
        if mine is None:
            self.gap = gap
            return self.laid(other, theirs)
        return self.laid(other, theirs) + self.laid(own, b.let("b_away", gap - mine if late else gap + mine))
