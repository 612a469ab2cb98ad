"""The backward launcher of gates by key channel: their gradients and those of q and k are made chunk by chunk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sma_compiler.kernel.backward import Backward
from sma_compiler.kernel.build import Operand, lift, path, sequence
from sma_compiler.kernel.channel_gradients import reads_values
from sma_compiler.kernel.config import Config
from sma_compiler.kernel.host import Host
from sma_compiler.kernel.launch_backward import BackwardLauncher, Named, named
from sma_compiler.kernel.prepare import Kernel, either


def named_channels(made: Backward, host: Host) -> Named:
    """Name everything that the kernels read and write."""
    names = named(made, host)
    dq, dk, dv = (names.walks[name] for name in ("dq", "dk", made.dv.name))
    states, after = (path(host.builder.fresh(name)) for name in ("states", "states_after"))
    walks = {
        **{name: tensors for name, tensors in names.walks.items() if name not in ("dq", "dk")},
        "states": replace(dq, outputs={}, sums={("states", 0): states}),
        made.dv.name: replace(dv, sums={("states", 0): after}),
        "dqk": replace(dq, outputs=dq.outputs | dk.outputs, sums={("states", 0): states, ("after", 0): after}),
    }
    return replace(names, walks=walks)


class ChannelLauncher(BackwardLauncher):
    """Builds the launcher."""

    by_chunk = True

    def _walks(
        self, kernels: Mapping[str, Kernel], constants: Mapping[str, Operand], each: Mapping[str, Config]
    ) -> None:
        b, host, made = self.b, self.host, self.made
        if made.before is not None:
            self._walk(made.before, kernels, constants, each[made.before.name])
        outputs = (*made.dq.outputs, *made.dk.outputs)
        wanted = self._needed(output.name for output in outputs)
        wanted += [self.by_chain] if made.gated else []
        needed = either(*dict.fromkeys(wanted))
        b.section(
            "The states that come into every chunk from its start and, with the gradients of values, from its end"
        )
        for state in self.names.walks["dqk"].sums.values():
            b.set(state, self._new(needed, *self._sum("states")))
        if "scores" not in kernels:
            shape = [host.sizes["batch"], host.heads, host.slots]
            zeros = path("torch.zeros").call(
                sequence(shape), dtype=path("torch.float32"), device=self.first.attr("device")
            )
            b.set(host.decayed["widest"], zeros)
        given = {**constants, **self._tiles("value")}
        grid = sequence([host.heads * self.names.tiles["value"], host.sequences])
        with b.branch(needed):
            config = each["states"]
            b.do(kernels["states"].launch(grid, {**given, "STAGES": config.stages}, config.warps))
        self._walk(made.dv, kernels, constants, each[made.dv.name], also=wanted)
        b.section("Queries, keys and gates")
        for output in outputs:
            self._output(output.name)
        given = {**constants, **self._tiles("key")}
        if not reads_values(made):
            given["BV"] = self.tile["value"]
        grid = sequence([host.slots * self.names.tiles["key"], host.heads, host.sizes["batch"]])
        with b.branch(needed):
            config = each["dq"]
            given["STAGES"] = config.stages
            with b.branch(lift(constants["DOT"]).eq(path("tl.bfloat16"))):
                b.do(kernels["dqk"].launch(grid, given, config.warps))
            self.runs(kernels["dqk_wide"], self.names.tiles["key"], given)
