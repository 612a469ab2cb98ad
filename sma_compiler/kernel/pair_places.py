"""Places of the quadratic kernels: the program's own tile, the tiles it visits, and the bounds of what it sees."""

from __future__ import annotations

from dataclasses import dataclass, field

from sma_compiler.ir.nodes import Expr, Param
from sma_compiler.kernel.arguments import Arguments
from sma_compiler.kernel.build import E, call, lift, pointwise, where
from sma_compiler.kernel.host import Host
from sma_compiler.kernel.lower import Lowering
from sma_compiler.kernel.nodes import Tile
from sma_compiler.kernel.rows import Span
from sma_compiler.kernel.support import Run, Turns
from sma_compiler.mask.algebra import constant


@dataclass(frozen=True)
class PairNames:
    """Names in a launcher of what quadratic kernels read beside an op's parameters.

    runs: where the runs of equal ids begin or (True) end, [B, T]. whole: by path, the exponents of its ends and their
    counts of cuts from the first position on, [B, H, T], and what these lose where they are rounded.
    within: the decays between late (True) or early ends and the first or last position of their chunks, [B, H, T].
    fading: from where rows and (True) up to where columns have weights that are no 0, [B, H, T], of a path that fades.
    groups: how many heads of k and v a program of their gradients tells apart.
    """

    runs: dict[tuple[Turns, bool], E] = field(default_factory=dict)
    whole: dict[tuple[int, str], tuple[E, E]] = field(default_factory=dict)
    within: dict[tuple[int, bool], E] = field(default_factory=dict)
    fading: dict[bool, E] = field(default_factory=dict)


@dataclass
class Place:
    """Where a program is: its sequence, whose first position is `begin`, and its own tile, from `start` to `last`."""

    span: Span
    begin: E
    start: E
    last: E
    offsets: dict[str, E]


@dataclass
class Side:
    """One end of the pairs of a tile: `positions` are start + offsets. letter: "i" or "j".

    own: whether the program owns it, so that it lies along the first axis of a tile. valid: which positions there are;
    None: all. inside: the same by axis of channels. paths: exponents and counts of cuts of each path there. clear: of
    an own end the exponents for tiles that are live as a whole, and the count that their paths have at both ends.
    An exponent is None where it is left out. parts: the two numbers that it was made of, from the sequence's start.
    """

    letter: str
    own: bool
    start: E
    offsets: E
    positions: E
    valid: E | None
    inside: dict[str, E]
    lowering: Lowering
    paths: dict[Param, tuple[E | None, E | None]] = field(default_factory=dict)
    clear: dict[Param, tuple[E | None, E]] = field(default_factory=dict)
    parts: dict[Param, tuple[E, E]] = field(default_factory=dict)

    def laid(self, vector: E) -> E:
        """A vector over the positions as a column of own ones, or a row."""
        return vector.col if self.own else vector.row


@dataclass(frozen=True)
class Seen:
    """What own positions see: from lo to hi without it, [own]; None: from the start, to the end of the sequence."""

    lo: E | None
    hi: E | None


@dataclass(frozen=True)
class Tiles:
    """Tiles in a row, by their numbers from the start of the sequence: from `first` to `stop`, without it."""

    first: E
    stop: E


@dataclass(frozen=True)
class Visit:
    """A tile that is visited. masked: whether some of its pairs may not be live. partial: what tells so in a kernel, of
    a loop over all tiles; None: nothing does. careful: whether scores are taken less the logarithms of
    rows before anything is added to them, as in the second pass.
    """

    start: E
    masked: bool
    partial: E | None = None
    careful: bool = False


@dataclass
class InKernel:
    """Bounds in a kernel. valid: which of several positions the sequence has."""

    arguments: Arguments
    host: Host
    names: PairNames
    place: Place
    valid: E | None = None

    def number(self, expr: Expr) -> E:
        found = constant(expr)
        if found is not None:
            return lift(int(found))
        name = expr.name if isinstance(expr, Param) else "reach"
        return self.arguments.integer(name, self.host.number(expr))

    def shifted(self, position: E, by: Expr) -> E:
        found = constant(by)
        if found is None:
            return position + self.number(by)
        number = int(found)
        return position if number == 0 else position + number if number > 0 else position - -number

    def edge(self, end: bool) -> E:
        return self.place.span.end if end else self.place.begin

    def run(self, run: Run, position: E) -> E:
        options = {}
        pointer = self.arguments.pointer("run_end" if run.end else "run_start", self.names.runs[run.turns, run.end])
        length = self.arguments.integer("T", self.host.sizes["time"])
        if self.valid is not None:
            options = {"mask": self.valid, "other": lift(0)}
        at = pointer + self.place.span.batch * length + position
        return call("tl.load", at, tile=Tile("int32", position.tile.shape), **options)

    def pick(self, fn: str, a: E, b: E) -> E:
        return pointwise(f"tl.{fn}imum", a, b, dtype="int32")

    def before(self, position: E, at: E, yes: E, no: E) -> E:
        return where(position < at, yes, no)

    def later(self, start: E, by: E) -> E:
        return start + by
