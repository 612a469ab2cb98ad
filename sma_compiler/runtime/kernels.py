"""The Triton kernels of an op: emitted for a plan, sizes, a dtype and a GPU, loaded, and remembered."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sma_compiler.ir.canonical import spec_hash
from sma_compiler.ir.nodes import Op
from sma_compiler.kernel.cached import Cached, cached
from sma_compiler.kernel.choices import read_plan
from sma_compiler.kernel.config import Config
from sma_compiler.kernel.errors import NoTritonKernel
from sma_compiler.kernel.linear import Linear, linear
from sma_compiler.kernel.pairs import pairs
from sma_compiler.kernel.stages import Stage, split
from sma_compiler.plan.choose import Plans, usual
from sma_compiler.runtime.load import load, remember, remembered
from sma_compiler.runtime.replay import Replays
from sma_compiler.runtime.triton_key import quicken
from sma_compiler.runtime.versions import generator

if TYPE_CHECKING:
    from sma_compiler.emit.file import Emitted

DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}
"""The dtypes that kernels take, by the names that `emit` knows them under."""

REMEMBERED = 16
"""Files of an op that are kept as they are before they are printed."""

Shape = tuple[tuple[str, int], ...]
Key = tuple[str, Shape, str, str]
"""A plan, a class of sizes, a dtype and a target."""


@dataclass(frozen=True)
class Carried:
    """What kernels have of a contraction's state.

    site: what its tensors are called after. streams: how many states it has, each a matrix for a head, and
    (normalised) the sum of its keys, by which rows are divided. merged: whether heads are the channels of one.
    stabilised: whether states are sums in units of the largest exponential; see `kernel.stabilised`.
    """

    site: str
    streams: int
    normalised: bool
    merged: bool
    stabilised: bool

    @property
    def names(self) -> list[str]:
        """The tensors of the state."""
        return [f"{self.site}.S{number}" for number in range(self.streams)]

    @property
    def count(self) -> int:
        """How many tensors launchers take."""
        return self.streams * (1 + self.normalised)


@dataclass(frozen=True, eq=False)
class Kernel:
    """An emitted file, loaded. `replays` remembers the forms that its launchers were called with."""

    name: str
    module: ModuleType
    replays: Replays[tuple[Tensor, ...]] = field(default_factory=Replays)

    @property
    def forward(self) -> Callable[..., Any]:
        """The launcher that is named after the op."""
        found: Callable[..., Any] = getattr(self.module, self.name)
        return found

    @property
    def backward(self) -> Callable[..., Any] | None:
        """The launcher of the gradients, where the file has one."""
        return getattr(self.module, f"{self.name}_backward", None)

    @property
    def step(self) -> Callable[..., Any] | None:
        """The launcher of a step, where the file has one."""
        return getattr(self.module, f"{self.name}_step", None)

    @property
    def cached(self) -> Callable[..., Any] | None:
        """The launcher of new positions after a cache, where the file has one."""
        return getattr(self.module, f"{self.name}_cached", None)

    @cached_property
    def keywords(self) -> frozenset[str]:
        """The parameters of the op's launcher: not all files round, or take packs."""
        return frozenset(inspect.signature(self.forward).parameters)

    @cached_property
    def kept(self) -> str:
        """What the forward launcher may return for the gradients: "norm" or "lse" of every row, "kept": of stages what
        they hand on; "": nothing."""
        return next((name for name in ("norm", "lse", "kept") if f"return_{name}" in self.keywords), "")

    @cached_property
    def backward_keywords(self) -> frozenset[str]:
        """The parameters of the launcher of the gradients; none where there is none."""
        return frozenset() if self.backward is None else frozenset(inspect.signature(self.backward).parameters)

    def rounding(self, precision: str) -> dict[str, str]:
        """The keyword that says how matrix products round, where the file has any."""
        return {"precision": precision} if "precision" in self.keywords else {}


class Kernels:
    """The kernels of one op."""

    def __init__(self, op: Op, plans: Plans) -> None:
        self.op = op
        self.plans = plans
        self._found: dict[Key, Kernel | NoTritonKernel] = {}
        self._too_large: dict[Key, str] = {}
        self._emitted: dict[Key, Emitted] = {}

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of an op of several contractions; none of others."""
        try:
            return split(self.op, self.plans)
        except NoTritonKernel:
            return ()

    @cached_property
    def member(self) -> Linear | None:
        """The op as a member of the family that kernels exist for; None: it is none, or has several contractions."""
        return None if self.stages else next(iter(self.members.values()), None)

    @cached_property
    def members(self) -> dict[str, Linear]:
        """Its contractions as members of that family, by site; none where one of them is no member."""
        parts = [(stage.site, stage.op, stage.plans) for stage in self.stages]
        parts = parts or [(choice.site.name, self.op, self.plans) for choice in self.plans.choices]
        found = {site: _member(op, plans) for site, op, plans in parts}
        return {site: one for site, one in found.items() if one is not None} if all(found.values()) else {}

    @cached_property
    def carried(self) -> tuple[Carried, ...]:
        """The states of its contractions, as kernels have them; none where no kernel has any."""
        return tuple(
            Carried(site, len(one.terms), one.normalize != "none", one.merged, one.stabilised)
            for site, one in self.members.items()
        )

    @cached_property
    def cached(self) -> Cached | None:
        """The op as kernels continue it from a cache; None: they do not."""
        try:
            return cached(pairs(self.op, self.plans), self.plans)
        except NoTritonKernel:
            return None

    @property
    def normalised(self) -> bool:
        """Whether its rows are divided by a sum, which the gradients need again."""
        return self.member is not None and self.member.normalize != "none"

    @property
    def merged(self) -> bool:
        """Whether kernels take its heads as the channels of one."""
        return any(one.merged for one in self.carried)

    @property
    def stabilised(self) -> bool:
        """Whether its state is sums in units of the largest exponential; see `kernel.stabilised`."""
        return self.member is not None and self.member.stabilised

    def find(self, plan: str, sizes: Mapping[str, int], dtype: str, target: str) -> Kernel:
        """The kernel for a plan (with choices, see `kernel.choices`) at some sizes.

        Raises:
            NoTritonKernel: there is none.
        """
        key = plan, _class(sizes), dtype, target
        found = self._found.get(key)
        if found is None:
            try:
                found = _loaded(self.op.name, self.text(plan, sizes, dtype, target))
            except NoTritonKernel as error:
                found = error
            self._found[key] = found
        if isinstance(found, NoTritonKernel):
            raise found.with_traceback(None)
        return found

    def text(self, plan: str, sizes: Mapping[str, int], dtype: str, target: str) -> str:
        """The text of a plan's file: as this or another process emitted it before, where the same code makes it.

        Raises:
            NoTritonKernel: there is none.
        """
        parts = generator(), spec_hash(self.op), self.op.name, plan, dtype, target, repr(_class(sizes))
        key = "\n".join(parts)
        text = remembered(key)
        if text is None:
            text = self.emitted(plan, sizes, dtype, target).text
            remember(key, text)
        return text

    def emitted(self, plan: str, sizes: Mapping[str, int], dtype: str, target: str) -> Emitted:
        """The file of a plan (with choices); see `sma_compiler.emit`, which is loaded for the first one.

        Raises:
            NoTritonKernel: there is none.
        """
        from sma_compiler.emit.source import emit

        key = plan, _class(sizes), dtype, target
        if key not in self._emitted:
            name, choices = read_plan(plan)
            found = emit(self.op, self.plans, name, sizes, dtype, target, choices)
            if len(self._emitted) >= REMEMBERED:
                self._emitted.clear()
            self._emitted[key] = found
        return self._emitted[key]

    def auto(self, sizes: Mapping[str, int], dtype: str, target: str) -> str | None:
        """The plan whose kernels "auto" means at some sizes; None where there are none."""
        for plan in (usual(self.plans), "recurrent"):
            try:
                own = self.emitted(plan, sizes, dtype, target).configs.get("recurrent")
            except NoTritonKernel:
                continue
            if plan == "chunked" and isinstance(own, Config):
                # scans have parts only where the GPU would have too few programs
                found = self.emitted("auto", sizes, dtype, target).configs["recurrent"]
                return plan if isinstance(found, Config) and found.programs else "recurrent"
            return plan
        return None

    def refusals(self) -> dict[str, str]:
        """The plans that kernels are emitted for, and why not for this op; "" where they are."""
        from sma_compiler.emit.source import PLANS

        return {plan: self.refusal(plan, {}) for plan in PLANS}

    def refusal(self, plan: str, sizes: Mapping[str, int]) -> str:
        """Why there is no kernel for a plan at some sizes (at any, without); "" where there is one."""
        for (known, shape, *_), reason in self._too_large.items():
            if sizes and known == plan and set(_class(sizes)) <= set(shape):
                return reason
        try:
            self.emitted(plan, sizes, "bfloat16", "sm_90")
        except NoTritonKernel as error:
            return error.reason
        return ""

    def has_gradients(self, plan: str) -> bool:
        """Whether the file of a plan has a launcher of the gradients."""
        functions = self.emitted(plan, {}, "bfloat16", "sm_90").functions
        return any(function.name == f"{self.op.name}_backward" for function in functions)

    def refuse(self, kernel: Kernel, reason: str) -> None:
        """From now on there is no such kernel: it does not fit on the GPU."""
        for key, found in self._found.items():
            if found is kernel:
                self._found[key] = NoTritonKernel(self.op.name, key[0], reason)
                self._too_large[key] = reason


def _member(op: Op, plans: Plans) -> Linear | None:
    """A contraction as a member of the family; None: it is none."""
    for plan in ("chunked", "recurrent"):
        try:
            return linear(op, plans, plan)
        except NoTritonKernel:
            continue
    return None


def _class(sizes: Mapping[str, int]) -> Shape:
    """Sizes that have the same configuration: it changes with the length at powers of two."""
    return tuple((axis, n.bit_length() if axis == "time" else n) for axis, n in sorted(sizes.items()))


def class_sizes(sizes: Mapping[str, int]) -> dict[str, int]:
    """The least sizes of the same class."""
    return {axis: 1 << max(n.bit_length() - 1, 0) if axis == "time" else n for axis, n in sizes.items()}


@cache
def _loaded(name: str, text: str) -> Kernel:
    quicken()
    return Kernel(name, load(text))


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton interprets kernels, on tensors of the CPU."""
    if not has_triton():
        return False
    from triton import knobs

    return bool(knobs.runtime.interpret)


@cache
def target_of(device: torch.device) -> str:
    """The target whose configurations a device gets."""
    if device.type != "cuda":
        return "sm_90"
    if torch.version.hip is not None:
        return "gfx942"
    return "sm_90" if torch.cuda.get_device_capability(device) == (9, 0) else "sm_80"
