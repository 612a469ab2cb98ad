"""What compiled kernels need of a GPU, how long they are predicted to take, and how far that is from the roof."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from sma_compiler.emit.file import Emitted
from sma_compiler.emit.source import DEFAULTS
from sma_compiler.plan.devices import GPU, H100, Device
from sma_compiler.runtime import records
from sma_compiler.runtime.forecast import configured, shapes_of
from sma_compiler.runtime.program import Program
from sma_compiler.runtime.tuned import shape_class
from sma_compiler.runtime.usage import by_role, keep
from sma_compiler.runtime.versions import generator
from sma_compiler.target.compile import compile_text
from sma_compiler.target.model import Part, roof
from sma_compiler.target.resources import Resources, resources

ROWS = {"sm_90": H100, "sm_80": GPU}
"""Whose constants stand for a target."""
WARPS, PROGRAMS = 64, 32
"""That a multiprocessor holds, at most."""


@dataclass(frozen=True)
class Need:
    """A kernel: what the compiler says it needs; programs a multiprocessor has room for, and why no more; and its
    prediction, where the cost model knows it."""

    resources: Resources
    programs: int
    limit: str
    part: Part | None

    @property
    def occupancy(self) -> float:
        """The part of a multiprocessor's warps that are there."""
        return self.programs * self.resources.warps / WARPS

    def __str__(self) -> str:
        lines = [
            str(self.resources),
            f"  occupancy {self.occupancy:.0%}: {self.programs} program{'s' * (self.programs != 1)}, {self.limit}",
        ]
        if self.part is not None:
            lines.append(f"  predicted {1e3 * self.part.seconds:.4g} ms, bound by {self.part.bound}")
        return "\n".join(lines)

    def data(self) -> dict[str, object]:
        """For programs."""
        found = {**asdict(self.resources), "programs": self.programs, "limit": self.limit, "occupancy": self.occupancy}
        if self.part is not None:
            found |= {"predicted": self.part.seconds, "bound": self.part.bound, "waves": self.part.waves}
        return found


@dataclass(frozen=True)
class Roofline:
    """One pass. roof: seconds that no kernel goes below, and what says so. measured: by a record, if there is one."""

    what: str
    predicted: float
    roof: float
    unit: str
    measured: float | None

    def __str__(self) -> str:
        text = f"{self.what}: predicted {1e3 * self.predicted:.4g} ms, {self.roof / self.predicted:.0%} of the roof "
        text += f"({1e3 * self.roof:.4g} ms of {self.unit})"
        if self.measured is not None:
            text += f"; measured {1e3 * self.measured:.4g} ms, {self.roof / self.measured:.0%}"
        return text


@dataclass(frozen=True)
class Needs:
    """The kernels of a file, each once, and its passes. device: whose constants were taken."""

    device: str
    kernels: tuple[Need, ...]
    passes: tuple[Roofline, ...]

    def __str__(self) -> str:
        names = [f"// {need.resources.kernel}\n{need}" for need in self.kernels]
        return "\n".join([*names, *([f"// on {self.device}"] if self.passes else []), *map(str, self.passes)])

    def data(self) -> dict[str, object]:
        """For programs."""
        kernels = {need.resources.kernel: need.data() for need in self.kernels}
        return {"device": self.device, "kernels": kernels, "passes": [asdict(one) for one in self.passes]}


def needs(program: Program, emitted: Emitted, sizes: Mapping[str, int], dtype: str, target: str) -> Needs:
    """Compile a file for a target that need not be here, and say what its kernels need; remembered for the cost model.

    Raises:
        ImportError: Triton is not installed.
    """
    known = {**DEFAULTS, **sizes}
    compiled = compile_text(emitted.text, program.op, known, dtype, target)
    found = {one.launch.kernel: resources(one) for one in compiled if not one.launch.again}
    keep(emitted.text, target, list(found.values()))
    row = ROWS.get(target)
    if row is None:  # the occupancy of other vendors' GPUs has other rules
        return Needs(target, tuple(Need(one, 1, "at least", None) for one in found.values()), ())
    shapes = shapes_of(program, known, dtype)
    used = by_role(program.op.name, found)
    seen = configured("", shapes, emitted.configs, row, used)
    parts = seen.parts
    own = {part.role: part for part in (*(parts.backward if parts else ()), *(parts.forward if parts else ()))}
    kernels = tuple(Need(one, *_room(one, row), own.get(role)) for role, one in used.items())
    passes = []
    for what, backward, predicted in (("forward", False, seen.forward), ("backward", True, seen.backward)):
        if predicted is not None:
            roofs = [roof(shape, row, backward=backward) for shape in shapes.values()]
            best, unit = sum(seconds for seconds, _ in roofs), max(roofs)[1]
            passes.append(Roofline(what, predicted, best, unit, _measured(program, known, dtype, row, backward)))
    return Needs(row.name, kernels, tuple(passes))


def _room(one: Resources, row: Device) -> tuple[int, str]:
    """How many programs a multiprocessor has room for, and what keeps others out."""
    threads = 32 * one.warps
    limits = {
        "limited by registers": row.registers // (-(-max(one.registers, 16) // 8) * 8 * threads),
        "limited by shared memory": row.shared // max(one.shared, 1),
        "limited by warps": WARPS // one.warps,
        "limited by programs": PROGRAMS,
    }
    name = min(limits, key=lambda limit: limits[limit])
    return limits[name], name


def _measured(program: Program, sizes: Mapping[str, int], dtype: str, row: Device, backward: bool) -> float | None:
    """Seconds that a record of this op, these sizes and the device has."""
    wanted = shape_class({axis: n for axis, n in sizes.items() if axis != "group"}, {})
    for record in records.every():
        same = record.key.spec == program.spec_hash and record.key.generator == generator()
        own = shape_class({axis: n for axis, n in record.sizes.items() if axis != "group"}, {})
        if same and own == wanted and record.key.device == row.name and record.key.dtype == dtype:
            if not backward and not record.key.training:
                return record.forward
            if backward and record.backward is not None:
                return record.backward
    return None
