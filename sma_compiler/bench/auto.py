"""Measurements of what plan="auto" might take, shape by shape: every candidate, forward and backward apart.

They are kept in a file as they are made: a run may be cut off, and goes on where it stopped. What "auto" takes plays no
part in them: `bench.verdict` says, on any machine, how far its pick is from the best.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sma_compiler.bench.auto_rows import AutoRow
from sma_compiler.errors import SmaError
from sma_compiler.interface import library
from sma_compiler.kernel.errors import NoTritonKernel
from sma_compiler.runtime.program import row_of
from sma_compiler.runtime.tuned import device_name
from sma_compiler.runtime.versions import generator, triton_version
from sma_compiler.tune.compile import WORKERS, Work, compile_work, work_of
from sma_compiler.tune.report import Candidate, Row
from sma_compiler.tune.search import check, time_rows
from sma_compiler.tune.setting import Situation, from_shape, kernel_target, situation
from sma_compiler.tune.space import candidates, signatures
from sma_compiler.tune.timers import by_events, timer_of
from sma_compiler.tune.usage import by_role, known

LIMIT = 6
"""Candidates of a shape."""
CHECKED = (150,)
"""Positions at which each is checked before it is timed: two whole chunks and a ragged one."""
WARMUP, REPEAT = 5, 20
"""Milliseconds that a timing on a GPU warms up and lasts."""
COMPILING = 0.4
"""The part of the time that compiling may take."""


class ForeignMeasurements(SmaError):
    """A file of measurements that is none."""

    def __init__(self, path: Path, why: object) -> None:
        super().__init__(f"{path}: no measurements of `sma bench --suite auto` ({why}): name another file")


@dataclass(frozen=True)
class Timed:
    """One candidate: its times in seconds, the error of its check over the bound, and why it has none.

    ahead, behind: the configurations of its forward and its backward kernels, by which other picks that have the same
    are known. recorded: the forward pass that gradients follow. needs: warps, registers, bytes spilled and bytes of
    shared memory of its kernels, by role.
    """

    backend: str
    pick: str
    ahead: str = ""
    behind: str = ""
    forward: float | None = None
    recorded: float | None = None
    backward: float | None = None
    error: float | None = None
    refused: str = ""
    needs: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """One shape. generator, torch, triton: the versions. date: UTC. seconds: that it took.

    error: why there is nothing.
    """

    name: str
    device: str
    generator: str
    torch: str
    triton: str
    date: str
    candidates: tuple[Timed, ...] = ()
    seconds: float = 0.0
    error: str = ""


def read(path: Path) -> dict[str, Found]:
    """The measurements in a file, by row; none where it does not exist.

    Raises:
        ForeignMeasurements: it holds something else.
    """
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        rows = ({**one, "candidates": tuple(Timed(**x) for x in one["candidates"])} for one in data["rows"])
        return {one["name"]: Found(**one) for one in rows}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise ForeignMeasurements(path, error) from None


def write(path: Path, found: Mapping[str, Found]) -> None:
    """Replace the file, whole at any moment; what is missing of a candidate is left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for one in found.values():
        timed = [{name: x for name, x in asdict(own).items() if x not in (None, "", {})} for own in one.candidates]
        rows.append({**asdict(one), "candidates": timed})
    handle, draft = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write('{"rows": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]}\n")
    os.replace(draft, path)


def run_rows(
    rows: Sequence[AutoRow], path: Path, device: str, seconds: float | None, tick: Callable[[str], None]
) -> dict[str, Found]:
    """Measure the rows that the file lacks for this device and version, until the time is up.

    seconds: for all; None: as long as it takes. tick: called with the name of each row.
    """
    begun = time.monotonic()
    found = read(path)
    place = torch.device(device)
    here = device_name(place), generator()
    left = []
    for row in rows:
        before = found.get(row.name)
        if before is not None and (before.device, before.generator) == here and not before.error:
            tick(row.name)
        else:
            left.append(row)
    refused = _compile(left, place, seconds)
    for row in left:
        tick(row.name)
        if seconds is not None and time.monotonic() - begun > seconds:
            break
        found[row.name] = measure_row(row, place, refused)
        write(path, found)
    return found


def situation_of(row: AutoRow, place: torch.device) -> Situation:
    """A row on this machine."""
    dtype = "float32" if place.type == "cpu" else "bfloat16"
    given = library(row.op).program, row.shape(place.type), dtype, row_of(place), kernel_target(place)
    return situation(*given, training=True)


def _compile(rows: Sequence[AutoRow], place: torch.device, seconds: float | None) -> dict[tuple[str, Candidate], str]:
    """Compile the kernels of all candidates of all rows, the likeliest of every row first. Why some are not."""
    if not kernel_target(place):
        return {}
    works: dict[tuple[int, str, Candidate], list[Work]] = {}
    for row in rows:
        try:
            at = situation_of(row, place)
        except SmaError:
            continue
        kernels = [one for one in candidates(at, LIMIT) if one.backend == "triton"]
        works |= {(number, row.name, one): work_of(at, one, CHECKED) for number, one in enumerate(kernels)}
    ordered = {key[1:]: works[key] for key in sorted(works, key=lambda key: key[0])}
    limit = {} if seconds is None else {"seconds": COMPILING * seconds}
    return compile_work(ordered, min(WORKERS, os.cpu_count() or 1), **limit)


def measure_row(row: AutoRow, device: torch.device, refused: Mapping[tuple[str, Candidate], str]) -> Found:
    """Every candidate at one shape. refused: why some were not compiled."""
    begun = time.monotonic()
    date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    blank = Found(row.name, device_name(device), generator(), torch.__version__, triton_version(), date)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    try:
        setting = from_shape(library(row.op).program, row.shape(device.type), dtype, device, training=True, seed=0)
        at = setting.situation
        rows = []
        for one in candidates(at, LIMIT):
            why = refused.get((row.name, one), "")
            unchecked = why or one.backend == "torch"  # whose plans are what kernels are checked by
            rows.append(Row(one, refused=why) if unchecked else check(setting, one, 0, CHECKED))
        timer = timer_of(device) if device.type == "cpu" else partial(by_events, warmup=WARMUP, repeat=REPEAT)
        timed = tuple(_timed(at, one) for one in time_rows(setting, rows, timer))
    except (SmaError, RuntimeError) as error:
        return replace(blank, error=str(error).splitlines()[0])
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return replace(blank, candidates=timed, seconds=round(time.monotonic() - begun, 2))


def _timed(at: Situation, row: Row) -> Timed:
    one = row.candidate
    needs: dict[str, tuple[int, ...]] = {}
    try:
        ahead, behind = signatures(at, one)
        if one.backend == "triton":
            text = at.program.kernels.text(one.pick, at.sizes, at.dtype, at.target)
            used = by_role(at.program.op.name, known(text, at.target))
            needs = {role: (x.warps, x.registers, x.spilled, x.shared) for role, x in used.items()}
    except NoTritonKernel:
        ahead = behind = ""
    forward, recorded, backward, error = map(_short, (row.forward, row.recorded, row.backward, row.error))
    return Timed(one.backend, one.pick, ahead, behind, forward, recorded, backward, error, row.refused, needs)


def _short(x: float | None) -> float | None:
    return None if x is None else float(f"{x:.4g}")
