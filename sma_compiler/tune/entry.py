"""The tuner as `op.tune` and `sma tune` call it: shapes or tensors in, a table for each out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from secrets import randbelow

import torch

from sma_compiler.call_errors import NothingToTune
from sma_compiler.runtime.args import FLOATS
from sma_compiler.runtime.program import Program
from sma_compiler.tune.progress import bar
from sma_compiler.tune.report import Tuning
from sma_compiler.tune.search import LIMIT, STEPS, tune
from sma_compiler.tune.setting import from_shape, from_tensors

SECONDS = 60.0
"""For each shape, beyond which no further configuration is begun."""


def tune_all(
    program: Program,
    given: Sequence[object],
    named: Mapping[str, object],
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str | None = None,
    training: bool = True,
    limit: int = LIMIT,
    seconds: float = SECONDS,
) -> tuple[Tuning, ...]:
    """Tune for each shape, or for example tensors. Arguments: see `CompiledOp.tune`."""
    if limit < 1:
        raise NothingToTune(program.op.label, f"limit={limit}")
    shapes = _shapes(given)
    if shapes is None or named:
        settings = iter([from_tensors(program, given, named, training=training)])
        count = 1
    else:
        if not shapes:
            raise NothingToTune(program.op.label, "no shape and no tensor was given")
        if dtype not in FLOATS:
            raise NothingToTune(program.op.label, f"dtype={dtype} is no floating-point dtype that ops take")
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        seed = randbelow(2**31)
        settings = (from_shape(program, one, dtype, place, training=training, seed=seed) for one in shapes)
        count = len(shapes)
    found = []
    with bar(f"tuning {program.op.name}", STEPS * limit * count) as tick:
        for setting in settings:
            found.append(tune(setting, limit=limit, seconds=seconds, tick=tick))
    return tuple(found)


def _shapes(given: Sequence[object]) -> list[Mapping[str, int]] | None:
    """The shapes, alone or in lists; None where these are no shapes."""
    flat = [one for x in given for one in (x if isinstance(x, list | tuple) else [x])]
    return [one for one in flat if isinstance(one, Mapping)] if all(isinstance(one, Mapping) for one in flat) else None
