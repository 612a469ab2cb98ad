"""Measurements of what plan="auto" might take, shape by shape: every candidate, forward and backward apart.

They are kept in a file as they are made: a run may be cut off, and goes on where it stopped. What "auto" takes plays no
part in them: `bench.verdict` says, on any machine, how far its pick is from the best.
"""

from __future__ import annotations

import json
import math
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
from sma_compiler.kernel.choices import read_plan
from sma_compiler.runtime.tuned import device_name
from sma_compiler.runtime.usage import by_role, known
from sma_compiler.runtime.versions import triton_version
from sma_compiler.tune.compile import Work, compile_work, read_work
from sma_compiler.tune.report import Candidate, Row
from sma_compiler.tune.search import time_rows
from sma_compiler.tune.setting import Setting, from_shape
from sma_compiler.tune.timers import by_events, timer_of
from sma_compiler.tune.workers import do_jobs

LIMIT = 6
"""Candidates of a shape."""
WARMUP, REPEAT = 6, 24
"""Milliseconds that a timing on a GPU warms up and lasts."""
COMPILING = 0.4
"""The part of the time that compiling may take."""


class ForeignMeasurements(SmaError):
    """A file of measurements that is none."""

    def __init__(self, path: Path, why: object) -> None:
        super().__init__(f"{path}: no measurements of `sma bench --suite auto` ({why}): name another file")


@dataclass(frozen=True)
class Timed:
    """One candidate: its times in seconds, and why it has none.

    file: a hash of its kernels. ahead, behind: the configurations of its forward and its backward kernels, by which
    other picks that have the same are known. recorded: the forward pass that gradients follow. needs: warps, registers,
    bytes spilled and bytes of shared memory of its kernels, by role.
    """

    backend: str
    pick: str
    ahead: str = ""
    behind: str = ""
    file: str = ""
    forward: float | None = None
    recorded: float | None = None
    backward: float | None = None
    refused: str = ""
    needs: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Beside:
    """Seconds of another implementation, or of the op's own call beside it: forward, and with gradients.

    reason: why there is none. date: UTC.
    """

    forward: float | None = None
    both: float | None = None
    reason: str = ""
    date: str = ""


@dataclass(frozen=True)
class Found:
    """One shape. torch, triton: the versions. date: UTC, of what was measured last. seconds: that it took.

    peers: other implementations. called: the op under plan="auto" of the same arguments, with the same gradients.
    error: why there is nothing.
    """

    name: str
    device: str
    torch: str
    triton: str
    date: str
    candidates: tuple[Timed, ...] = ()
    seconds: float = 0.0
    error: str = ""
    peers: Mapping[str, Beside] = field(default_factory=dict)
    called: Beside = Beside()


def read(path: Path) -> dict[str, Found]:
    """The measurements in a file, by row; none where it does not exist.

    Raises:
        ForeignMeasurements: it holds something else.
    """
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        return {one["name"]: _found(one) for one in data["rows"]}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise ForeignMeasurements(path, error) from None


def _found(one: dict[str, Any]) -> Found:
    candidates = tuple(Timed(**x) for x in one["candidates"])
    peers = {name: Beside(**x) for name, x in one["peers"].items()}
    called = Beside(**one.get("called", {}))
    return Found(**{**one, "candidates": candidates, "peers": peers, "called": called})


def write(path: Path, found: Mapping[str, Found]) -> None:
    """Replace the file, whole at any moment; what is missing of a candidate is left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for one in found.values():
        plain = asdict(one)
        timed = [_known(own) for own in plain["candidates"]]
        peers = {name: _known(own) for name, own in plain["peers"].items()}
        rows.append({**plain, "candidates": timed, "peers": peers, "called": _known(plain["called"])})
    handle, draft = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write('{"rows": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]}\n")
    os.replace(draft, path)


def _known(plain: dict[str, Any]) -> dict[str, Any]:
    return {name: x for name, x in plain.items() if x not in (None, "", {})}


def run_rows(
    rows: Sequence[AutoRow], path: Path, device: str, seconds: float | None, tick: Callable[[str], None]
) -> dict[str, Found]:
    """Measure the candidates that the file lacks for this device and these versions, until the time is up.

    seconds: for all; None: as long as it takes. tick: called with the name of each row.
    """
    begun = time.monotonic()
    found = read(path)
    place = torch.device(device)
    planned = plan_rows(rows, place, found, None if seconds is None else COMPILING * seconds)
    for row in rows:
        tick(row.name)
        if seconds is not None and time.monotonic() - begun > seconds:
            break
        kept, own = planned[row.name]
        if own:
            new = measure_row(row, place, own)
            old = found.get(row.name, new)
            found[row.name] = replace(new, candidates=(*kept, *new.candidates), peers=old.peers, called=old.called)
            write(path, found)
    return found


def plan_rows(
    rows: Sequence[AutoRow], place: torch.device, found: Mapping[str, Found], seconds: float | None, workers: int = 0
) -> dict[str, tuple[list[Timed], list[Timed] | str]]:
    """Of each row what was measured before and still holds, and the other candidates, compiled, the likeliest first.

    A string says why a row has none. seconds: beyond which nothing more is compiled. workers: see `compile_work`.
    """
    old = {row.name: _measured(found.get(row.name), place) for row in rows}
    picks = {name: [(one.backend, one.pick) for one in own] for name, own in old.items()}
    jobs = [
        {"row": asdict(row), "device": device_name(place), "limit": LIMIT, "picks": picks[row.name]} for row in rows
    ]
    planned: dict[str, tuple[list[Timed], list[Timed] | str]] = {}
    works: dict[tuple[int, str], list[Work]] = {}
    for row, answer in zip(rows, do_jobs("sma_compiler.bench.auto_plan", jobs), strict=True):
        if isinstance(answer, str):
            planned[row.name] = [], answer
            continue
        files = {(one["backend"], one["pick"]): one["file"] for one in answer}
        kept = [one for one in old[row.name] if files.get((one.backend, one.pick)) == one.file]
        known = {(one.backend, one.pick) for one in kept}
        new: list[Timed] = []
        for one in answer:
            made = [read_work(work) for work in one.pop("works")]
            if one.pop("wanted") and (one["backend"], one["pick"]) not in known:
                works[len(new), row.name] = made
                new.append(Timed(**one))
        planned[row.name] = kept, new
    limit = math.inf if seconds is None else seconds
    for (number, name), why in compile_work({key: works[key] for key in sorted(works)}, limit, workers).items():
        own = planned[name][1]
        assert not isinstance(own, str)
        own[number] = replace(own[number], refused=why)
    return planned


def _measured(found: Found | None, place: torch.device) -> list[Timed]:
    """The times that were measured on such a device with these versions."""
    here = device_name(place), torch.__version__, triton_version()
    if found is None or (found.device, found.torch, found.triton) != here:
        return []
    return [one for one in found.candidates if not one.refused]


def measure_row(row: AutoRow, device: torch.device, planned: list[Timed] | str) -> Found:
    """Candidates at one shape. They are not checked here, as those of `op.tune` are: what is best may be too good."""
    begun = time.monotonic()
    blank = Found(row.name, device_name(device), torch.__version__, triton_version(), now())
    if isinstance(planned, str):
        return replace(blank, error=planned)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    try:
        setting = from_shape(library(row.op).program, row.shape(device.type), dtype, device, training=True, seed=0)
        rows = [Row(Candidate(one.backend, *read_plan(one.pick)), refused=one.refused) for one in planned]
        timer = timer_of(device) if device.type == "cpu" else partial(by_events, warmup=WARMUP, repeat=REPEAT)
        timed = tuple(map(partial(_timed, setting), planned, time_rows(setting, rows, timer)))
    except (SmaError, RuntimeError) as error:
        return replace(blank, error=str(error).splitlines()[0])
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return replace(blank, candidates=timed, seconds=round(time.monotonic() - begun, 2))


def now() -> str:
    """UTC."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _timed(setting: Setting, one: Timed, row: Row) -> Timed:
    """A candidate with what was measured of it."""
    needs: dict[str, tuple[int, ...]] = {}
    if one.backend == "triton" and not row.refused:
        at = setting.situation
        text = at.program.kernels.text(one.pick, at.sizes, at.dtype, at.target)
        used = by_role(at.program.op.name, known(text, at.target))
        needs = {role: (x.warps, x.registers, x.spilled, x.shared) for role, x in used.items()}
    return replace(
        one,
        forward=_short(row.forward),
        recorded=_short(row.recorded),
        backward=_short(row.backward),
        refused=row.refused,
        needs=needs,
    )


def _short(x: float | None) -> float | None:
    return None if x is None else float(f"{x:.4g}")
