"""Compiles the kernels of candidates in processes of their own, so that timing them finds Triton's cache warm.

The processes need no GPU: they compile what launches of these sizes would, for the architecture that is asked for.
What is learnt on the way, registers and shared memory, is kept for the cost model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
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
    """Compile files, so many at once. Why some cannot be."""
    refused: dict[Candidate, str] = {}
    with ThreadPoolExecutor(max_workers=min(workers, len(work))) as pool:
        waiting = {one: pool.submit(_in_a_process, job) for one, job in work.items()}
        for one, future in waiting.items():
            found = future.result()
            if isinstance(found, str):
                refused[one] = f"does not compile: {found}"
            else:
                keep(work[one].text, work[one].target, found)
    return refused


def _in_a_process(job: Work) -> list[Resources] | str:
    """What a file's kernels need, or why they cannot be compiled.

    A program of its own, not one of `multiprocessing`, which would run the caller's script again.
    """
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "sma_compiler.tune.compile"]
    environment = {**os.environ, "PYTHONPATH": path}
    text = json.dumps(asdict(job))
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, env=environment)
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return f"the compiler's process died with status {done.returncode}"
    return found if isinstance(found, str) else [Resources(**one) for one in found]


def compile_one(job: Work) -> list[Resources] | str:
    """What the kernels need at the sizes of the setting, or why they cannot be compiled."""
    try:
        op = program_of(job.handle).op
        text = job.text
        made = compile_text(text, op, {**DEFAULTS, **dict(job.sizes)}, job.dtype, job.target)
        for sizes in job.checked:
            compile_text(text, op, dict(sizes), job.dtype, job.target)
        return [resources(one) for one in made]
    except Exception as error:  # of the compiler, of any kind
        return (str(error).strip() or type(error).__name__).splitlines()[0]


def main() -> None:
    """One job from stdin; what was found, as the last line of stdout."""
    torch.set_num_threads(1)
    given = json.load(sys.stdin)
    sizes = tuple((axis, n) for axis, n in given["sizes"])
    checked = tuple(tuple((axis, n) for axis, n in one) for one in given["checked"])
    found = compile_one(Work(given["handle"], given["pick"], sizes, given["dtype"], given["target"], checked))
    print(json.dumps(found if isinstance(found, str) else [asdict(one) for one in found]))


if __name__ == "__main__":
    main()
