"""What the cost model says of an op at some sizes: every legal plan on every backend, and which wins from where on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sma_compiler.emit.source import DEFAULTS, PLANS, emit
from sma_compiler.kernel.choices import DEFAULT, Choices
from sma_compiler.kernel.config import Config, Recurrence
from sma_compiler.kernel.errors import NoTritonKernel
from sma_compiler.plan.cost import BACKWARD, seconds
from sma_compiler.plan.devices import Device
from sma_compiler.runtime.program import Program, concrete
from sma_compiler.target.model import Predicted, Shape, chunked, recurrent
from sma_compiler.target.resources import Resources
from sma_compiler.tune.usage import known

SHORTEST, LONGEST = 16, 2**20
"""Lengths between which crossover points are looked for."""


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
    own = {axis: size for axis, size in sizes.items() if axis in axes}
    counts = {**own, **{name: concrete(n) for name, n in numbers.items() if isinstance(n, int)}}
    chosen = program.choose(plan, own, numbers, device)
    forward = sum(seconds(choice, chosen[choice.site.node], counts, device) for choice in program.plans.choices)
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
    emitted = emit(program.op, program.plans, plan, sizes, dtype, target, choices)
    used = _by_role(program.op.name, known(emitted.text, target))
    return configured(plan, shape_of(program, sizes, dtype), emitted.configs, device, used)


def configured(
    plan: str,
    shape: Shape,
    configs: Mapping[str, Config | Recurrence],
    device: Device,
    used: Mapping[str, Resources] = MappingProxyType({}),
) -> Forecast:
    """A file's kernels, by its configurations. used: what compiled kernels need, by role."""
    base = configs.get("recurrent")
    if isinstance(base, Recurrence):
        found = recurrent(shape, base, device)
    else:
        own = {role: config for role, config in configs.items() if isinstance(config, Config)}
        found = chunked(shape, own, device, used)
    backward = found.seconds(backward=True) if "backward" in configs else None
    return Forecast("triton", plan, found.seconds(backward=False), backward, found)


def _by_role(name: str, used: Mapping[str, Resources]) -> dict[str, Resources]:
    return {kernel.removeprefix(f"{name}_").removesuffix("_kernel"): found for kernel, found in used.items()}


def shape_of(program: Program, sizes: Mapping[str, int], dtype: str) -> Shape:
    """What the model of kernels asks of an op."""
    known = {**DEFAULTS, **sizes}
    member = program.kernels.member
    gates = [gate for term in member.terms for gate in term.gates] if member else []
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
    )


def forecast(
    program: Program,
    sizes: Mapping[str, int],
    numbers: Mapping[str, int | float],
    dtype: str,
    device: Device,
    target: str = "",
) -> list[Forecast]:
    """Every legal plan on every backend, the fastest forward pass first. target: of kernels; "": there are none."""
    found = [torch_forecast(program, plan.name, sizes, numbers, device) for plan in program.plans.legal]
    for plan in PLANS if target and dtype in ("bfloat16", "float16", "float32") else ():
        try:
            found.append(kernel_forecast(program, plan, sizes, dtype, device, target))
        except NoTritonKernel:
            continue
    return sorted(found, key=lambda one: one.forward)


def crossovers(
    program: Program,
    sizes: Mapping[str, int],
    numbers: Mapping[str, int | float],
    dtype: str,
    device: Device,
    target: str = "",
) -> list[Crossover]:
    """Which plan wins from which length on, in powers of two and then exactly, by halving."""

    def best(time: int) -> tuple[str, str]:
        at = {**sizes, "time": time} | ({"lag": time} if "lag" in sizes else {})
        first = forecast(program, at, numbers, dtype, device, target)[0]
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
