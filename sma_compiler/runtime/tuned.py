"""What a call goes by under plan="auto", never measured: its record, or else the cost model.

Both are asked once for a form of call; what the cost model says is kept for other processes, beside the kernels.
A record that came from another machine is checked on this one before it is used, by `self_check`.
"""

from __future__ import annotations

import json
import platform
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import torch

from sma_compiler.call_errors import Mistake
from sma_compiler.kernel.errors import NoTritonKernel
from sma_compiler.runtime import records
from sma_compiler.runtime.args import Arguments, readable
from sma_compiler.runtime.job import all_sizes, operand_name
from sma_compiler.runtime.kernels import class_sizes, has_triton, target_of
from sma_compiler.runtime.load import remember, remembered
from sma_compiler.runtime.program import Program, concrete, row_of
from sma_compiler.runtime.records import DamagedRecords, Key, Pick, Record, confirm
from sma_compiler.runtime.self_check import SLACK, check_pick
from sma_compiler.runtime.versions import generator, triton_version

REMEMBERED = 4096
"""Forms of calls; beyond them all are forgotten."""


_picks: dict[tuple[object, ...], Pick | None] = {}


def forget() -> None:
    """Look records up again: they have changed."""
    _picks.clear()


def tuned(program: Program, arguments: Arguments, training: bool) -> Pick | None:
    """What the record of a call says; None where there is none that can be used."""
    return _remembered(_look_up, program, arguments, training)


def foreseen(program: Program, arguments: Arguments, training: bool) -> Pick | None:
    """What the cost model says of a call on a GPU; None where no kernel takes its tensors."""
    return _remembered(_foresee, program, arguments, training)


def _remembered(
    ask: Callable[[Program, Arguments, bool], Pick | None], program: Program, arguments: Arguments, training: bool
) -> Pick | None:
    numbers = tuple([concrete(n) for n in arguments.numbers.values() if isinstance(n, int | torch.SymInt)])
    tensors = tuple([(x.dtype, x.device, *map(concrete, x.shape)) for x in arguments.tensors.values()])
    known = ask, program.spec_hash, numbers, tensors, training
    if known not in _picks:
        if len(_picks) >= REMEMBERED:
            _picks.clear()
        _picks[known] = ask(program, arguments, training)
    return _picks[known]


def _foresee(program: Program, arguments: Arguments, training: bool) -> Pick | None:
    tensors = list(arguments.tensors.values())
    if not has_triton() or any(x.dtype == torch.float64 for x in tensors):
        return None
    given = operand_name(program, tensors), row_of(arguments.device), target_of(arguments.device)
    sizes = class_sizes(measured_sizes(program, arguments))
    parts = generator(), program.spec_hash, program.op.name, shape_class(sizes, arguments.numbers), *given, training
    key = "\n".join(map(str, ("auto", *parts)))
    text = remembered(key)
    if text is not None:
        return Pick(*text.split())
    from sma_compiler.runtime.forecast import Case, auto_pick  # loads what emits kernels

    pick = auto_pick(Case(program, sizes, arguments.numbers, *given), training=training)
    if pick != Pick("torch", "auto"):
        remember(key, f"{pick.backend} {pick.plan}\n")
    return pick


def _look_up(program: Program, arguments: Arguments, training: bool) -> Pick | None:
    if not records.records_file().exists():
        return None
    try:
        record = records.find(key_of(program, arguments, training))
    except Mistake as error:  # a call goes on by the cost model
        warnings.warn(str(error), DamagedRecords, stacklevel=2)
        return None
    if record is None or (not record.verified and not _holds(program, arguments, record)):
        return None
    return Pick(record.backend, record.pick)


def _holds(program: Program, arguments: Arguments, record: Record) -> bool:
    """Whether a record of another machine names what computes the right thing here; remembered if so."""
    device = arguments.device
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if capturing or not all(readable(x) for x in arguments.tensors.values()):
        return False
    sizes = measured_sizes(program, arguments)
    dtype = getattr(torch, record.key.dtype)
    try:
        report = check_pick(program, record.backend, record.pick, sizes, arguments.numbers, dtype, device, seed=0)
        wrong = [check for check in report.checks if check.ratio > SLACK]
        why = "\n".join(map(str, wrong))
    except (NoTritonKernel, Mistake) as error:
        why = str(error)
    if why:
        warnings.warn(
            f"{program.op.label}: the imported tuning record {record.id} ({record.backend} {record.pick}) does not "
            f"hold on {device} and is forgotten; tune the op here\n{why}",
            DamagedRecords,
            stacklevel=2,
        )
        records.clear(lambda found: found.key == record.key)
        return False
    confirm(record)
    return True


def measured_sizes(program: Program, arguments: Arguments) -> dict[str, int]:
    """The sizes of all axes as plain numbers, and `group`."""
    found = all_sizes(program, arguments.sizes, list(arguments.tensors.values()))
    return {axis: concrete(size) for axis, size in found.items()}


def key_of(program: Program, arguments: Arguments, training: bool) -> Key:
    """The key of the record for a call."""
    tensors = list(arguments.tensors.values())
    wide = any(x.dtype == torch.float64 for x in tensors)
    dtype = "float64" if wide else operand_name(program, tensors)
    return make_key(
        program, measured_sizes(program, arguments), arguments.numbers, dtype, arguments.device, training=training
    )


def make_key(
    program: Program,
    sizes: Mapping[str, int],
    numbers: Mapping[str, int | float],
    dtype: str,
    device: torch.device,
    *,
    training: bool,
) -> Key:
    """The key of the record for sizes (of all axes, and `group`), numbers, a dtype and a device."""
    return Key(
        program.spec_hash,
        generator(),
        shape_class(sizes, numbers),
        dtype,
        device_name(device),
        torch.__version__,
        triton_version(),
        training,
    )


def shape_class(sizes: Mapping[str, int], numbers: Mapping[str, int | float]) -> str:
    """Sizes that share a record, as JSON: lengths, batches and integer parameters up to the same power of two."""
    rounded = {axis: n if axis not in ("batch", "time", "lag", "level") else _up(n) for axis, n in sizes.items()}
    integers = {name: _up(concrete(n)) for name, n in numbers.items() if isinstance(n, int | torch.SymInt)}
    return json.dumps({**rounded, **integers}, sort_keys=True, separators=(",", ":"))


def _up(n: int) -> int:
    return 1 << (n - 1).bit_length() if n > 1 else n


def device_name(device: torch.device) -> str:
    """A GPU by its name; a CPU by its model and the threads that torch may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{_cpu()}, {torch.get_num_threads()} threads"
    return str(device.type)


@cache
def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
