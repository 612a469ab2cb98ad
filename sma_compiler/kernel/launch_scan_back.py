"""The backward launcher of gates that differ by both axes of channels."""

from __future__ import annotations

from collections.abc import Mapping

from sma_compiler.kernel.build import E, Operand, lift, path, sequence
from sma_compiler.kernel.config import Config
from sma_compiler.kernel.host import SIZES, Host, Tensors, local_states, states_of
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
    written = {piece.tensor: path(fresh(piece.tensor)) for piece in made.pieces}

    def tensors(walk: Walk, start: dict[tuple[str, int], E], end: dict[tuple[str, int], E], *kept: str) -> Tensors:
        outputs = {output.name: written[output.name] for output in walk.outputs}
        local = local_states(walk, fresh, f"_{walk.name}") if cut else {}
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
    """Builds the launcher. every: positions from one state that is kept to the next."""

    def __init__(self, made: ScanBackward, host: Host, names: Named, every: int) -> None:
        super().__init__(made, host, names)
        self.every = every
        self.rounds = False

    def build(self, name: str, kernels: Mapping[str, Kernel], config: Config, each: Mapping[str, Config]) -> Function:
        """The launcher. kernels: `again`, `back`, and where sequences are cut `local_again` and `local_back`."""
        b, names = self.b, self.names
        self.sizes()
        self.checks()
        self._cotangents()
        constants = self._constants(config, each)
        self._needs()
        self._given_states()
        if config.programs:
            self.cut(names.chain, lift(self.every), names.tiles["value"], config)
        again, back = self.made.walks
        b.section("The states before every EVERY-th position, from the start once more")
        for output in again.outputs:
            self._output(output.name)
        batch, _, heads, key, value = (self.host.sizes[axis] for axis in SIZES)
        fp32 = path("torch.float32")
        b.set(names.walks["again"].sums["states", 0], self.empty([batch, heads, self.host.slots, key, value], fp32))
        self._start(again, kernels, constants, each["again"])
        b.section("All gradients, from the end")
        for output in back.outputs:
            self._output(output.name)
        programs = self._rows * heads * names.tiles["value"]
        held = sequence([programs, self.every // config.chunk, lift(constants["BK"]), lift(constants["BV"])])
        scratch = path("torch.empty").call(held, dtype=fp32, device=self.first.attr("device"))
        b.set(names.walks["back"].sums["scratch", 0], scratch)
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
        self.slots(lift(self.every))
        wide_k = b.let("BK", path("triton.next_power_of_2").call(key))
        wide_v = b.let("BV", path("min").call(config.outer, path("triton.next_power_of_2").call(value)))
        b.set(self.names.tiles["value"], path("triton.cdiv").call(value, wide_v))
        most = max(each[walk.name].chunk for walk in self.made.walks)
        ragged = ((time % most).ne(0), key.ne(wide_k), (value % wide_v).ne(0))
        masked = b.let("masked", either(host.pack.given(), *ragged))
        return {"BK": wide_k, "BV": wide_v, "K": key, "V": value, "MASKED": masked}

    def _start(
        self, walk: Walk, kernels: Mapping[str, Kernel], constants: Mapping[str, Operand], config: Config
    ) -> None:
        """Launch a walk."""
        tensors, tiles, rows = self.names.walks[walk.name], self.names.tiles["value"], self.host.sequences
        given = {**constants, "C": config.chunk, "STAGES": config.stages}
        if self.cuts:
            rows = self.begin(kernels[f"local_{walk.name}"], walk, tensors, given, tiles, config)
        grid = sequence([self.host.heads * tiles, rows])
        self.b.do(kernels[walk.name].launch(grid, given, config.warps, config.registers))

    def _more_sizes(self) -> dict[str, E]:
        return {"row": self._rows, "one": lift(1)}
