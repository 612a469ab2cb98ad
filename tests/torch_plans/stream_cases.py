"""Streams made by hand, and what they mean: every pair of positions, every step of its path, in fp64."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sma_compiler.ir.graph import Graph, sort_axes
from sma_compiler.ir.nodes import Expr, Kind
from sma_compiler.mask.nodes import Gate, Stream, Turn
from sma_compiler.torch_plans.evaluate import Evaluator
from sma_compiler.torch_plans.frame import Frame
from sma_compiler.torch_plans.named import Named
from sma_compiler.torch_plans.streams import advance_streams, run_streams

SIZES = {"batch": 2, "time": 13, "head": 2, "key": 3, "value": 2, "mode": 2}

Piece = tuple[Tensor, dict[str, Tensor]]


@dataclass
class Case:
    """Streams, their parameters, and the tensors they are applied to (`q`, `k`, `v`, each with its axes)."""

    sizes: dict[str, int] = field(default_factory=lambda: dict(SIZES))
    graph: Graph = field(default_factory=Graph)
    data: dict[str, Named] = field(default_factory=dict)
    streams: list[Stream] = field(default_factory=list)
    keyed: bool = True
    seed: int = 0

    def tensor(self, axes: str, low: float = -1, high: float = 1) -> Expr:
        """A new real parameter, uniform between two numbers, in fp64 values that fp32 has."""
        names = sort_axes((*axes.split(), *(("batch",) if "time" in axes.split() else ())))
        self.seed += 1
        generator = torch.Generator().manual_seed(self.seed)
        shape = [self.sizes[name.split("'")[0]] for name in names]
        values = low + (high - low) * torch.rand(shape, generator=generator)
        name = f"p{len(self.data)}"
        self.data[name] = Named(values.double(), names)
        return self.graph.param(name, Kind.REAL, names, False)

    def ids(self, chance: float = 0.3) -> Expr:
        """A new integer parameter over time that never falls."""
        generator = torch.Generator().manual_seed(self.seed + 1000)
        steps = torch.rand(self.sizes["batch"], self.sizes["time"], generator=generator) < chance
        name = f"p{len(self.data)}"
        self.data[name] = Named(steps.long().cumsum(1) + 5, ("batch", "time"))
        return self.graph.param(name, Kind.INT, ("batch", "time"), False)

    def over(self, axes: str, position: str, low: float = -1, high: float = 1) -> Expr:
        """A factor at a position; static where the axes lack `time`."""
        return self.graph.at(self.tensor(axes, low, high), position)

    def infinite(self, expr: Expr, chance: float) -> Expr:
        """Some entries of a parameter (or of a parameter at a position) become -inf."""
        param = getattr(expr, "x", expr)
        generator = torch.Generator().manual_seed(self.seed + 2000)
        old = self.data[param.name]
        gone = torch.rand(old.data.shape, generator=generator) < chance
        self.data[param.name] = Named(old.data.masked_fill(gone, -torch.inf), old.axes)
        return expr

    def named(self, name: str) -> Named:
        """One of q, k, v; the number 1 where there is none."""
        return self.data.get(name, Named(torch.ones((), dtype=torch.float64), ()))

    def operand(self, name: str, axes: str) -> None:
        """Makes one of q, k, v."""
        names = sort_axes((*axes.split(), *(("batch",) if "time" in axes.split() else ())))
        generator = torch.Generator().manual_seed(ord(name))
        shape = [self.sizes[axis] for axis in names]
        self.data[name] = Named(torch.randn(shape, generator=generator).double(), names)

    def key_size(self) -> int | None:
        """The argument `key` of `run_streams`."""
        if not self.keyed:
            return None
        tensors = [*(self.named(name).axes for name in "qkv"), *(axes_of(stream) for stream in self.streams)]
        return self.sizes["key"] if any("key" in axes for axes in tensors) else 1

    def contracted(self, stream: Stream) -> tuple[str, ...]:
        return (*stream.contracted, *(("key",) if self.keyed else ()))


def axes_of(stream: Stream) -> set[str]:
    """The axes of a stream's factors."""
    factors = [*stream.row, *stream.col, *stream.feed, *(g.log for g in stream.gates), *(t.rate for t in stream.turns)]
    return {axis for factor in factors for axis in factor.axes}


def cut(data: Mapping[str, Named], start: int, stop: int) -> dict[str, Named]:
    """Every tensor over time between two positions."""
    found = {}
    for name, x in data.items():
        at = x.axes.index("time") if "time" in x.axes else None
        found[name] = x if at is None else Named(x.data.narrow(at, start, stop - start), x.axes)
    return found


def frame_of(
    case: Case,
    data: Mapping[str, Named],
    dtype: torch.dtype,
    length: int,
    start: Tensor | None = None,
    lengths: Tensor | None = None,
    operand: torch.dtype | None = None,
) -> Frame:
    """A frame over some of the case's data."""
    evaluator = Evaluator(data, {**case.sizes, "time": length}, dtype)
    device = torch.device("cpu")
    return Frame(case.sizes["batch"], length, start, lengths, dtype, operand or dtype, device, evaluator)


def run(
    case: Case,
    plan: str,
    dtype: torch.dtype = torch.float64,
    data: Mapping[str, Named] | None = None,
    start: int = 0,
    state: Mapping[str, Tensor] | None = None,
    lengths: Tensor | None = None,
    length: int | None = None,
    operand: torch.dtype | None = None,
) -> tuple[Named, dict[str, Tensor]]:
    """The streams of a case by a plan."""
    data = case.data if data is None else data
    data = {name: x.to(dtype) if x.data.is_floating_point() else x for name, x in data.items()}
    length = case.sizes["time"] if length is None else length
    starts = torch.full((case.sizes["batch"],), start) if start else None
    frame = frame_of(case, data, dtype, length, starts, lengths, operand)
    one = Named(torch.ones((), dtype=dtype), ())
    q, k, v = (data.get(name, one) for name in "qkv")
    if plan == "advance":
        found, after = advance_streams(case.streams, q, k, v, frame, state, case.key_size())
        return one if found is None else found, after
    return run_streams(plan, case.streams, q, k, v, frame, state, case.key_size())


def meaning(case: Case) -> Named:
    """The sum over all pairs, each path summed step by step."""
    length = case.sizes["time"]
    frame = frame_of(case, case.data, torch.float64, length)
    total: Named | None = None
    for stream in case.streams:
        found = _stream(case, stream, frame)
        total = found if total is None else _times(torch.add, total, found)
    assert total is not None
    return total


def _times(fn: object, left: Named, right: Named) -> Named:
    axes = sort_axes((*left.axes, *right.axes))
    return Named(fn(left.view(axes), right.view(axes)), axes)


def _delayed(x: Named, delay: int) -> Named:
    """Over time, of `delay` positions before, 0 before the first."""
    at = x.axes.index("time")
    if not delay:
        return x
    kept = x.data.narrow(at, 0, max(x.data.shape[at] - delay, 0))
    zeros = torch.zeros_like(x.data).narrow(at, 0, min(delay, x.data.shape[at]))
    return Named(torch.cat((zeros, kept), at), x.axes)


def _product(factors: Sequence[Named]) -> Named:
    product = Named(torch.ones((), dtype=torch.float64), ())
    for factor in factors:
        product = _times(torch.mul, product, factor.to(torch.float64))
    return product


def _stream(case: Case, stream: Stream, frame: Frame) -> Named:
    length = frame.length
    steps = torch.arange(length)
    ones = Named(torch.ones(length, dtype=torch.float64), ("time",))
    row = _product([case.named("q"), *(frame.along(x) for x in stream.row), ones]).rename("time", "i")
    held = _product([case.named("k"), case.named("v"), *(frame.along(x) for x in stream.col), ones])
    fed = _product([_delayed(held, stream.delay), *(frame.along(x) for x in stream.feed)]).rename("time", "j")
    i, j, t = steps[:, None, None], steps[None, :, None], steps[None, None, :]
    low, high = torch.minimum(i, j), torch.maximum(i, j)
    distance = (i - j).abs()[..., 0]
    live = distance >= stream.first
    if stream.side != "full":
        live &= (i >= j)[..., 0] if stream.side == "lower" else (j >= i)[..., 0]
    weight = Named(live.double() * distance.double() ** stream.degree, ("i", "j"))
    for turn in stream.turns:
        rate = frame.evaluate.tensor(turn.rate, wide=True)
        angle = _times(torch.mul, rate, Named(distance.double(), ("i", "j")))
        weight = _times(torch.mul, weight, Named(getattr(torch, turn.fn)(angle.data), angle.axes))
    for gate in stream.gates:
        inside = ((t > low) & (t < high)) | ((t == j) & gate.key_closed) | ((t == i) & gate.query_closed)
        inside &= (distance[..., None] > 0) | (torch.tensor(gate.key_closed and gate.query_closed) & (t == i))
        log = _times(torch.add, frame.along(gate.log), Named(torch.zeros(length, dtype=torch.float64), ("time",)))
        log = log.rename("time", "t")
        path = _times(lambda c, x: torch.where(c, x, 0), Named(inside, ("i", "j", "t")), log)
        total = Named(path.data.sum(path.axes.index("t")), tuple(axis for axis in path.axes if axis != "t"))
        weight = _times(torch.mul, weight, Named(total.data.exp(), total.axes))
    for segment in stream.segments:
        ids = frame.along(segment)
        alike = _times(torch.eq, ids.rename("time", "i"), ids.rename("time", "j"))
        weight = _times(torch.mul, weight, alike.to(torch.float64))
    product = _product([weight, row, fed])
    gone = ("j", *case.contracted(stream))
    places = [product.axes.index(axis) for axis in gone if axis in product.axes]
    missing = 1
    if "key" in gone and "key" not in product.axes:
        missing = case.key_size() or 1
    axes = tuple(axis for axis in product.axes if axis not in gone)
    return Named(product.data.sum(places) * missing, axes).rename("i", "time")


def same(found: Named, wanted: Named, tolerance: float) -> None:
    """Equal up to a fraction of the largest entry; a missing axis is the same for all its entries."""
    axes = sort_axes((*found.axes, *wanted.axes))
    ours, theirs = torch.broadcast_tensors(found.view(axes).double(), wanted.view(axes))
    assert not ours.isnan().any()
    scale = theirs.abs().amax().clamp(min=1e-3)
    assert (ours - theirs).abs().amax() <= tolerance * scale, (ours - theirs).abs().amax() / scale


AXES_OF_FACTORS = [
    "head",
    "key",
    "value",
    "mode'1",
    "head key",
    "time",
    "time head",
    "time key",
    "time value",
    "time head key",
]


def random_case(seed: int, side: str = "lower") -> Case:
    """Streams of random structure."""
    pick = random.Random(seed)
    case = Case(seed=seed * 100)
    case.sizes["time"] = pick.choice([1, 2, 7, 13, 24, 33])
    case.keyed = pick.random() < 0.8
    if pick.random() < 0.9:
        case.operand("q", pick.choice(["time head key", "time key", "key", "time head"]))
    if pick.random() < 0.9:
        case.operand("k", pick.choice(["time head key", "time key", "key", "time head"]))
    case.operand("v", pick.choice(["time head value", "time head", "time value", "time", "value"]))

    def factor(position: str, low: float = -1, high: float = 1) -> Expr:
        axes = pick.choice([*AXES_OF_FACTORS, "mode'1", "mode'1 head"])
        expr = case.tensor(axes.replace("'1", ""), low, high)
        if "'1" in axes:
            expr = case.graph.rename(expr, "mode", "mode'1")
        return case.graph.at(expr, position)

    def gate() -> Gate:
        low = pick.choice([-0.01, -1, -30])
        log = case.tensor(
            pick.choice(["head", "time head", "time head key", "time", "head key", "time value", "mode"]), low, 0
        )
        if pick.random() < 0.3:
            case.infinite(log, 0.2)
        log = case.graph.rename(log, "mode", "mode'1")
        return Gate(case.graph.at(log, "t"), pick.random() < 0.4, pick.random() < 0.6)

    def turn() -> Turn:
        rate = case.tensor(pick.choice(["", "head", "mode", "key"]), 0, 2)
        return Turn(pick.choice(["cos", "sin"]), case.graph.rename(rate, "mode", "mode'1"))

    def some(make: object, most: int) -> tuple[Expr, ...]:
        return tuple(make() for _ in range(pick.choice([0, 0, *range(most + 1)])))

    def selecting(position: str) -> Expr:
        where = case.graph.position(position)
        return case.graph.apply("ge", where, case.graph.const(pick.randrange(4)))

    for _ in range(pick.choice([1, 1, 2])):
        row = some(lambda: factor("i"), 2) + some(lambda: selecting("i"), 1)
        gates = some(gate, 2) if side != "full" else ()
        segments = some(case.ids, 1) if side != "full" else ()
        degree = pick.choice([0, 0, 0, 1, 2]) if side != "full" else 0
        turns = some(turn, 2) if side != "full" else ()
        for _ in range(pick.choice([1, 1, 2])):
            delay = pick.choice([0, 0, 1, 3]) if side == "lower" else 0
            col = some(lambda: factor("j"), 2) + some(lambda: selecting("j"), 1)
            feed = some(lambda: factor("j"), 1)
            everything = [*row, *col, *feed, *(g.log for g in gates), *(t.rate for t in turns)]
            contracted = ("mode'1",) if any("mode'1" in x.axes for x in everything) else ()
            first = pick.choice([0, 1]) if side != "full" else 0
            case.streams.append(Stream(side, first, row, col, gates, segments, degree, turns, contracted, delay, feed))
    return case


def expanded(x: Named, length: int, batch: int | None = None) -> Named:
    """A result with all its axes in order, and `time` (and `batch`) of full size."""
    axes = sort_axes((*x.axes, "batch", "time"))
    full = {"time": length, "batch": x.size("batch") if batch is None else batch}
    return Named(x.view(axes).expand([full.get(axis, x.size(axis)) for axis in axes]), axes)


def alone(x: Named, row: int) -> Named:
    """One row of the batch."""
    return Named(x.data.narrow(0, row, 1), x.axes) if "batch" in x.axes else x


def spoil(x: Named, valid: Tensor) -> Named:
    """NaN (or another id) wherever a position is not valid."""
    if "time" not in x.axes:
        return x
    mask = Named(valid, ("batch", "time")).view(x.axes)
    return Named(torch.where(mask, x.data, torch.nan if x.data.is_floating_point() else 99), x.axes)


def blank(x: Named, valid: Tensor) -> Named:
    """0 wherever a position is not valid."""
    mask = Named(valid, ("batch", "time")).view(x.axes)
    return Named(torch.where(mask, x.data, 0), x.axes)
