"""Compiles the kernels of candidates in processes of their own, so that timing them finds Triton's cache warm.

The processes need no GPU: they compile what launches of these sizes would, for the architecture that is asked for.
What is learnt on the way, registers and shared memory, is kept for the cost model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

import torch

from sma_compiler.emit.source import DEFAULTS
from sma_compiler.runtime.drawn import heads_at
from sma_compiler.runtime.program import program_of
from sma_compiler.runtime.self_check import TIMES, small_sizes
from sma_compiler.runtime.triton_key import quicken
from sma_compiler.runtime.usage import keep
from sma_compiler.target.compile import WHOLE, compile_text
from sma_compiler.target.resources import resources
from sma_compiler.tune.report import Candidate
from sma_compiler.tune.setting import Setting, Situation
from sma_compiler.tune.workers import do_jobs, serve

SHARE = 8
"""Kernels of a file that a process compiles; the others of a longer one are compiled beside them."""
SECONDS = 35.0
"""Beyond which no other file is begun for a setting: the rest of its minute is for checking and timing."""


class Compile(Protocol):
    """Compiles candidates. Why some cannot be, by candidate."""

    def __call__(self, setting: Setting, wanted: Sequence[Candidate]) -> Mapping[Candidate, str]:
        """Compile them."""
        ...


@dataclass(frozen=True)
class Work:
    """One file at some sizes, as another process can be told of it.

    handle: of the program. chosen: the sizes that the file is emitted for; sizes: those of the launches that are
    compiled, where not the same. share: which of how many shares of these, where they are many.
    """

    handle: str
    pick: str
    chosen: tuple[tuple[str, int], ...]
    dtype: str
    target: str
    sizes: tuple[tuple[str, int], ...] = ()
    share: tuple[int, int] = WHOLE

    @property
    def text(self) -> str:
        """The file."""
        return program_of(self.handle).kernels.text(self.pick, dict(self.chosen), self.dtype, self.target)


def compile_all(setting: Setting, wanted: Sequence[Candidate]) -> Mapping[Candidate, str]:
    """Compile candidates for the GPU of a setting: at its sizes, and at those of the check."""
    return compile_work({one: work_of(setting.situation, one) for one in wanted}, SECONDS)


def work_of(at: Situation, one: Candidate, times: Sequence[int] = TIMES) -> list[Work]:
    """A candidate's file at the sizes of a setting, and at those of its check with so many positions."""
    functions = at.program.kernels.emitted(one.plan, at.sizes, at.dtype, at.target).functions
    shares = math.ceil(sum(function.jit for function in functions) / SHARE)

    def at_sizes(sizes: Mapping[str, int], heads: Mapping[str, int]) -> list[Work]:
        named = {f"{name}.head": n for name, n in heads.items()}
        found = tuple(sorted({**sizes, **numbers, **named}.items()))
        given = at.program.handle, one.pick, tuple(sorted(at.sizes.items())), at.dtype, at.target, found
        return [Work(*given, (number, shares)) for number in range(shares)]

    numbers = {name: n for name, n in at.known.items() if name not in at.sizes}
    small = [small_sizes(at.program, at.sizes, time) for time in times]
    every = [(at.sizes, at.heads), *((sizes, heads_at(at.program, sizes)) for sizes in small)]
    return [work for sizes, heads in every for work in at_sizes(sizes, heads)]


K = TypeVar("K")


def compile_work(works: Mapping[K, Sequence[Work]], seconds: float = math.inf, workers: int = 0) -> dict[K, str]:
    """Compile files side by side, the first ones first. Why some cannot be.

    seconds: beyond which none is begun. workers: as many as there are cores, where 0.
    """
    refused: dict[K, str] = {}
    jobs = [(one, job) for one, own in works.items() for job in own]
    told = [asdict(job) for _, job in jobs]
    found = do_jobs("sma_compiler.tune.compile", told, seconds=seconds, workers=workers)
    for (one, _), answer in zip(jobs, found, strict=True):
        if isinstance(answer, str):
            refused.setdefault(one, f"does not compile: {answer}")
    return refused


def compile_one(job: Work) -> int:
    """Compile a file; how many kernels. What they need at the sizes that it is for is kept for the cost model."""
    quicken()
    sizes = {**DEFAULTS, **dict(job.sizes or job.chosen)}
    made = compile_text(job.text, program_of(job.handle).op, sizes, job.dtype, job.target, share=job.share)
    if dict(job.chosen).items() <= sizes.items():
        keep(job.text, job.target, [resources(one) for one in made if not one.launch.again])
    return len(made)


def read_work(given: Mapping[str, Any]) -> Work:
    """From JSON."""
    pairs = {name: tuple((axis, n) for axis, n in given[name]) for name in ("chosen", "sizes")}
    return Work(**{**given, **pairs, "share": tuple(given["share"])})


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(lambda given: compile_one(read_work(given)))
