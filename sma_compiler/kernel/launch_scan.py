"""The launcher of gates that differ by both axes of channels."""

from __future__ import annotations

from collections.abc import Mapping

from sma_compiler.kernel.build import Operand, lift, path, sequence
from sma_compiler.kernel.config import Config
from sma_compiler.kernel.host import SIZES
from sma_compiler.kernel.launch import Launcher
from sma_compiler.kernel.nodes import Function
from sma_compiler.kernel.prepare import Kernel, either


class ScanLauncher(Launcher):
    """Builds the launcher of the forward kernel."""

    @property
    def turned(self) -> bool:
        """See `Launch`."""
        return not self.linear.stabilised

    def build(self, kernels: Mapping[str, Kernel], config: Config) -> Function:
        """The launcher. kernels: `forward`, and where sequences are cut `local_states`."""
        b, host = self.b, self.host
        parameters = self.signature()
        self.sizes()
        self.checks()
        _, time, heads, key, value = (host.sizes[axis] for axis in SIZES)
        b.section("Positions that are passed at a time, and tiles of the channels")
        chunk = b.let("C", config.chunk)
        self.sequences()
        wide_k = b.let("BK", path("triton.next_power_of_2").call(key))
        wide_v = b.let("BV", path("min").call(config.outer, path("triton.next_power_of_2").call(value)))
        blocks = b.let("blocks", path("triton.cdiv").call(value, wide_v))
        ragged = ((time % chunk).ne(0), key.ne(wide_k), (value % wide_v).ne(0))
        masked = b.let("masked", either(host.pack.given(), *ragged))
        tiles: dict[str, Operand] = {"C": chunk, "BK": wide_k, "BV": wide_v, "K": key, "V": value}
        constants = {**tiles, "MASKED": masked, "STAGES": lift(config.stages)}
        self.results()
        rows = host.sequences
        if "local_states" in kernels:
            self.cut(self.named, chunk if config.every == 1 else chunk * config.every, blocks, config)
            rows = self.begin(kernels["local_states"], self.walk, self.named, constants, blocks, config)
        b.do(kernels["forward"].launch(sequence([heads * blocks, rows]), constants, config.warps))
        self.give()
        return b.function(
            self.linear.op.name, self.doc("recurrent, some positions at a time", ()), parameters, jit=False
        )
