"""The backward launcher where heads share q and k: their gradients are made chunk by chunk, for all of a group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sma_compiler.kernel.backward import Backward
from sma_compiler.kernel.build import E, Operand, lift, path, sequence
from sma_compiler.kernel.config import Config
from sma_compiler.kernel.host import SIZES, Host
from sma_compiler.kernel.launch_backward import SUMS, TITLES, BackwardLauncher, Named, named
from sma_compiler.kernel.prepare import Kernel, either
from sma_compiler.kernel.walk import Walk, forward_walk

PAIRS = ("net", "rows", "columns")
"""Sums over pairs inside chunks, which the kernel of dK weighs."""


def named_shared(made: Backward, host: Host, cut: bool = False) -> Named:
    """Name everything that the kernels read and write; `cut`: several programs have a sequence."""
    names = named(made, host, cut)
    sums = names.chain.sums
    kept = {("states", 0): sums.get(("states", 0), path(host.builder.fresh("states")))}
    weights = {("weights", 0): path(host.builder.fresh("weights"))}
    dq, dk, dv = (names.walks[name] for name in ("dq", "dk", "dv"))

    def of(*kinds: str) -> dict[tuple[str, int], E]:
        return {key: x for key, x in sums.items() if key[0] in kinds}

    walks = {
        **names.walks,
        "dq": replace(dq, sums={**kept, **weights, **of("inter")}),
        "dk": replace(dk, sums={**kept, **weights, **of(*PAIRS)}),
        "dv": replace(dv, sums=kept, scores=True),
        "dstates": replace(dv, outputs={}, sums=kept),
        "states": replace(dq, outputs={}, sums={**kept, **of("anchors", "through")}),
    }
    return replace(names, walks=walks, anchors=names.tiles["value"])


class SharedLauncher(BackwardLauncher):
    """Builds the launcher."""

    by_chunk = True
    share = 1
    """How many programs share the heads that have the same q and k."""

    def _outer(self, axis: str, config: Config, each: Mapping[str, Config]) -> int:
        return each["dq"].outer if axis == "key" else config.outer

    def groups(self) -> None:
        """How many groups of heads there are, of which some may have the same q and k."""
        super().groups()
        if self.share > 1:
            groups = self.host.groups
            with self.b.branch((self.host.heads % (groups * self.share)).eq(0)):
                self.b.set(groups, groups * self.share)

    def _heads(self, tensor: str) -> E:
        walks = self.names.walks
        shared = tensor in walks["dq"].outputs or tensor in walks["dk"].outputs
        shared = shared and any("key" in piece.axes for piece in self.made.pieces if piece.tensor == tensor)
        return self.host.groups if shared else self.host.heads

    def _walks(
        self, kernels: Mapping[str, Kernel], constants: Mapping[str, Operand], each: Mapping[str, Config]
    ) -> None:
        b, host, made = self.b, self.host, self.made
        dq, dk, dv = made.dq, made.dk, made.dv
        if made.before is not None:
            self._walk(made.before, kernels, constants, each[made.before.name])
        by_chain = [self.by_chain] if dq.sums is not None else []
        queries = [*dict.fromkeys((*self._needed(output.name for output in dq.outputs), *by_chain))]
        wanted = [*dict.fromkeys((*self._needed(output.name for output in (*dq.outputs, *dk.outputs)), *by_chain))]
        held = self.names.walks["states"]
        batch, time, heads, key, value = (host.sizes[axis] for axis in SIZES)
        dtype = self.first.attr("dtype")
        given, along = {**constants, **self._tiles("key")}, {**constants, **self._tiles("value")}
        b.section("States at the end of every chunk, and later at its start")
        values = [*self._needed(output.name for output in dv.outputs), self._first_state.given()]
        keeping = [*dict.fromkeys((*wanted, *values))] if "dstates" in kernels else wanted
        b.set(held.sums["states", 0], self._new(either(*keeping), [batch, heads, host.slots, key, value], dtype))
        self.share = each["dk"].share
        self.scores(kernels["scores"], along)
        if "dstates" in kernels:
            self._by_chunk(dv, kernels, along, each, keeping)
        else:
            self._walk(dv, kernels, constants, each["dv"], also=wanted)
        b.section(TITLES["dk"] + SUMS if dk.sums is not None else TITLES["dk"])
        weights = self.names.walks["dk"].sums["weights", 0]
        shape = [batch, host.groups, time, lift(constants["C"])]
        b.set(weights, self._new(either(*wanted), shape, dtype))
        self._shared(dk, kernels, given, each["dk"], wanted)
        b.section("The state at the start of every chunk; the weights of all pairs that lead over each or out of it")
        self._sums("states", "anchors", "through")
        with b.branch(either(*queries)):
            config, rows, tiles = each["states"], host.sequences, self.names.tiles["value"]
            along["STAGES"] = config.stages
            if config.programs:
                rows = self.begin(kernels["local_states"], forward_walk(self.linear), held, along, tiles, config)
            b.do(kernels["states"].launch(sequence([heads * tiles, rows]), along, config.warps))
        b.section(TITLES["dq"] + SUMS if dq.sums is not None else TITLES["dq"])
        self._shared(dq, kernels, given, each["dq"], queries)

    def _by_chunk(
        self,
        dv: Walk,
        kernels: Mapping[str, Kernel],
        given: Mapping[str, Operand],
        each: Mapping[str, Config],
        keeping: list[E],
    ) -> None:
        """Keep the states at the end of every chunk, then make dV chunk by chunk."""
        b, host = self.b, self.host
        held, config = self.names.walks["dstates"], each["dstates"]
        tiles, rows = self.names.tiles["value"], host.sequences
        needed = self._needed(output.name for output in dv.outputs)
        with b.branch(either(*keeping)):
            constants = {**given, "STAGES": config.stages}
            if config.programs:
                rows = self.begin(kernels["local_dv"], dv, held, constants, tiles, config)
            b.do(kernels["dstates"].launch(sequence([host.heads * tiles, rows]), constants, config.warps))
        b.section(TITLES["dv"])
        for output in dv.outputs:
            self._output(output.name)
        grid = sequence([host.slots * tiles, host.heads, host.sizes["batch"]])
        with b.branch(either(*dict.fromkeys(needed))):
            config = each["dv"]
            b.do(kernels["dv"].launch(grid, {**given, "STAGES": config.stages}, config.warps))

    def _sums(self, walk: str, *kinds: str) -> None:
        """Make the tensors for some sums of a walk."""
        for (kind, _), sums in self.names.walks[walk].sums.items():
            if kind in kinds:
                self.b.set(sums, self._new(self.by_chain, *self._sum(kind)))

    def _shared(
        self,
        walk: Walk,
        kernels: Mapping[str, Kernel],
        given: Mapping[str, Operand],
        config: Config,
        wanted: list[E],
    ) -> None:
        """Launch the kernel of a gradient that heads share."""
        b, host = self.b, self.host
        for output in walk.outputs:
            self._output(output.name)
        self._sums(walk.name, *PAIRS, "inter")
        grid = sequence([host.slots * self.names.tiles["key"], host.groups, host.sizes["batch"]])
        with b.branch(either(*wanted)):
            b.do(kernels[walk.name].launch(grid, {**given, "STAGES": config.stages}, config.warps))
