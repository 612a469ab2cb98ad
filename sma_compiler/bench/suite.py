"""The standing measurements on a CPU: speed against the einsum program, memory, import time, time to facts."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import torch

from sma_compiler.bench.cases import CASES, SSD_SIZES, leaves
from sma_compiler.bench.timing import median_times
from sma_compiler.driver import lower
from sma_compiler.source import Source
from sma_compiler.syntax.locate import library_names, library_source

LENGTHS = (4096, 16384, 65536)
"""Positions at which the peak memory is measured."""

_IMPORT = """
import time, torch
start = time.perf_counter()
import sma_compiler
print(time.perf_counter() - start)
sma_compiler.compile
print(time.perf_counter() - start)
"""


@dataclass(frozen=True)
class Speed:
    """Median seconds of the chunked plan and of the einsum program, and how many times slower the second is."""

    what: str
    chunked: float
    einsum: float
    ratio: float


@dataclass(frozen=True)
class Memory:
    """MiB above a warm process at the peak of one forward and backward, inputs and gradients included."""

    length: int
    chunked: float
    einsum: float


@dataclass(frozen=True)
class FactsTime:
    """Median seconds from a library spec's text to its facts, in a process that has done it once."""

    spec: str
    seconds: float


@dataclass(frozen=True)
class Suite:
    """Everything that `sma bench --suite cpu` measures.

    import_seconds: of `import sma_compiler` after `import torch`. loaded_seconds: of that and of loading the compiler,
    which its first use does.
    """

    threads: int
    speed: tuple[Speed, ...]
    memory: tuple[Memory, ...]
    import_seconds: float
    loaded_seconds: float
    facts: tuple[FactsTime, ...]

    def to_json(self) -> dict[str, object]:
        return asdict(self)


Tick = Callable[[str], None]
"""Called with the name of what is measured next, once for each of `suite_steps`."""


def suite_steps(repeats: int) -> int:
    """How often `run_suite` ticks."""
    return 4 * (repeats + 1) + 2 * len(LENGTHS) + 1 + len(library_names())


def run_suite(repeats: int, tick: Tick) -> Suite:
    """Measures everything, the longest last; about two minutes on two cores with `repeats` = 5."""
    facts = tuple(measure_facts(name, repeats, tick) for name in library_names())
    tick("import")
    imported, loaded = import_seconds(repeats)
    speed = measure_speed(repeats, tick)
    memory = tuple(Memory(length, *(peak(case, length, tick) for case in CASES)) for length in LENGTHS)
    return Suite(torch.get_num_threads(), speed, memory, imported, loaded, facts)


def measure_speed(repeats: int, tick: Tick) -> tuple[Speed, ...]:
    """Forward without gradients, and forward with backward, at `SSD_SIZES` in fp32."""
    inputs = leaves(SSD_SIZES)

    def forward(case: str) -> None:
        with torch.no_grad():
            CASES[case](inputs)

    def both(case: str) -> None:
        y = CASES[case](inputs)
        torch.autograd.grad(y, inputs, torch.ones_like(y))

    found = []
    for what, run in (("forward", forward), ("forward + backward", both)):
        runs = {case: partial(run, case) for case in CASES}
        times = median_times(runs, repeats, partial(tick, what))
        found.append(Speed(what, times["chunked"], times["einsum"], times["einsum"] / times["chunked"]))
    return tuple(found)


def peak(case: str, length: int, tick: Tick) -> float:
    """MiB of one forward and backward at T = `length`, in a process of its own."""
    tick(f"memory of {case} at T = {length}")
    command = [sys.executable, "-m", "sma_compiler.bench.memory", case, str(length)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["mib"])


def import_seconds(repeats: int) -> tuple[float, float]:
    """Median seconds that `import sma_compiler` takes after `import torch`, and with the compiler; new processes."""
    command = [sys.executable, "-c", _IMPORT]
    outputs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(repeats)]
    imported, loaded = zip(*((float(x) for x in output.split()) for output in outputs), strict=True)
    return statistics.median(imported), statistics.median(loaded)


def measure_facts(name: str, repeats: int, tick: Tick) -> FactsTime:
    """From text to facts; each repetition has a comment of its own, so that no memo of texts can answer."""
    tick(f"facts of {name}")
    text = library_source(name).text
    times = []
    for turn in range(repeats + 1):
        start = time.perf_counter()
        lower(Source(f"{text}\n# {turn}\n", name), stop_after="plans")
        times.append(time.perf_counter() - start)
    return FactsTime(name, statistics.median(times[1:]))
