"""Processes that do jobs side by side: modules of this package, told of each job by a line of JSON.

Programs of their own, not those of `multiprocessing`, which would run the caller's script again.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

WORKERS = 16
"""Processes, at most; a core each."""
ANSWER = "answer: "
"""Begins the lines of a process that are answers."""

Job = Mapping[str, object]


def do_jobs(module: str, jobs: Sequence[Job], *, seconds: float = math.inf, workers: int = 0) -> Iterator[Any]:
    """The answers of a module's processes to jobs, in their order; a string says why there is none.

    seconds: beyond which no job is begun. workers: as many as there are cores, where 0.
    """
    begun = time.monotonic()
    count = min(workers or min(WORKERS, os.cpu_count() or 1), len(jobs))
    idle: SimpleQueue[_Worker] = SimpleQueue()
    for _ in range(count):
        idle.put(_Worker(module))

    def answer(job: Job) -> object:
        worker = idle.get()
        try:
            return worker.ask(job) if time.monotonic() - begun <= seconds else f"not begun within {seconds:g} s"
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(max_workers=max(1, count)) as pool:
        yield from pool.map(answer, jobs)
    for _ in range(count):
        idle.get().close()


def serve(work: Callable[[dict[str, Any]], object]) -> None:
    """Answer the jobs that stdin tells of; what goes wrong is answered as a string."""
    for line in sys.stdin:
        try:
            found = work(json.loads(line))
        except Exception as error:  # of a compiler, of any kind
            found = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(ANSWER + json.dumps(found), flush=True)


class _Worker:
    """A process that does one job after another; another one, where it dies."""

    def __init__(self, module: str) -> None:
        self.module = module
        self.process: subprocess.Popen[str] | None = None

    def ask(self, job: Job) -> object:
        """The answer to a job."""
        if self.process is None:
            self.process = self._begin()
        asked, told = self.process.stdin, self.process.stdout
        assert asked is not None
        assert told is not None
        try:
            asked.write(json.dumps(job) + "\n")
            asked.flush()
            while not (line := told.readline()).startswith(ANSWER):
                if not line:
                    raise BrokenPipeError
        except OSError:
            return f"the process died with status {self.close()}"
        return json.loads(line.removeprefix(ANSWER))

    def _begin(self) -> subprocess.Popen[str]:
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-m", self.module]
        environment = {**os.environ, "PYTHONPATH": path}
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        return subprocess.Popen(command, text=True, env=environment, stdin=pipe, stdout=pipe, stderr=nothing)

    def close(self) -> int:
        """End the process; its status."""
        process, self.process = self.process, None
        if process is None:
            return 0
        with suppress(OSError):
            process.communicate()
        return process.wait()
