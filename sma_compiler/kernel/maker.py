"""What every builder of a kernel has: the statements so far, and the arguments."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

from sma_compiler.kernel.arguments import Arguments
from sma_compiler.kernel.build import Builder, E, call, lift, path, pointwise, size
from sma_compiler.kernel.config import Config, PairConfig
from sma_compiler.kernel.host import Host
from sma_compiler.kernel.nodes import Function, Name, Tile

CONSTANTS = ("C", "BM", "BN", "BK", "BV", "K", "V", "MASKED", "PINNED", "DOT", "PRECISION", "STAGES", "RUN")
"""Names that every chunked kernel is compiled for."""


class Maker(ABC):
    """Builds one kernel. host: the launcher that starts it. reserved: names of the file."""

    def __init__(self, host: Host, reserved: frozenset[str]) -> None:
        self.host = host
        self.b = Builder(reserved | set(CONSTANTS))
        self.arguments = Arguments(self.b)

    def run(self, index: E, widest: E | None) -> AbstractContextManager[E]:
        """A loop over RUN slots of chunks. index: which of such runs.

        widest: where it is said of slots how far powers of 2 reach, if it is; of runs that reach nowhere far there are
        no steps.
        """
        first, count = self.b.let("first", index * size("RUN")), self.arguments.integer("SLOTS", self.host.slots)
        last = pointwise("tl.minimum", first + size("RUN"), count, dtype="int32")
        if widest is not None:
            last = call("end_of_run", widest, first, count, size("RUN"), size("DOT"), tile=Tile("int32"))
            self.b.helpers.add("end_of_run")
        steps = call("tl.range", first, last, tile=Tile("int32"), disable_licm=True)
        return self.b.loop("slot", steps, Tile("int32"))

    def unit(self, x: E) -> tuple[E, E]:
        """The power of 2 that x is multiplied by where fp16 is to hold it as an operand, and its inverse."""
        up, down = (E(Name(Tile("fp32"), self.b.fresh(name))) for name in ("up", "down"))
        self.b.helpers.add("unit")
        self.b.assign((up, down), call("unit", x, path("DOT"), tile=Tile("fp32")))
        return up, down

    def in_units(self, wide: E, name: str) -> tuple[E, tuple[E, E]]:
        """A quotient as an operand, in a unit in which fp16 holds it; and the unit with its inverse."""
        unit = self.unit(wide)
        narrow = self.b.helper("pin", (wide * unit[0]).to("dot"), size("PINNED"), dtype="dot")
        return self.b.let(f"b_{name}", narrow), unit

    @abstractmethod
    def build(self, name: str) -> Function:
        """The kernel."""


def pinned(config: Config | PairConfig, first: E) -> E:
    """Whether kernels on tensors like `first` may hold assembly: Triton's interpreter takes none."""
    return first.attr("device").attr("type").ne("cpu") if config.assembly else lift(False)


def program(axis: int) -> E:
    """The index of this program along one axis of the grid."""
    return call("tl.program_id", axis, tile=Tile("int32"))
