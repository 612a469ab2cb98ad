"""Times, errors and memory of an op beside its peers, in turns on one device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from sma_compiler.bench.peer_inputs import Input
from sma_compiler.bench.peer_rows import DECODE, DECODE_GOAL, HOST, HOST_GOAL, STEP, STEP_GOAL, Goal, Row
from sma_compiler.bench.peers import PEERS, Arguments, Peer, PeerMissing
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
    """A row's measurements: the op, its peers, and others beside them, of which no ratio is taken."""

    name: str
    shape: str
    ours: Side
    peers: tuple[Side, ...]
    goals: dict[str, Goal] = field(default_factory=dict)
    beside: tuple[Side, ...] = ()

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
    runs = {"sma": Peer(lambda x: call(row, op, x))}
    reasons: dict[str, str] = {}
    for name in (*row.peers, *row.beside):
        try:
            runs[name] = PEERS[name]()
        except PeerMissing as error:
            reasons[name] = str(error)
    found: dict[str, dict[str, Any]] = {name: {} for name in ("sma", *row.peers, *row.beside)}
    arguments = row.inputs(sizes, device)
    for turn in range(TURNS):
        for what, make in (("forward", forward), ("both", both)):
            for name, peer in runs.items():
                made = partial(make, row, peer, arguments)
                reason = _guarded(partial(_time_made, what, timer, made), found[name])
                reasons[name] = reasons.get(name) or reason
                if turn == 0 and what == "both" and not reason and device != "cpu":
                    found[name]["extra"] = _extra_memory(made())
    # after the times: what peers tune at their first call has to be tuned for the row's sizes
    short = {**sizes, "batch": 1, "time": min(sizes["time"], SHORT), "head": min(sizes["head"], HEADS)}
    short["group"] = min(sizes["group"], short["head"])
    exact = cache(partial(_exact, row, op, short, device))
    for name, peer in runs.items():
        reasons[name] = reasons[name] or _guarded(partial(_errors, row, peer, exact), found[name])
    ours, *others = (Side(name, **found[name], reason=reasons[name]) for name in found)
    peers, beside = tuple(others[: len(row.peers)]), tuple(others[len(row.peers) :])
    return Result(row.name, row.shape, ours, peers, {"forward": row.forward, "both": row.both}, beside)


def call(row: Row, op: CompiledOp, x: Arguments) -> Tensor:
    """The op of a row, of its arguments."""
    on_gpu = any(isinstance(tensor, Tensor) and tensor.is_cuda for tensor in x.values())
    found: Tensor = op(**x, plan=row.plan, backend=row.backend if on_gpu else "torch")
    return found


def _time(what: str, timer: Timer, run: Callable[[], object]) -> dict[str, float]:
    return {what: timer(run)}


def _time_made(what: str, timer: Timer, make: Callable[[], Callable[[], object]]) -> dict[str, float]:
    return {what: timer(make())}


def _guarded(measure: Callable[[], dict[str, float]], found: dict[str, Any]) -> str:
    """Add what is measured, of two numbers the smaller; where that fails, the first line of why."""
    try:
        for name, value in measure().items():
            found[name] = min(value, found.get(name, value))
    except Exception as error:  # a peer may fail in any way; the row says how
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return ""


def forward(_row: Row, peer: Peer, arguments: Arguments) -> Callable[[], object]:
    """A call without gradients, of a row's arguments."""
    taken = peer.given(arguments)

    def call() -> None:
        with torch.no_grad():
            peer.run(taken)

    return call


def both(row: Row, peer: Peer, arguments: Arguments) -> Callable[[], object]:
    """A call with its gradients, of a row's arguments; their cotangent is random, too."""
    taken = dict(peer.given(arguments))
    leaves = {name: x.detach().requires_grad_() for name, x in row.trained(taken).items()}
    taken |= leaves
    with torch.no_grad():
        cotangent = torch.randn_like(peer.run(taken))

    def call() -> None:
        torch.autograd.grad(peer.run(taken), list(leaves.values()), cotangent)

    return call


@dataclass(frozen=True)
class Exact:
    """Arguments of an op in the precision of calls, a cotangent, and the result and the gradients in fp64."""

    arguments: Arguments
    cotangent: Tensor
    y: Tensor
    gradients: tuple[Tensor, ...]


def _exact(row: Row, op: CompiledOp, sizes: Mapping[str, int], device: str) -> Exact:
    arguments = row.inputs(sizes, device, seed=1)
    double: dict[str, Any] = {name: _double(x) for name, x in arguments.items()}
    leaves = {name: x.requires_grad_() for name, x in row.trained(double).items()}
    y: Tensor = op.reference(**{**double, **leaves})
    cotangent = torch.randn_like(y, dtype=torch.bfloat16)
    return Exact(arguments, cotangent, y.detach(), torch.autograd.grad(y, list(leaves.values()), cotangent.double()))


def _errors(row: Row, peer: Peer, make_exact: Callable[[], Exact]) -> dict[str, float]:
    exact = make_exact()

    def run(x: Arguments) -> Tensor:
        return peer.taken(peer.run(peer.given(x)))

    with torch.no_grad():
        error = _relative(run(exact.arguments), exact.y)
    leaves = {name: x.detach().requires_grad_() for name, x in row.trained(exact.arguments).items()}
    y = run({**exact.arguments, **leaves})
    found = torch.autograd.grad(y, list(leaves.values()), exact.cotangent.to(y.dtype))
    worst = max(_relative(one, other) for one, other in zip(found, exact.gradients, strict=True))
    return {"error": max(error, _relative(y.detach(), exact.y)), "gradient": worst}


def _double(x: Input) -> Input:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


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
    """The decoding step of a recurrence beside a copy of its state: the fraction of the copy's bandwidth."""
    sizes = {**STEP, **(sizes or {}), "time": 1}
    row = Row("step", "mamba2", sizes, (), STEP_GOAL, STEP_GOAL)
    op = row.op
    given = _one_position(op, row.inputs(sizes, device))
    head, key, value = (sizes[axis] for axis in ("head", "key", "value"))
    state = op.empty_state(sizes["batch"], device=device, head=head, key=key, value=value)
    matrix = max((x for x in state.values()), key=lambda x: x.numel())
    copied = torch.empty_like(matrix)
    runs: dict[str, Callable[[], object]] = {
        "copy": lambda: copied.copy_(matrix),
        "step": lambda: op.step(**given, state=state, inplace=True),
    }
    return _beside_copy(row, timer, runs)


def measure_decode(device: str, timer: Timer = gpu_median, sizes: Mapping[str, int] | None = None) -> Single:
    """The decoding step of softmax beside a copy: the fraction of its bandwidth at which the cache is read.

    The cache has a last empty slot, and has it again before each step, which costs two small launches. What is copied
    are the keys: read and written, they are as many bytes as keys and values that are read.
    """
    sizes = {**DECODE, **(sizes or {})}
    row = Row("decode", "attention", sizes, (), DECODE_GOAL, DECODE_GOAL)
    op, slots = row.op, sizes["time"]
    given = _one_position(op, row.inputs({**sizes, "time": 1, "group": sizes["head"]}, device))
    given |= {name: given[name][:, : sizes["group"]].contiguous() for name in ("k", "v")}
    axes = {axis: sizes[axis] for axis in ("head", "key", "value", "group")}
    state = op.empty_state(sizes["batch"], slots, torch.bfloat16, device, **axes).to(torch.bfloat16)
    places = next(x for name, x in state.items() if name.endswith(".pos"))
    keys, values = (x for x in state.values() if x.dim() == 4)
    for x in (keys, values):
        x.normal_()
    places.copy_(torch.arange(-1, slots - 1, device=device).expand_as(places))
    copied = torch.empty_like(keys)

    def step() -> None:
        places[:, :1].fill_(-1)
        state["position"].fill_(slots - 1)
        op.step(**given, state=state, inplace=True, backend="triton" if keys.is_cuda else "torch")

    return _beside_copy(row, timer, {"copy": lambda: copied.copy_(keys), "step": step})


def _one_position(op: CompiledOp, arguments: Arguments) -> dict[str, Any]:
    """A step's arguments, of those of a call of one position."""
    times = {decl.name: decl.dims.index("time") for decl in op.params if "time" in decl.dims}
    return {name: x.squeeze(times[name]) if name in times else x for name, x in arguments.items()}


def _beside_copy(row: Row, timer: Timer, runs: Mapping[str, Callable[[], object]]) -> Single:
    """The time of `copy` over that of `step`."""
    details: dict[str, Any] = {}
    reason = ""
    for _ in range(TURNS):
        for name, run in runs.items():
            reason = reason or _guarded(partial(_time, name, timer, run), details)
    fraction = details["copy"] / details["step"] if set(runs) <= set(details) else None
    return Single(row.name, row.shape, "of the bandwidth of a copy", fraction, row.forward, False, reason, details)


def measure_host(device: str, calls: int = 500) -> Single:
    """Microseconds of the host for a forward call without gradients."""
    row = Row("host", "mamba2", HOST, (), HOST_GOAL, HOST_GOAL)
    op, arguments = row.op, row.inputs(HOST, device)

    def measure() -> dict[str, float]:
        found = []
        with torch.no_grad():
            for turn in range(6):
                start = time.perf_counter()
                for _ in range(calls // 5):
                    call(row, op, arguments)
                if turn:
                    found.append(1e6 * (time.perf_counter() - start) / (calls // 5))
                if device != "cpu":
                    torch.cuda.synchronize()
        return {"host": statistics.median(found)}

    details: dict[str, Any] = {}
    reason = _guarded(measure, details)
    return Single("host", row.shape, "µs of the host a call", details.get("host"), HOST_GOAL, True, reason, details)
