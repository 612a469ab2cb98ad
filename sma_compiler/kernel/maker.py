"""What every builder of a kernel has: the statements so far, and the arguments."""

from __future__ import annotations

from abc import ABC, abstractmethod

from sma_compiler.kernel.arguments import Arguments
from sma_compiler.kernel.build import Builder, E, call, lift
from sma_compiler.kernel.config import Config, PairConfig
from sma_compiler.kernel.host import Host
from sma_compiler.kernel.nodes import Function, Tile

CONSTANTS = ("C", "BM", "BN", "BK", "BV", "K", "V", "MASKED", "PINNED", "DOT", "PRECISION", "STAGES")
"""Names that every chunked kernel is compiled for."""


class Maker(ABC):
    """Builds one kernel. host: the launcher that starts it. reserved: names of the file."""

    def __init__(self, host: Host, reserved: frozenset[str]) -> None:
        self.host = host
        self.b = Builder(reserved | set(CONSTANTS))
        self.arguments = Arguments(self.b)

    @abstractmethod
    def build(self, name: str) -> Function:
        """The kernel."""


def pinned(config: Config | PairConfig, first: E) -> E:
    """Whether kernels on tensors like `first` may hold assembly: Triton's interpreter takes none."""
    return first.attr("device").attr("type").ne("cpu") if config.assembly else lift(False)


def program(axis: int) -> E:
    """The index of this program along one axis of the grid."""
    return call("tl.program_id", axis, tile=Tile("int32"))
