"""The tuner: few configurations, each checked on the device before it may win, timed, and the best kept."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial

import torch
from torch import Tensor

from sma_compiler.call_errors import Mistake
from sma_compiler.kernel.errors import NoTritonKernel
from sma_compiler.runtime.args import Arguments
from sma_compiler.runtime.kernels import Kernel, target_of
from sma_compiler.runtime.records import Record, save
from sma_compiler.runtime.self_check import SLACK, TIMES, check_pick, run_plan
from sma_compiler.runtime.triton import run_kernel
from sma_compiler.runtime.tuned import forget
from sma_compiler.tune.compile import Compile, compile_all
from sma_compiler.tune.progress import Tick, quiet
from sma_compiler.tune.report import Candidate, Row, Tuning
from sma_compiler.tune.setting import Setting, leaves
from sma_compiler.tune.space import candidates
from sma_compiler.tune.timers import Timer, timer_of

LIMIT = 12
"""Configurations that are measured for a setting, at most."""
STEPS = 3
"""Of each: compiled, checked, timed."""


def tune(
    setting: Setting,
    *,
    limit: int = LIMIT,
    timer: Timer | None = None,
    compiler: Compile = compile_all,
    tick: Tick = quiet,
    seconds: float = 60.0,
) -> Tuning:
    """Find the best plan and configuration for a setting, and keep it as a record. Arguments: see `measure`."""
    begun = time.monotonic()
    seed = secrets.randbelow(2**31)
    measured = measure(setting, limit=limit, timer=timer, compiler=compiler, tick=tick, seconds=seconds, seed=seed)
    forward = best_forward(setting, measured)
    training = best_training(setting, measured, seed) if setting.training else None
    for record in (forward, training):
        if record is not None:
            save(record)
    setting.program.replays.clear()
    setting.program.direct.clear()
    forget()
    return Tuning(str(setting), tuple(measured), forward, training, time.monotonic() - begun)


def measure(
    setting: Setting,
    *,
    limit: int = LIMIT,
    timer: Timer | None = None,
    compiler: Compile = compile_all,
    tick: Tick = quiet,
    seconds: float = 60.0,
    seed: int | None = None,
) -> list[Row]:
    """Compile, check and time the candidates for a setting.

    Args:
        setting: what for.
        limit: configurations, at most.
        timer: measures; that of the device, where none is given.
        compiler: compiles kernels before they are timed.
        tick: called `STEPS` times `limit` at most.
        seconds: beyond which no further configuration is begun.
        seed: of the inputs that they are checked on; a fresh one, where none is given.
    """
    begun = time.monotonic()
    seed = secrets.randbelow(2**31) if seed is None else seed
    found = candidates(setting.situation, limit)
    refused = compiler(setting, [one for one in found if one.backend == "triton"])
    tick(len(found), "compiled")
    rows = {one: Row(one, refused=refused.get(one, "")) for one in found}
    for one, row in rows.items():
        if not row.refused:
            late = time.monotonic() - begun > seconds and any(other.error is not None for other in rows.values())
            rows[one] = replace(row, refused=f"not begun within {seconds:g} s") if late else check(setting, one, seed)
        tick(1, f"checked {one}")
    return time_rows(setting, list(rows.values()), timer or timer_of(setting.device), tick)


def check(setting: Setting, one: Candidate, seed: int, times: Sequence[int] = TIMES) -> Row:
    """Whether a candidate computes the right thing, on random inputs of so many positions."""
    try:
        report = check_pick(
            setting.program,
            one.backend,
            one.pick,
            setting.sizes,
            setting.numbers,
            setting.dtype,
            setting.device,
            seed,
            times,
        )
    except NoTritonKernel as error:
        return Row(one, refused=error.reason)
    except Exception as error:  # whatever a compiler or a device does, it is no winner
        return Row(one, refused=_first_line(error))
    worst = report.worst
    ratio = 0.0 if worst is None else worst.ratio
    if worst is not None and not ratio <= SLACK:
        return Row(one, error=ratio, refused=f"wrong: {worst}")
    return Row(one, error=ratio)


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return f"{type(error).__name__}: {text.splitlines()[0]}" if not isinstance(error, Mistake) else text.splitlines()[0]


def time_rows(setting: Setting, rows: Sequence[Row], timer: Timer, tick: Tick = quiet) -> list[Row]:
    """Rows with times: of forward passes in turns, then of backward passes one after the other."""
    fit = {str(row.candidate): row for row in rows if not row.refused}
    runs = {name: partial(_quietly, runner(setting, row.candidate)) for name, row in fit.items()}
    times = timer(runs)
    found = {name: _with(row, "forward", times[name]) for name, row in fit.items()}
    for name, row in found.items():
        if setting.training and not row.refused:
            found[name] = _gradients(setting, row, timer)
        tick(1, f"timed {name}")
    return [found.get(str(row.candidate), row) for row in rows]


def _with(row: Row, what: str, time_of: float | Exception) -> Row:
    """The row with one of its times, or with why there is none. what: "forward", "recorded" or "backward"."""
    if isinstance(time_of, Exception):
        return replace(row, refused=_first_line(time_of))
    if what == "forward":
        return replace(row, forward=time_of)
    if what == "recorded":
        return replace(row, recorded=time_of)
    return replace(row, backward=time_of)


def _gradients(setting: Setting, row: Row, timer: Timer) -> Row:
    run, wanted = runner(setting, row.candidate), leaves(setting)
    try:
        with torch.enable_grad():
            y = run()
    except Exception as error:
        return replace(row, refused=_first_line(error))
    if not y.requires_grad:
        return row
    weights = torch.ones_like(y)

    def backward() -> object:
        return torch.autograd.grad(y, wanted, weights, retain_graph=True, allow_unused=True)

    times = timer({"recorded": run, "backward": backward})
    for what, time_of in times.items():
        row = _with(row, what, time_of)
    return row


def _quietly(run: Callable[[], Tensor]) -> Tensor:
    with torch.no_grad():
        return run()


def runner(setting: Setting, one: Candidate) -> Callable[[], Tensor]:
    """The call that is timed."""
    program, arguments = setting.program, setting.arguments
    if one.backend == "torch":
        return lambda: run_plan(program, one.plan, arguments.values)
    kernel = program.kernels.find(one.pick, setting.sizes, setting.dtype_name, target_of(setting.device))
    return lambda: _by_kernel(setting, one, kernel, arguments)


def _by_kernel(setting: Setting, one: Candidate, kernel: Kernel, arguments: Arguments) -> Tensor:
    return run_kernel(setting.program, one.pick, "ieee", kernel, arguments, None, None, False).result


def best_forward(setting: Setting, rows: Sequence[Row]) -> Record | None:
    """The record of the fastest forward pass."""
    fit = [row for row in rows if not row.refused and row.forward is not None]
    if not fit:
        return None
    row = min(fit, key=lambda row: row.forward or 0.0)
    return _record(setting, row.candidate, row, training=False)


def best_training(setting: Setting, rows: Sequence[Row], seed: int) -> Record | None:
    """The record of the fastest forward and backward pass.

    Of kernels of one plan the fastest forward configuration may go with the fastest backward one; together they are a
    file that was not timed as one, but is checked as every other.
    """
    fit = [row for row in rows if not row.refused and row.training is not None]
    joined: list[Row] = []
    for plan in dict.fromkeys(row.candidate.plan for row in fit if row.candidate.backend == "triton"):
        own = [row for row in fit if row.candidate.backend == "triton" and row.candidate.plan == plan]
        one, other = (min(own, key=lambda row: getattr(row, what)) for what in ("recorded", "backward"))
        if one is not other:
            choices = one.candidate.choices.only(backward=False) | other.candidate.choices.only(backward=True)
            joined.append(
                replace(one, candidate=replace(one.candidate, choices=choices), backward=other.backward, error=None)
            )
    for row in sorted([*fit, *joined], key=lambda row: row.training or 0.0):
        checked = row if row.error is not None else check(setting, row.candidate, seed)
        if not checked.refused:
            return _record(setting, row.candidate, replace(row, error=checked.error), training=True)
    return None


def _record(setting: Setting, one: Candidate, row: Row, *, training: bool) -> Record:
    assert row.forward is not None
    both = (one.predicted, one.predicted_backward)
    predicted = one.predicted if not training else None if None in both else sum(x or 0.0 for x in both)
    return Record(
        setting.key(training),
        setting.program.op.name,
        one.backend,
        one.plan,
        one.choices,
        (row.recorded if training else row.forward) or row.forward,
        row.backward if training else None,
        row.error or 0.0,
        predicted,
        setting.sizes,
        datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
