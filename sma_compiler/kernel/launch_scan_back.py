"""The backward launcher of gates that differ by both axes of channels."""

from __future__ import annotations

from collections.abc import Mapping

from sma_compiler.kernel.backward import Piece
from sma_compiler.kernel.build import E, Operand, lift, path, sequence
from sma_compiler.kernel.config import Config
from sma_compiler.kernel.host import SIZES, Host, Tensors, states_of
from sma_compiler.kernel.launch_backward import BackwardLauncher, Named
from sma_compiler.kernel.nodes import Function
from sma_compiler.kernel.prepare import Kernel, either
from sma_compiler.kernel.scan_gradients import ScanBackward
from sma_compiler.kernel.walk import Walk, forward_walk


def named_scan(made: ScanBackward, host: Host, cut: bool) -> Named:
    """Name everything that the kernels read and write; `cut`: several programs have a sequence."""
    fresh = host.builder.fresh
    forward = forward_walk(made.linear)
    initial, before, after = (states_of(forward, fresh, letter) for letter in ("s0", "ds0", "ds1"))
    states, scratch, parts, span = (path(fresh(name)) for name in ("states", "scratch", "parts", "span"))
    decays = path(fresh("decays"))
    written = {piece.tensor: path(fresh(piece.tensor)) for piece in made.pieces}

    def tensors(walk: Walk, start: dict[tuple[str, int], E], end: dict[tuple[str, int], E], *kept: str) -> Tensors:
        outputs = {output.name: written[output.name] for output in walk.outputs}
        local = {("matrix", 0): path(fresh(f"local_{walk.name}")), ("decay", 0): decays} if cut else {}
        sums = {(name, 0): x for name, x in (("states", states), ("scratch", scratch)) if name in kept}
        return Tensors(parts, span, outputs, start, end, local, sums)

    again, back = made.walks
    walks = {
        "again": tensors(again, initial, {}, "states"),
        "back": tensors(back, after, before, "states", "scratch"),
    }
    tiles = {axis: path(fresh(f"tiles_{axis[0]}")) for axis in ("key", "value")}
    return Named(walks, Tensors(parts, span), initial, before, after, tiles, tiles["key"])


class ScanBackwardLauncher(BackwardLauncher):
    """Builds the launcher. every: positions from one state that is kept to the next; 0: those of a tile of `back`."""

    @property
    def turned(self) -> bool:
        """See `Launch`."""
        return not self.linear.stabilised

    def __init__(self, made: ScanBackward, host: Host, names: Named, every: int) -> None:
        super().__init__(made, host, names)
        self.every = every
        self.rounds = False
        self.tiles: dict[str, E] = {}
        self.wide: dict[str, E] = {}

    def build(self, name: str, kernels: Mapping[str, Kernel], config: Config, each: Mapping[str, Config]) -> Function:
        """The launcher. kernels: `again`, `back`, and where sequences are cut `local_both`."""
        b, names = self.b, self.names
        self.sizes()
        self.checks()
        self._cotangents()
        constants = self._constants(config, each)
        self._needs()
        self._given_states()
        if config.programs:
            self.cut(names.chain, lift(self.every or config.chunk), names.tiles["value"], config)
        again, back = self.made.walks
        b.section("From the start once more: states that are kept, and the gradients that read states")
        for output in again.outputs:
            self._output(output.name)
        batch, _, heads, key, value = (self.host.sizes[axis] for axis in SIZES)
        held = [batch, heads, self.host.slots, *((value, key) if self.turned else (key, value))]
        dtype = path("sum_dtype").call(self.first) if self.turned else path("torch.float32")
        b.set(names.walks["again"].sums["states", 0], self.empty(held, dtype))
        self._start(again, kernels, constants, each["again"])
        b.section("All other gradients, from the end")
        for output in back.outputs:
            self._output(output.name)
        if self.every:
            tile = [lift(constants["BK"]), self.wide["back"]]
            held = [self._rows * heads * names.tiles["value"], lift(self.every // config.chunk), *tile]
            b.set(names.walks["back"].sums["scratch", 0], self.empty(held, path("torch.float32")))
        self._start(back, kernels, constants, each["back"])
        self._give()
        return b.function(name, self._doc(), self._parameters(), jit=False)

    @property
    def _rows(self) -> E:
        """How many programs one head and tile has."""
        parts = self.names.chain.parts
        return self.host.sequences * parts if self.cuts else self.host.sequences

    @property
    def cuts(self) -> bool:
        """Whether several programs have a sequence."""
        return bool(self.names.walks["back"].local)

    def _constants(self, config: Config, each: Mapping[str, Config]) -> dict[str, Operand]:
        b, host = self.b, self.host
        _, time, _, key, value = (host.sizes[axis] for axis in SIZES)
        b.section("Tiles of the channels")
        self.sequences()
        self.slots(lift(self.every or config.chunk))
        wide_k = b.let("BK", path("triton.next_power_of_2").call(key))
        whole, wide_v = path("triton.next_power_of_2").call(value), lift(0)
        for walk, name in zip(self.made.walks, ("BV_again", "BV"), strict=True):
            outer = each[walk.name].outer
            if walk.name == "back" or outer != config.outer:
                wide_v = b.let(name, path("min").call(outer, whole))
                tiles = path(b.fresh("tiles_again")) if walk.name == "again" else self.names.tiles["value"]
                b.set(tiles, path("triton.cdiv").call(value, wide_v))
                self.tiles[walk.name], self.wide[walk.name] = tiles, wide_v
        self.tiles.setdefault("again", self.names.tiles["value"])
        self.wide.setdefault("again", wide_v)
        chosen = [each[walk.name] for walk in self.made.walks]
        most = max(config.chunk for config in chosen)
        widest = self.wide["again" if chosen[0].outer > chosen[1].outer else "back"]
        ragged = ((time % most).ne(0), key.ne(wide_k), (value % widest).ne(0))
        masked = b.let("masked", either(host.pack.given(), *ragged))
        return {"BK": wide_k, "K": key, "V": value, "MASKED": masked}

    def _tiles_of(self, walk: Walk) -> E:
        return self.tiles[walk.name]

    def _start(
        self, walk: Walk, kernels: Mapping[str, Kernel], constants: Mapping[str, Operand], config: Config
    ) -> None:
        """Launch a walk."""
        tensors, tiles, rows = self.names.walks[walk.name], self.tiles[walk.name], self.host.sequences
        given = {**constants, "BV": self.wide[walk.name], "C": config.chunk, "STAGES": config.stages}
        back, stabilised = self.made.walks[1], self.linear.stabilised
        if self.cuts and walk.name == "again":
            local = kernels["local_states" if stabilised else "local_both"]
            self.begin(local, walk, tensors, given, tiles, config, ((back, self.names.walks[back.name]),))
        elif self.cuts and stabilised:
            with self.b.branch(tensors.parts > 1):
                self.join(walk, tensors)
        rows = rows * tensors.parts if self.cuts else rows
        grid = sequence([self.host.heads * tiles, rows])
        self.b.do(kernels[walk.name].launch(grid, given, config.warps, config.registers))

    def _wide(self, piece: Piece, param: E) -> E:
        """Sums over the channels of a tile are rounded as the gradient: there are so many that their errors cancel."""
        return path("sum_dtype").call(param) if {"tile", "time"} <= set(piece.axes) else super()._wide(piece, param)

    def _more_sizes(self) -> dict[str, E]:
        return {"row": self._rows, "one": lift(1)}
