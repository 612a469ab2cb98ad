"""The backward launcher where heads share q and k: their gradients are made chunk by chunk, for all of a group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sma_compiler.kernel.backward import Backward
from sma_compiler.kernel.build import E, Operand, path, sequence
from sma_compiler.kernel.config import Config
from sma_compiler.kernel.host import SIZES, Host, Tensors
from sma_compiler.kernel.launch_backward import BackwardLauncher, Named, named
from sma_compiler.kernel.prepare import Kernel, either

PAIRS = ("net", "rows", "columns", "inter", "through")
"""Sums that the kernel of both gradients writes."""


def named_shared(made: Backward, host: Host, cut: bool = False) -> Named:
    """Name everything that the kernels read and write; `cut`: several programs have a sequence."""
    names = named(made, host, cut)
    sums = names.chain.sums
    kept = {
        ("states", 0): sums.get(("states", 0), path(host.builder.fresh("states"))),
        ("dstates", 0): path(host.builder.fresh("dstates")),
    }
    dq, dk, dv = (names.walks[name] for name in ("dq", "dk", "dv"))
    anchors = {key: x for key, x in sums.items() if key[0] == "anchors"}
    pairs = {key: x for key, x in sums.items() if key[0] in PAIRS}
    walks = {
        **names.walks,
        "dv": replace(dv, sums={("dstates", 0): kept["dstates", 0]}),
        "states": replace(dq, outputs={}, sums={**kept, **anchors}),
        "shared": Tensors(dq.parts, dq.span, {**dq.outputs, **dk.outputs}, sums={**kept, **pairs}),
    }
    return replace(names, walks=walks)


class SharedLauncher(BackwardLauncher):
    """Builds the launcher."""

    by_chunk = True

    def _outer(self, axis: str, config: Config, each: Mapping[str, Config]) -> int:
        return each["shared"].outer if axis == "key" else config.outer

    def _heads(self, tensor: str) -> E:
        shared = tensor in self.names.walks["shared"].outputs
        return self.host.groups if shared else self.host.heads

    def _walks(
        self, kernels: Mapping[str, Kernel], constants: Mapping[str, Operand], each: Mapping[str, Config]
    ) -> None:
        b, host, made = self.b, self.host, self.made
        dq, dk, dv = made.dq, made.dk, made.dv
        if made.before is not None:
            self._walk(made.before, kernels, constants, each[made.before.name])
        by_chain = [self.by_chain] if dq.sums is not None else []
        outputs = (*dq.outputs, *dk.outputs)
        wanted = [*self._needed(output.name for output in outputs), *by_chain]
        tensors = self.names.walks["shared"].sums
        b.section("The state of every chunk: at its start, and from the end of the sequence to its end")
        self.groups()
        batch, _, heads, key, value = (host.sizes[axis] for axis in SIZES)
        for name in ("states", "dstates"):
            shape = [batch, heads, host.slots, key, value]
            b.set(tensors[name, 0], self._new(either(*wanted), shape, self.first.attr("dtype")))
        self._walk(dv, kernels, constants, each["dv"], also=wanted)
        b.section("States at the starts of chunks, and the weight of all pairs that lead over each")
        for sums in (x for (kind, _), x in self.names.walks["states"].sums.items() if kind == "anchors"):
            b.set(sums, self._new(self.by_chain, *self._sum("anchors")))
        tiles = self._tiles("key")
        config, rows = each["states"], host.sequences
        given = {**constants, **tiles, "STAGES": config.stages}
        with b.branch(either(*wanted)):
            if config.programs:
                held = self.names.walks["states"]
                rows = self.begin(kernels["local_dq"], dq, held, given, self.names.tiles["key"], config)
            grid = sequence([heads * self.names.tiles["key"], rows])
            b.do(kernels["states"].launch(grid, given, config.warps))
        b.section("Queries and keys, and sums over pairs for gates and factors")
        for output in outputs:
            self._output(output.name)
        for (kind, _), sums in tensors.items():
            if kind in PAIRS:
                b.set(sums, self._new(self.by_chain, *self._sum(kind)))
        grid = sequence([host.slots * self.names.tiles["key"], host.groups, batch])
        with b.branch(either(*wanted)):
            config = each["shared"]
            b.do(kernels["shared"].launch(grid, {**constants, **tiles, "STAGES": config.stages}, config.warps))
