"""What the tensors of a state look like: the empty state, the check of a given one, caches of different sizes.

Tensors of a cache, `<contraction>.cache.<name>` [B, slots, ...], hold earlier positions; `pos` says which, -1 in an
empty slot. A cache may have any number of slots, a ring in the order of time: empty ones stand before the oldest
position, and each new one goes behind the newest. Calls return it turned so that the newest is last; kernels that write
into a state leave it as it lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from sma_compiler.call_errors import CapacityExceeded, ForeignState, ForgottenPositions, NotAState, StateMismatch
from sma_compiler.ir.nodes import Kind, Param, ParamDecl
from sma_compiler.kernel.linear import plain
from sma_compiler.runtime.args import Arguments, Number, readable, self_check
from sma_compiler.runtime.pack import Pack
from sma_compiler.runtime.program import Program
from sma_compiler.runtime.state import State
from sma_compiler.torch_plans import run

Tensors = Mapping[str, Tensor]


def in_cache(name: str) -> bool:
    """Whether a tensor of a state has slots at dimension 1."""
    return ".cache." in name


def _is_positions(name: str) -> bool:
    return name.endswith(".cache.pos")


def empty_state(
    program: Program,
    sizes: Mapping[str, int],
    numbers: Mapping[str, Number],
    rows: int,
    compute: torch.dtype,
    device: torch.device,
    capacity: int | None = None,
) -> dict[str, Tensor]:
    """The state before the first position.

    sizes: of every axis but time. numbers: the number parameters; a window that is missing leaves its cache to
    `capacity`. capacity: slots of caches that hold every position; None: none, they grow with each call.
    """
    known = dict(numbers)
    open_ended = False
    for decl in program.op.params:
        if decl.number and decl.name not in known:
            known[decl.name] = 1
            open_ended = open_ended or decl.kind is Kind.INT
    state = run.empty_state(
        program.op,
        program.plans,
        {**sizes, "batch": rows},
        known,
        capacity=capacity,
        compute=compute,
        device=device,
    )
    if open_ended:
        state = {name: _with_slots(name, tensor, capacity or 0) for name, tensor in state.items()}
    for name in as_given(program) if "group" in sizes else ():
        state[name] = state[name][:, :, : sizes["group"]].contiguous()
    return state


def as_given(program: Program) -> dict[str, ParamDecl]:
    """What a cache holds of tensors as they are given, by name: it may have their heads and their dtype."""
    member = program.kernels.cached
    if member is None:
        return {}
    decls = {decl.name: decl for decl in program.op.params}
    name = program.plans.of(member.pairs.linear.attend).site.name
    held = {f"{name}.cache.{part}": plain(member.held[part]) for part in ("k", "v")}
    return {name: decls[x.name] for name, x in held.items() if isinstance(x, Param) and "head" in x.axes}


def all_heads(program: Program, arguments: Arguments, state: Tensors) -> dict[str, Tensor]:
    """The state with every head and in the dtype of the computation, as plans of the torch backend take it."""
    found = dict(state)
    for name in as_given(program):
        x, heads = state[name], arguments.sizes["head"]
        if x.shape[2] != heads:
            x = x.repeat_interleave(heads // x.shape[2], 2, output_size=heads)
        found[name] = x.to(arguments.compute)
    return found


def alike(program: Program, after: Tensors, before: Tensors) -> dict[str, Tensor]:
    """The new state with as many heads as the old one has, in its dtype."""
    found = dict(after)
    for name in as_given(program):
        x, heads = after[name], before[name].shape[2]
        found[name] = (x if x.shape[2] == heads else x[:, :, :: x.shape[2] // heads]).to(before[name].dtype)
    return found


def _with_slots(name: str, tensor: Tensor, slots: int) -> Tensor:
    """A tensor of a cache with empty slots in front, or without its oldest, so that it has this many; others as is."""
    if not in_cache(name):
        return tensor
    missing = slots - tensor.shape[1]
    if missing == 0:
        return tensor
    if missing < 0:
        return tensor[:, -missing:]
    padding = (0, 0) * (tensor.dim() - 2) + (missing, 0)
    return functional.pad(tensor, padding, value=-1 if _is_positions(name) else 0)


def check_state(program: Program, arguments: Arguments, rows: int, state: object) -> None:
    """Refuse a state that is not of this op, or not of these sizes, dtype and device.

    Raises:
        NotAState, ForeignState, StateMismatch: say what differs.
        ForgottenPositions: a window is wider than it was, and reads what is kept no more.
    """
    op = program.op.label
    if not isinstance(state, State):
        raise NotAState(op, state)
    if state.spec_hash != program.spec_hash:
        raise ForeignState(op, state.spec_hash, program.spec_hash)
    expected = layout(program, arguments.sizes, arguments.compute)
    if list(state) != list(expected):
        raise StateMismatch(op, "position", "list of names beside", list(state), list(expected))
    slots: dict[str, int] = {}
    given = as_given(program)
    for name, (shape, dtype) in expected.items():
        tensor = state[name]
        found, wanted = list(tensor.shape), [rows, *shape]
        if name in given and len(found) == len(wanted):
            own = arguments.tensors[given[name].name]
            wanted[2] = found[2] if found[2] == own.shape[given[name].dims.index("head")] else wanted[2]
            dtype = tensor.dtype if tensor.dtype == own.dtype else dtype
        if in_cache(name) and len(found) == len(wanted):
            wanted[1] = slots.setdefault(name.rpartition(".")[0], found[1])
        if found != wanted:
            raise StateMismatch(op, name, "shape", found, wanted)
        if tensor.dtype != dtype:
            raise StateMismatch(op, name, "dtype", tensor.dtype, dtype)
        if tensor.device != arguments.device:
            raise StateMismatch(op, name, "device", tensor.device, arguments.device)
    _check_window(program, arguments, state)


def _check_window(program: Program, arguments: Arguments, state: State) -> None:
    """Refuse a cache that lacks positions which this call reads (on the CPU, and anywhere under SMA_SELF_CHECK=1)."""
    seen = state["position"]
    if not any(decl.kind is Kind.INT for decl in program.op.params if decl.number):
        return
    if not readable(seen) or not (self_check() or seen.device.type == "cpu"):
        return
    for name, slots in _slots_read(program, arguments).items():
        kept = (state[name] >= 0).sum(1)
        lacking = kept < seen.clamp(max=slots)
        if bool(lacking.any()):
            row = int(lacking.nonzero()[0])
            cache = name.removesuffix(".pos")
            raise ForgottenPositions(program.op.label, cache, int(kept[row]), min(int(seen[row]), slots))


def _slots_read(program: Program, arguments: Arguments) -> dict[str, int]:
    """How many earlier positions a call with these numbers reads of each cache, by the name of its `pos`."""
    sizes = {axis: size for axis, size in arguments.sizes.items() if axis not in ("batch", "time")}
    if any(type(number) not in (int, float) for number in (*sizes.values(), *arguments.numbers.values())):
        return {}  # symbolic, while torch traces the call
    key = ("slots", *sorted(sizes.items()), *sorted(arguments.numbers.items()))
    if key not in program.layouts:
        cpu = torch.device("cpu")
        program.layouts[key] = {
            name: (tuple(tensor.shape[1:]), tensor.dtype)
            for name, tensor in empty_state(program, sizes, arguments.numbers, 1, torch.float32, cpu).items()
            if _is_positions(name)
        }
    return {name: shape[0] for name, (shape, _) in program.layouts[key].items()}


Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]


def layout(program: Program, sizes: Mapping[str, int], compute: torch.dtype) -> Layout:
    """The shape (without its first dimension, the rows) and dtype of every tensor of a state; 0 slots in caches."""
    known = {axis: size for axis, size in sizes.items() if axis not in ("batch", "time")}
    plain = all(type(size) is int for size in known.values())
    key = (compute, *sorted(known.items()))
    if plain and key in program.layouts:
        return program.layouts[key]
    empty = empty_state(program, known, {}, 1, compute, torch.device("cpu"))
    found = {name: (tuple(tensor.shape[1:]), tensor.dtype) for name, tensor in empty.items()}
    if plain:
        program.layouts[key] = found
    return found


def fit_slots(op: str, after: Tensors, before: Tensors) -> dict[str, Tensor]:
    """The new state with as many slots in its caches as the old one has.

    Raises:
        CapacityExceeded: a slot that would have to go still holds a position.
    """
    for name, tensor in after.items():
        if _is_positions(name):
            gone = tensor[:, : max(0, tensor.shape[1] - before[name].shape[1])]
            if gone.shape[1] and readable(gone) and bool((gone >= 0).any()):  # values of a GPU are waited for
                raise CapacityExceeded(op, name.removesuffix(".pos"), before[name].shape[1])
    return {
        name: _with_slots(name, tensor, before[name].shape[1]) if in_cache(name) else tensor
        for name, tensor in after.items()
    }


def in_order(state: Tensors) -> dict[str, Tensor]:
    """The state with the newest position of each row in the last slot of its caches, however kernels left them."""
    found = dict(state)
    for name, places in state.items():
        slots = places.shape[1] if _is_positions(name) else 0
        if slots < 2:
            continue
        newest, last = places.max(1)
        behind = torch.where(newest < 0, 0, last + 1)
        if readable(places) and places.device.type == "cpu" and not bool((behind % slots).any()):
            continue
        turned = (behind[:, None] + torch.arange(slots, device=places.device)) % slots
        cache = name.removesuffix("pos")
        for other, x in state.items():
            if other.startswith(cache):
                index = turned.reshape(*turned.shape, *[1] * (x.dim() - 2))
                found[other] = x.gather(1, index.expand(x.shape))
    return found


def own_memory(tensor: Tensor) -> Tensor:
    """The tensor, contiguous and copied out of anything larger that it is a part of, so as not to keep that alive."""
    part = readable(tensor) and tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()
    return tensor.clone(memory_format=torch.contiguous_format) if part else tensor.contiguous()


def join_rows(parts: Sequence[Tensors], pack: Pack) -> dict[str, Tensor]:
    """The state of a pack from those of its buckets, whose caches may differ in slots."""
    found = {}
    for name in parts[0]:
        tensors = [part[name] for part in parts]
        if in_cache(name):
            slots = max(tensor.shape[1] for tensor in tensors)
            tensors = [_with_slots(name, tensor, slots) for tensor in tensors]
        found[name] = pack.gather(tensors)
    return found
