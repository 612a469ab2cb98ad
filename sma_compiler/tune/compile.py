"""Compiles the kernels of candidates in processes of their own, so that timing them finds Triton's cache warm.

The processes need no GPU: they compile what launches of these sizes would, for the architecture that is asked for.
What is learnt on the way, registers and shared memory, is kept for the cost model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Protocol

import torch

from sma_compiler.emit.source import DEFAULTS, emit
from sma_compiler.kernel.choices import read_plan
from sma_compiler.runtime.kernels import target_of
from sma_compiler.runtime.program import program_of
from sma_compiler.runtime.self_check import check_sizes
from sma_compiler.target.compile import compile_text
from sma_compiler.target.resources import Resources, resources
from sma_compiler.tune.report import Candidate
from sma_compiler.tune.setting import Setting
from sma_compiler.tune.usage import keep

WORKERS = 16
"""Processes, at most; a core each."""


class Compile(Protocol):
    """Compiles candidates. Why some cannot be, by candidate."""

    def __call__(self, setting: Setting, wanted: Sequence[Candidate]) -> Mapping[Candidate, str]:
        """Compile them."""
        ...


@dataclass(frozen=True)
class Work:
    """One file, as another process can be told of it. handle: of the program."""

    handle: str
    pick: str
    sizes: tuple[tuple[str, int], ...]
    dtype: str
    target: str
    checked: tuple[tuple[tuple[str, int], ...], ...]

    @property
    def text(self) -> str:
        """The file."""
        program = program_of(self.handle)
        plan, choices = read_plan(self.pick)
        return emit(program.op, program.plans, plan, dict(self.sizes), self.dtype, self.target, choices).text


def compile_all(setting: Setting, wanted: Sequence[Candidate]) -> Mapping[Candidate, str]:
    """Compile candidates for the GPU of a setting: at its sizes, and at those of the check."""
    if not wanted:
        return {}
    program, target = setting.program, target_of(setting.device)
    checked = tuple(tuple(sorted(sizes.items())) for sizes in check_sizes(program, setting.sizes))
    sizes = tuple(sorted(setting.sizes.items()))
    work = {one: Work(program.handle, one.pick, sizes, setting.dtype_name, target, checked) for one in wanted}
    return compile_work(work, min(WORKERS, os.cpu_count() or 1))


def compile_work(work: Mapping[Candidate, Work], workers: int) -> dict[Candidate, str]:
    """Compile files in so many processes. Why some cannot be."""
    refused: dict[Candidate, str] = {}
    with ProcessPoolExecutor(max_workers=min(workers, len(work)), mp_context=get_context("spawn")) as pool:
        waiting: dict[Candidate, Future[list[Resources]]] = {
            one: pool.submit(compile_one, job) for one, job in work.items()
        }
        for one, future in waiting.items():
            try:
                found = future.result()
            except Exception as error:  # of the compiler, of any kind; a process that dies is one, too
                refused[one] = f"does not compile: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
            else:
                keep(work[one].text, work[one].target, found)
    return refused


def compile_one(job: Work) -> list[Resources]:
    """In another process: what the kernels need at the sizes of the setting."""
    torch.set_num_threads(1)
    op = program_of(job.handle).op
    text = job.text
    made = compile_text(text, op, {**DEFAULTS, **dict(job.sizes)}, job.dtype, job.target)
    for sizes in job.checked:
        compile_text(text, op, dict(sizes), job.dtype, job.target)
    return [resources(one) for one in made]
