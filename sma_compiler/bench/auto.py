"""How far the plan that plan="auto" takes without measuring is from the best that tuning finds, shape by shape.

Measurements are kept in a file as they are made: a run may be cut off, and goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sma_compiler.bench.auto_rows import AutoRow
from sma_compiler.errors import SmaError
from sma_compiler.interface import library
from sma_compiler.runtime.tuned import device_name
from sma_compiler.runtime.versions import generator
from sma_compiler.tune.report import Row
from sma_compiler.tune.search import measure
from sma_compiler.tune.setting import from_shape
from sma_compiler.tune.space import auto_candidate

WITHIN, SHARE, WORST = 1.15, 0.9, 1.6
"""What is promised: this near to the best, on such a part of the shapes, and never further."""


class ForeignMeasurements(SmaError):
    """A file of measurements that is none."""

    def __init__(self, path: Path, why: object) -> None:
        super().__init__(f"{path}: no measurements of `sma bench --suite auto` ({why}): name another file")


@dataclass(frozen=True)
class Found:
    """One shape. auto, best: what was taken and what is best, then their seconds; of the forward pass and of training.

    error: why there is nothing.
    """

    name: str
    device: str
    generator: str
    auto: str = ""
    forward: float | None = None
    best: str = ""
    best_forward: float | None = None
    training: float | None = None
    best_for_training: str = ""
    best_training: float | None = None
    configurations: int = 0
    seconds: float = 0.0
    error: str = ""

    @property
    def ratios(self) -> tuple[float, ...]:
        """Seconds of auto's pick over those of the best: forward, and training where it was measured."""
        pairs = ((self.forward, self.best_forward), (self.training, self.best_training))
        return tuple(own / best for own, best in pairs if own is not None and best)


@dataclass(frozen=True)
class Summary:
    """share: of the ratios within `WITHIN`. worst: the largest. shapes: measured; missing: not yet, or in vain."""

    share: float
    worst: float
    shapes: int
    missing: int

    @property
    def kept(self) -> bool:
        """Whether what is promised holds for what was measured."""
        return self.share >= SHARE and self.worst <= WORST


def read(path: Path) -> dict[str, Found]:
    """The measurements in a file, by row; none where it does not exist.

    Raises:
        ForeignMeasurements: it holds something else.
    """
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        return {one["name"]: Found(**one) for one in data["rows"]}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise ForeignMeasurements(path, error) from None


def write(path: Path, found: Mapping[str, Found]) -> None:
    """Replace the file, whole at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump({"torch": torch.__version__, "rows": [asdict(one) for one in found.values()]}, file, indent=1)
    os.replace(draft, path)


def run_rows(
    rows: Sequence[AutoRow],
    path: Path,
    device: str,
    seconds: float | None,
    tick: Callable[[str], None],
    *,
    each: float = 60.0,
) -> dict[str, Found]:
    """Measure the rows that the file lacks for this device and version, until the time is up.

    seconds: for all; None: as long as it takes. each: for one row. tick: called with the name of each row.
    """
    begun = time.monotonic()
    found = read(path)
    place = torch.device(device)
    here = device_name(place), generator()
    for row in rows:
        tick(row.name)
        known = found.get(row.name)
        if known is not None and (known.device, known.generator) == here and not known.error:
            continue
        if seconds is not None and time.monotonic() - begun > seconds:
            break
        found[row.name] = measure_row(row, place, each)
        write(path, found)
    return found


def measure_row(row: AutoRow, device: torch.device, seconds: float) -> Found:
    """Auto's pick and the best of all that tuning tries, at one shape."""
    begun = time.monotonic()
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    blank = Found(row.name, device_name(device), generator())
    try:
        program = library(row.op).program
        setting = from_shape(program, row.shape(device.type), dtype, device, training=True, seed=0)
        own = auto_candidate(setting.situation)
        rows = measure(setting, seconds=seconds)
    except (SmaError, RuntimeError) as error:
        return Found(**{**asdict(blank), "error": str(error).splitlines()[0]})
    fit = [one for one in rows if not one.refused]
    auto = next((one for one in fit if one.candidate.backend == own.backend and one.candidate.pick == own.pick), None)
    if auto is None:
        why = next((one.refused for one in rows if one.candidate.pick == own.pick), "it was not measured")
        return Found(**{**asdict(blank), "auto": str(own), "error": f"auto takes {own}: {why}"})
    best, trained = _least(fit, "forward"), _least(fit, "training")
    return Found(
        row.name,
        blank.device,
        blank.generator,
        str(own),
        auto.forward,
        str(best.candidate) if best else "",
        best.forward if best else None,
        auto.training,
        str(trained.candidate) if trained else "",
        trained.training if trained else None,
        len(rows),
        time.monotonic() - begun,
    )


def _least(rows: Sequence[Row], what: str) -> Row | None:
    fit = [row for row in rows if getattr(row, what) is not None]
    return min(fit, key=lambda row: float(getattr(row, what)), default=None)


def summary(rows: Sequence[AutoRow], found: Mapping[str, Found]) -> Summary:
    """What was found of the rows, all together."""
    own = [found[row.name] for row in rows if row.name in found and found[row.name].ratios]
    ratios = [ratio for one in own for ratio in one.ratios]
    near = sum(ratio <= WITHIN for ratio in ratios)
    return Summary(near / max(len(ratios), 1), max(ratios, default=1.0), len(own), len(rows) - len(own))
