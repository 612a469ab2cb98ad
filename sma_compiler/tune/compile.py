"""Compiles the kernels of candidates in processes of their own, so that timing them finds Triton's cache warm.

The processes need no GPU: they compile what launches of these sizes would, for the architecture that is asked for.
What is learnt on the way, registers and shared memory, is kept for the cost model.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol, TypeVar

import torch

from sma_compiler.emit.source import DEFAULTS
from sma_compiler.runtime.program import program_of
from sma_compiler.runtime.self_check import TIMES, small_sizes
from sma_compiler.target.compile import compile_text
from sma_compiler.target.resources import Resources, resources
from sma_compiler.tune.report import Candidate
from sma_compiler.tune.setting import Setting, Situation
from sma_compiler.tune.usage import keep

WORKERS = 16
"""Processes, at most; a core each."""
ANSWER = "compiled: "
"""Begins the lines of a compiling process that are answers."""


class Compile(Protocol):
    """Compiles candidates. Why some cannot be, by candidate."""

    def __call__(self, setting: Setting, wanted: Sequence[Candidate]) -> Mapping[Candidate, str]:
        """Compile them."""
        ...


@dataclass(frozen=True)
class Work:
    """One file at some sizes, as another process can be told of it.

    handle: of the program. chosen: the sizes that the file is emitted for; sizes: those of the launches that are
    compiled, where not the same.
    """

    handle: str
    pick: str
    chosen: tuple[tuple[str, int], ...]
    dtype: str
    target: str
    sizes: tuple[tuple[str, int], ...] = ()

    @property
    def text(self) -> str:
        """The file."""
        return program_of(self.handle).kernels.text(self.pick, dict(self.chosen), self.dtype, self.target)


def compile_all(setting: Setting, wanted: Sequence[Candidate]) -> Mapping[Candidate, str]:
    """Compile candidates for the GPU of a setting: at its sizes, and at those of the check."""
    works = {one: work_of(setting.situation, one) for one in wanted}
    return compile_work(works, min(WORKERS, os.cpu_count() or 1))


def work_of(at: Situation, one: Candidate, times: Sequence[int] = TIMES) -> list[Work]:
    """A candidate's file at the sizes of a setting, and at those of its check with so many positions."""
    chosen, known = tuple(sorted(at.sizes.items())), tuple(sorted(at.known.items()))
    main = Work(at.program.handle, one.pick, chosen, at.dtype, at.target, known)
    small = [{**at.known, **small_sizes(at.program, at.sizes, time)} for time in times]
    return [main, *(replace(main, sizes=tuple(sorted(sizes.items()))) for sizes in small)]


K = TypeVar("K")


def compile_work(works: Mapping[K, Sequence[Work]], workers: int, seconds: float = math.inf) -> dict[K, str]:
    """Compile files, so many at once, the first ones first. Why some cannot be.

    seconds: beyond which none is begun.
    """
    refused: dict[K, str] = {}
    begun = time.monotonic()
    idle: SimpleQueue[_Worker] = SimpleQueue()
    for _ in range(workers):
        idle.put(_Worker())

    def compiled(job: Work) -> list[Resources] | str:
        worker = idle.get()
        try:
            return worker.compile(job) if time.monotonic() - begun <= seconds else f"not begun within {seconds:g} s"
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(max_workers=workers) as pool:
        waiting = [(one, job, pool.submit(compiled, job)) for one, jobs in works.items() for job in jobs]
        for one, job, future in waiting:
            found = future.result()
            if isinstance(found, str):
                refused.setdefault(one, f"does not compile: {found}")
            elif job is works[one][0]:
                keep(job.text, job.target, found)
    for _ in range(workers):
        idle.get().close()
    return refused


class _Worker:
    """A process that compiles one file after another.

    A program of its own, not one of `multiprocessing`, which would run the caller's script again.
    """

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def compile(self, job: Work) -> list[Resources] | str:
        """What a file's kernels need, or why they cannot be compiled."""
        if self.process is None:
            self.process = _begin()
        asked, told = self.process.stdin, self.process.stdout
        assert asked is not None
        assert told is not None
        try:
            asked.write(json.dumps(asdict(job)) + "\n")
            asked.flush()
            while not (line := told.readline()).startswith(ANSWER):
                if not line:
                    raise BrokenPipeError
        except OSError:
            status = self.close()
            return f"the compiler's process died with status {status}"
        found = json.loads(line.removeprefix(ANSWER))
        return found if isinstance(found, str) else [Resources(**one) for one in found]

    def close(self) -> int:
        """End the process; its status."""
        process, self.process = self.process, None
        if process is None:
            return 0
        with suppress(OSError):
            process.communicate()
        return process.wait()


def _begin() -> subprocess.Popen[str]:
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "sma_compiler.tune.compile"]
    environment = {**os.environ, "PYTHONPATH": path}
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    return subprocess.Popen(command, text=True, env=environment, stdin=pipe, stdout=pipe, stderr=nothing)


def compile_one(job: Work) -> list[Resources] | str:
    """What the kernels need, or why they cannot be compiled."""
    try:
        sizes = {**DEFAULTS, **dict(job.sizes or job.chosen)}
        made = compile_text(job.text, program_of(job.handle).op, sizes, job.dtype, job.target)
        return [resources(one) for one in made]
    except Exception as error:  # of the compiler, of any kind
        return (str(error).strip() or type(error).__name__).splitlines()[0]


def main() -> None:
    """Jobs from stdin, one a line; what was found of each, as a line of stdout."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        given = json.loads(line)
        for name in ("chosen", "sizes"):
            given[name] = tuple((axis, n) for axis, n in given[name])
        found = compile_one(Work(**given))
        print(ANSWER + json.dumps(found if isinstance(found, str) else [asdict(one) for one in found]), flush=True)


if __name__ == "__main__":
    main()
