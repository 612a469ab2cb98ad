"""What the cost model says of an op at some sizes: every legal plan on every backend, and which wins from where on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType

from sma_compiler.emit.source import DEFAULTS, PLANS
from sma_compiler.emit.tile_counts import tile_counts
from sma_compiler.kernel.choices import DEFAULT, Choices, plan_text
from sma_compiler.kernel.config import AnyConfig, Config, PairConfig, Recurrence
from sma_compiler.kernel.errors import NoTritonKernel
from sma_compiler.kernel.linear import STATE_ROWS
from sma_compiler.kernel.pairs import pairs
from sma_compiler.plan.cost import BACKWARD, seconds
from sma_compiler.plan.devices import Device
from sma_compiler.runtime.kernels import class_sizes
from sma_compiler.runtime.program import Program, concrete
from sma_compiler.runtime.records import Pick
from sma_compiler.runtime.usage import by_role, known
from sma_compiler.target.model import Predicted, Shape, chunked, recurrent
from sma_compiler.target.model_channels import channelled, scanned
from sma_compiler.target.model_pairs import quadratic
from sma_compiler.target.model_solve import solved
from sma_compiler.target.resources import Resources

SIDES = (64, 128)
"""Of tiles that are counted."""
GAIN = 1.2
"""How much faster than the usual kernels another plan is predicted to be, before it is taken for them."""
RUNS = 4
"""Of equal ids and equal lengths that a sequence is taken to have, where masks end at them."""
SHORTEST, LONGEST = 16, 2**18
"""Lengths between which crossover points are looked for."""

Shapes = Mapping[str, Shape]
"""Of the contractions that a file computes one after the other, by what the roles of their kernels begin with."""


@dataclass(frozen=True)
class Case:
    """What is predicted: an op at sizes, on a device. target: of kernels; "": there are none."""

    program: Program
    sizes: Mapping[str, int]
    numbers: Mapping[str, int | float]
    dtype: str
    device: Device
    target: str = ""

    def at_length(self, time: int) -> Case:
        """With another length; a table of distances is as long."""
        return replace(self, sizes={**self.sizes, "time": time} | ({"lag": time} if "lag" in self.sizes else {}))


@dataclass(frozen=True)
class Forecast:
    """Predicted seconds of a plan. backward: None where it has no gradients. parts: of kernels."""

    backend: str
    plan: str
    forward: float
    backward: float | None = None
    parts: Predicted | None = None

    @property
    def training(self) -> float | None:
        """Forward and backward."""
        return None if self.backward is None else self.forward + self.backward


@dataclass(frozen=True)
class Crossover:
    """From so many positions on, this is the fastest."""

    time: int
    backend: str
    plan: str


def torch_forecast(
    program: Program,
    plan: str,
    sizes: Mapping[str, int],
    numbers: Mapping[str, int | float],
    device: Device,
) -> Forecast:
    """A plan of the torch backend."""
    axes = {axis for decl in program.op.params for axis in decl.dims}
    used = {axis: size for axis, size in sizes.items() if axis in axes}
    counts = {**used, **{name: concrete(n) for name, n in numbers.items() if isinstance(n, int)}}
    chosen = program.choose(plan, used, numbers, device)
    own = (seconds(choice, chosen[choice.site.node], counts, device) for choice in program.plans.choices)
    forward = device.torch * sum(own)
    return Forecast("torch", plan, forward, BACKWARD * forward)


def kernel_forecast(
    program: Program,
    plan: str,
    sizes: Mapping[str, int],
    dtype: str,
    device: Device,
    target: str,
    choices: Choices = DEFAULT,
) -> Forecast:
    """A plan's Triton kernels. Raises NoTritonKernel."""
    size_class = tuple(sorted(class_sizes({**DEFAULTS, **sizes}).items()))
    configs, used = _file(program, plan_text(plan, choices), size_class, dtype, target)
    return configured(plan, shapes_of(program, sizes, dtype), configs, device, used)


@lru_cache(maxsize=4096)
def _file(
    program: Program, pick: str, sizes: tuple[tuple[str, int], ...], dtype: str, target: str
) -> tuple[Mapping[str, AnyConfig], Mapping[str, Resources]]:
    """The configurations of a file, and what its kernels are known to need. Raises NoTritonKernel."""
    emitted = program.kernels.emitted(pick, dict(sizes), dtype, target)
    return emitted.configs, by_role(program.op.name, known(emitted.text, target))


def configured(
    plan: str,
    shapes: Shapes,
    configs: Mapping[str, AnyConfig],
    device: Device,
    used: Mapping[str, Resources] = MappingProxyType({}),
) -> Forecast:
    """A file's kernels, by its configurations.

    used: what compiled kernels need, by role.
    """
    forward, backward = [], []
    trained = True
    for name, shape in shapes.items():
        own = {role.removeprefix(name): config for role, config in configs.items() if role.startswith(name)}
        kernels = name.replace(".", "_")
        needs = {role.removeprefix(kernels): need for role, need in used.items() if role.startswith(kernels)}
        trained = trained and ("backward" in own or "dq" in own)
        found = _predicted(shape, own, device, needs)
        forward += [replace(part, role=kernels + part.role) for part in found.forward]
        backward += [replace(part, role=kernels + part.role) for part in found.backward]
    parts = Predicted(tuple(forward), tuple(backward))
    ahead = max(parts.seconds(backward=False), device.host)
    behind = max(parts.seconds(backward=True), device.host_backward) if trained else None
    return Forecast("triton", plan, ahead, behind, parts)


def _predicted(
    shape: Shape, configs: Mapping[str, AnyConfig], device: Device, used: Mapping[str, Resources]
) -> Predicted:
    """The kernels of one contraction."""
    own = {role: config for role, config in configs.items() if isinstance(config, Config)}
    base = configs.get("recurrent")
    tiles = {role: config for role, config in configs.items() if isinstance(config, PairConfig)}
    if "forward" in tiles:
        return quadratic(shape, tiles, device, used)
    if isinstance(base, Config):
        return scanned(shape, own, device)
    if isinstance(base, Recurrence):
        return recurrent(shape, base, device)
    if "solve" in own:
        return solved(shape, own, device, used)
    if shape.channels:
        return channelled(shape, own, device)
    return chunked(shape, own, device, used)


def shapes_of(program: Program, sizes: Mapping[str, int], dtype: str) -> Shapes:
    """What the model of kernels asks of an op, contraction by contraction."""
    if not program.stages:
        return {"": _shape(program, sizes, dtype)}
    return {
        f"{stage.site}.": _shape(own, sizes, dtype)
        for stage, own in zip(program.kernels.stages, program.stages, strict=True)
    }


def _shape(program: Program, sizes: Mapping[str, int], dtype: str) -> Shape:
    """Of an op of one contraction."""
    known = {**DEFAULTS, **sizes}
    member = program.kernels.member
    gates = [gate for term in member.terms for gate in term.gates] if member else []
    live, edges = _live(program, known, dtype)
    try:
        weighed = pairs(program.op, program.plans).weight is not None
    except NoTritonKernel:
        weighed = False
    if program.kernels.merged:
        known |= {"head": 1, "value": known["head"]}
    if program.kernels.stabilised:
        known |= {"key": STATE_ROWS}
    return Shape(
        known["batch"],
        known["time"],
        known["head"],
        known["key"],
        known["value"],
        known.get("group", known["head"]),
        dtype,
        gated=bool(gates),
        varying=any("t" in gate.log.positions for gate in gates),
        normalised=program.kernels.normalised,
        streams=max(1, len(member.terms) if member else 1),
        live=live,
        edges=edges,
        channels=any(term.axes for term in member.terms) if member else False,
        weighed=weighed,
        stabilised=program.kernels.stabilised,
    )


def _live(program: Program, known: Mapping[str, int], dtype: str) -> tuple[float, float]:
    """The part of tiles of pairs that hold any: of very small ones, and what each row or column of a side adds."""
    parts, runs = [], 1
    for side in SIDES:
        tiles = tile_counts(program.op, program.plans, known, dtype, "sm_90", side)
        if tiles is None:
            return 0.5, 0.5 / known["time"]
        parts.append(tiles.operations / max(tiles.dense, 1))
        runs = RUNS if tiles.runs else 1
    edges = (parts[1] - parts[0]) / (SIDES[1] - SIDES[0])
    return (parts[0] - edges * SIDES[0]) / runs, edges


def forecast(case: Case) -> list[Forecast]:
    """Every legal plan on every backend, the fastest forward pass first."""
    program, sizes, device = case.program, case.sizes, case.device
    found = [torch_forecast(program, plan.name, sizes, case.numbers, device) for plan in program.plans.legal]
    for plan in PLANS if case.target and case.dtype in ("bfloat16", "float16", "float32") else ():
        try:
            found.append(kernel_forecast(program, plan, sizes, case.dtype, device, case.target))
        except NoTritonKernel:
            continue
    return sorted(found, key=lambda one: one.forward)


def auto_pick(case: Case, *, training: bool) -> Pick:
    """What plan="auto" takes where there is no record: the usual kernels, or what is predicted to be much faster.

    training: whether gradients are wanted, too.
    """

    def seconds_of(one: Forecast) -> float:
        found = one.training if training else one.forward
        return math.inf if found is None else found

    integers = {name: concrete(n) for name, n in case.numbers.items() if isinstance(n, int)}
    every = forecast(replace(case, sizes={**case.sizes, **integers}))
    found = {Pick(one.backend, one.plan): seconds_of(one) for one in every}
    kernels = case.program.kernels
    usual = Pick("triton", (kernels.auto(case.sizes, case.dtype, case.target) if case.target else None) or "")
    best = min(found, key=lambda pick: found[pick], default=Pick("torch", "auto"))
    if found.get(usual, math.inf) < GAIN * found.get(best, 0):
        return usual
    return best if best.backend == "triton" or usual in found else Pick("torch", "auto")


def crossovers(case: Case) -> list[Crossover]:
    """Which plan's forward pass wins from which length on: doubled until that changes, then halved between.

    None where there are no plans.
    """
    if not case.program.plans.legal:
        return []

    def best(time: int) -> tuple[str, str]:
        first = forecast(case.at_length(time))[0]
        return first.backend, first.plan

    found = [Crossover(1, *best(SHORTEST))]
    time = SHORTEST
    while time < LONGEST:
        after = best(2 * time)
        if after != (found[-1].backend, found[-1].plan):
            low, high = time, 2 * time
            while high - low > max(1, low // 16):
                middle = (low + high) // 2
                low, high = (low, middle) if best(middle) == after else (middle, high)
            found.append(Crossover(high, *after))
        time *= 2
    return found


@dataclass(frozen=True)
class Outlook:
    """What the cost model says at some sizes on a device. Printing it shows the table.

    picks: what plan="auto" takes, without gradients and with them.
    """

    case: Case
    plans: tuple[Forecast, ...]
    crossovers: tuple[Crossover, ...]
    picks: tuple[Pick, Pick]

    def __str__(self) -> str:
        device = self.case.device
        if not self.plans:
            return f"predicted on {device.name}: nothing, the model is of contractions"
        lines = [f"predicted on {device.name}, {self.case.dtype}; constants: {device.measured}"]
        for one in self.plans:
            trained = "-" if one.training is None else _milliseconds(one.training)
            bound = ""
            if one.parts is not None:
                longest = max(one.parts.forward, key=lambda part: part.seconds)
                bound = f"  {longest.role}: {longest.bound}, {longest.programs} programs, {longest.waves:.1f} waves"
            name = f"{one.backend} {one.plan}"
            lines.append(f"  {name:<20}{_milliseconds(one.forward):>12}  with gradients {trained:>12}{bound}")
        wins = [f"from T = {one.time} on {one.backend} {one.plan}" for one in self.crossovers]
        lines.append(f"  fastest: {'; '.join(wins)}")
        lines.append(f"  auto takes {', with gradients '.join(map(self._taken, self.picks))}")
        return "\n".join(lines)

    def _taken(self, pick: Pick) -> str:
        """A pick; of a mixture of the torch backend's plans, which ones."""
        if pick != ("torch", "auto"):
            return f"{pick.backend} {pick.plan}"
        case = self.case
        counts = {name: n for name, n in case.numbers.items() if isinstance(n, int)}
        chosen = case.program.choose("auto", case.sizes, counts, case.device)
        return f"torch {' and '.join(dict.fromkeys(chosen.values()))}"

    def data(self) -> dict[str, object]:
        """For programs."""
        plans = [
            {"backend": one.backend, "plan": one.plan, "forward": one.forward, "training": one.training}
            for one in self.plans
        ]
        wins = [{"time": one.time, "backend": one.backend, "plan": one.plan} for one in self.crossovers]
        device, picks = self.case.device, [pick._asdict() for pick in self.picks]
        found = {"device": device.name, "measured": device.measured, "dtype": self.case.dtype, "plans": plans}
        return {**found, "fastest": wins, "auto": picks}


def outlook(case: Case) -> Outlook:
    """Every legal plan at some sizes, and which wins from which length on. Sizes that are missing: `DEFAULTS`."""
    axes = {axis for decl in case.program.op.params for axis in decl.dims}
    known = {axis: size for axis, size in {**DEFAULTS, **case.sizes}.items() if axis in axes or axis in case.sizes}
    if "lag" in axes:
        known.setdefault("lag", known["time"])
    for axis, size in (("mode", 4), ("level", known["time"].bit_length() + 1)):
        if axis in axes:
            known.setdefault(axis, size)
    case = replace(case, sizes=known)
    picks = auto_pick(case, training=False), auto_pick(case, training=True)
    return Outlook(case, tuple(forecast(case)), tuple(crossovers(case)), picks)


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.4g} ms"
