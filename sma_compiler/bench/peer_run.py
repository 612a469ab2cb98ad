"""Times, errors and memory of an op beside its peers, in turns on one device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sma_compiler.bench.peer_rows import DECODE, DECODE_GOAL, HOST, HOST_GOAL, Goal, Row, inputs, trained
from sma_compiler.bench.peers import PEERS, PeerMissing, Run
from sma_compiler.errors import SmaError
from sma_compiler.runtime.op import CompiledOp

TURNS = 2
"""How often each candidate is timed; the smaller median counts."""
SHORT = 512
"""Positions at which errors are measured."""
HEADS = 4
"""Heads then, at most."""

Timer = Callable[[Callable[[], object]], float]
"""Milliseconds of a call."""


class NoDevice(SmaError):
    """Peers are measured on a GPU."""

    def __init__(self) -> None:
        super().__init__("--peers needs a CUDA device with Triton")


@dataclass(frozen=True)
class Side:
    """One implementation. forward, both: medians in milliseconds. extra: peak MiB of training above its inputs.

    error: of the result against fp64, relative root mean square; gradient: the worst of its gradients. Each is None
    where it was not measured, and then `reason` says why.
    """

    name: str
    forward: float | None = None
    both: float | None = None
    extra: float | None = None
    error: float | None = None
    gradient: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Result:
    """A row's measurements: the op, then its peers."""

    name: str
    shape: str
    ours: Side
    peers: tuple[Side, ...]
    goals: dict[str, Goal] = field(default_factory=dict)

    def best(self, what: str) -> Side | None:
        """The fastest peer in `forward` or in `both`; None where none was timed."""
        timed = [side for side in self.peers if getattr(side, what) is not None]
        return min(timed, key=lambda side: getattr(side, what), default=None)

    def ratio(self, what: str) -> float | None:
        """The best peer's time over the op's."""
        mine, best = getattr(self.ours, what), self.best(what)
        return None if mine is None or best is None else float(getattr(best, what) / mine)

    def to_json(self) -> dict[str, Any]:
        """Plain data, the ratios included."""
        return {**asdict(self), "ratio": {what: self.ratio(what) for what in ("forward", "both")}}


@dataclass(frozen=True)
class Single:
    """A number that has a goal of its own. less: whether smaller is better. reason: why there is none."""

    name: str
    shape: str
    what: str
    value: float | None
    goal: Goal
    less: bool
    reason: str = ""
    details: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def gpu_median(run: Callable[[], object]) -> float:
    """Milliseconds of a call on the device: the median of Triton's benchmark, the cache cold."""
    from triton.testing import do_bench

    return float(do_bench(run, warmup=25, rep=100, return_mode="median"))


def measure_row(row: Row, device: str, timer: Timer = gpu_median, sizes: Mapping[str, int] | None = None) -> Result:
    """Measure one row. sizes: instead of the row's own."""
    sizes = {**row.sizes, **(sizes or {})}
    op = row.op
    runs: dict[str, Run] = {"sma": lambda x: _call(op, x)}
    reasons: dict[str, str] = {}
    for name in row.peers:
        try:
            runs[name] = PEERS[name]()
        except PeerMissing as error:
            reasons[name] = str(error)
    found: dict[str, dict[str, Any]] = {name: {} for name in ("sma", *row.peers)}
    arguments = inputs(row, sizes, device)
    for turn in range(TURNS):
        for what, make in (("forward", _forward), ("both", _both)):
            for name, run in runs.items():
                reason = _guarded(partial(_time, what, timer, make(row, run, arguments)), found[name])
                reasons[name] = reasons.get(name) or reason
                if turn == 0 and what == "both" and not reason and device != "cpu":
                    found[name]["extra"] = _extra_memory(make(row, run, arguments))
    # after the times: what peers tune at their first call has to be tuned for the row's sizes
    short = {**sizes, "batch": 1, "time": min(sizes["time"], SHORT), "head": min(sizes["head"], HEADS)}
    short["group"] = min(sizes["group"], short["head"])
    for name, run in runs.items():
        reasons[name] = reasons[name] or _guarded(partial(_errors, row, op, run, short, device), found[name])
    ours, *peers = (Side(name, **found[name], reason=reasons[name]) for name in found)
    return Result(row.name, row.shape, ours, tuple(peers), {"forward": row.forward, "both": row.both})


def _call(op: CompiledOp, x: Mapping[str, Tensor]) -> Tensor:
    call: Callable[..., Tensor] = op
    return call(**x, backend="triton" if x["q"].is_cuda else "torch")


def _time(what: str, timer: Timer, run: Callable[[], object]) -> dict[str, float]:
    return {what: timer(run)}


def _guarded(measure: Callable[[], dict[str, float]], found: dict[str, Any]) -> str:
    """Add what is measured, of two numbers the smaller; where that fails, the first line of why."""
    try:
        for name, value in measure().items():
            found[name] = min(value, found.get(name, value))
    except Exception as error:  # a peer may fail in any way; the row says how
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return ""


def _forward(_row: Row, run: Run, arguments: Mapping[str, Tensor]) -> Callable[[], object]:
    def call() -> None:
        with torch.no_grad():
            run(arguments)

    return call


def _both(row: Row, run: Run, arguments: Mapping[str, Tensor]) -> Callable[[], object]:
    leaves = {name: x.detach().requires_grad_() for name, x in trained(row, arguments).items()}
    taken = {**arguments, **leaves}
    cotangent = torch.randn_like(arguments["v"])

    def call() -> None:
        torch.autograd.grad(run(taken), list(leaves.values()), cotangent)

    return call


def _errors(row: Row, op: CompiledOp, run: Run, sizes: Mapping[str, int], device: str) -> dict[str, float]:
    arguments = inputs(row, sizes, device, seed=time.time_ns() % 2**31)
    cotangent = torch.randn_like(arguments["v"])

    def gradients(function: Callable[..., Tensor], dtype: torch.dtype | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        taken = {name: x.detach().to(dtype or x.dtype) for name, x in arguments.items()}
        leaves = [x.requires_grad_() for x in trained(row, taken).values()]
        y = function(taken)
        return y.detach(), torch.autograd.grad(y, leaves, cotangent.to(y.dtype))

    exact, exact_gradients = gradients(lambda x: op.reference(**x), torch.float64)
    with torch.no_grad():
        error = _relative(run(arguments), exact)
    y, found = gradients(run, None)
    worst = max(_relative(one, other) for one, other in zip(found, exact_gradients, strict=True))
    return {"error": max(error, _relative(y, exact)), "gradient": worst}


def _relative(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def _extra_memory(run: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated() - before) / 2**20


def measure_step(device: str, timer: Timer = gpu_median, sizes: Mapping[str, int] | None = None) -> Single:
    """The decoding step beside a copy of its state: the fraction of the copy's bandwidth."""
    sizes = {**DECODE, **(sizes or {})}
    row = Row("step", "mamba2", {**sizes, "time": 1}, (), DECODE_GOAL, DECODE_GOAL)
    op = row.op
    arguments: dict[str, Any] = {
        name: x.squeeze(1) if x.dim() > 2 else x for name, x in inputs(row, {**sizes, "time": 1}, device).items()
    }
    head, key, value = (sizes[axis] for axis in ("head", "key", "value"))
    state = op.empty_state(sizes["batch"], device=device, head=head, key=key, value=value)
    matrix = max((x for x in state.values()), key=lambda x: x.numel())
    copied = torch.empty_like(matrix)
    details: dict[str, Any] = {}
    steps: dict[str, Callable[[], object]] = {
        "copy": lambda: copied.copy_(matrix),
        "step": lambda: op.step(**arguments, state=state, inplace=True),
    }
    reason = ""
    for _ in range(TURNS):
        for name, run in steps.items():
            reason = reason or _guarded(partial(_time, name, timer, run), details)
    fraction = details["copy"] / details["step"] if {"copy", "step"} <= set(details) else None
    return Single("step", row.shape, "of the bandwidth of a copy", fraction, DECODE_GOAL, False, reason, details)


def measure_host(device: str, calls: int = 500) -> Single:
    """Microseconds of the host for a forward call without gradients."""
    row = Row("host", "mamba2", HOST, (), HOST_GOAL, HOST_GOAL)
    op, arguments = row.op, inputs(row, HOST, device)

    def measure() -> dict[str, float]:
        found = []
        with torch.no_grad():
            for turn in range(6):
                start = time.perf_counter()
                for _ in range(calls // 5):
                    _call(op, arguments)
                if turn:
                    found.append(1e6 * (time.perf_counter() - start) / (calls // 5))
                if device != "cpu":
                    torch.cuda.synchronize()
        return {"host": statistics.median(found)}

    details: dict[str, Any] = {}
    reason = _guarded(measure, details)
    return Single("host", row.shape, "µs of the host a call", details.get("host"), HOST_GOAL, True, reason, details)
