"""A tape: what a call did, as one Python function of its tensors, which does the same with others of the same form.

The function is written and compiled once. It allocates, calls torch operations, and hands addresses to the launchers of
compiled kernels, each in a line of its own, and lets go of every tensor behind its last use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import Signature
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sma_compiler.runtime.versions import triton_version

SMALL = 2**22
"""Bytes of a tensor that may share its memory with others: for larger ones, time on the host does not matter."""
PAGE = 512
"""Where tensors begin in memory that they share, in bytes."""
KNOWN_LAUNCHER = "3.6."
"""The releases of Triton whose launchers are called without what it puts around them."""

QUICK: dict[object, Callable[..., Any]] = {
    torch.ops.aten.sum.dim_IntList: torch.sum,
    torch.ops.aten.view.default: Tensor.view,
    torch.ops.aten.select.int: Tensor.select,
    torch.ops.aten.add.Tensor: torch.add,
    torch.ops.aten.add_.Tensor: Tensor.add_,
    torch.ops.aten.clone.default: torch.clone,
    torch.ops.aten.empty_like.default: torch.empty_like,
}
"""What does the same as an operation, and takes less time on the host."""


Found = TypeVar("Found")
"""What a call returns."""


class Launcher(Protocol):
    """What Triton 3.6 hands a launch to."""

    launch: Callable[..., object]
    launch_cooperative_grid: bool
    launch_pdl: bool
    global_scratch_size: int
    profile_scratch_size: int


class CompiledKernel(Protocol):
    """A kernel that Triton compiled: `kernel[grid]` launches it. function: the driver's handle of it."""

    run: Launcher
    function: int
    packed_metadata: object

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]: ...


class TritonKernel(Protocol):
    """A kernel of an emitted file: `kernel[grid]` launches it, and gives what was compiled; None: interpreted."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., CompiledKernel | None]: ...


@runtime_checkable
class Compilable(TritonKernel, Protocol):
    """A kernel that Triton does not interpret."""

    signature: Signature


class Hooks(Protocol):
    """What Triton tells of launches, where anything wants to be told."""

    launch_enter_hook: object
    launch_exit_hook: object


@dataclass(frozen=True)
class Slot:
    """Stands for a tensor in what a tape holds: an input, or what a step before made."""

    number: int


class Code:
    """The text of a tape's function. bare: without Triton's own Python around launches, where it is known."""

    def __init__(self, *, bare: bool) -> None:
        self.bare = bare
        self.lines: list[str] = []
        self.names: dict[str, object] = {}
        self._addresses: set[int] = set()

    def line(self, text: str) -> None:
        """One more statement."""
        self.lines.append(f"    {text}")

    def value(self, x: object) -> str:
        """An expression for a value: slots, and what holds them, are made anew in every call."""
        if isinstance(x, Slot):
            return f"t{x.number}"
        if type(x) is list:
            return f"[{', '.join(map(self.value, x))}]"
        if type(x) is tuple:
            return f"({''.join(f'{self.value(part)}, ' for part in x)})"
        if x is None or type(x) in (bool, int) or (type(x) is float and math.isfinite(x)):
            return repr(x)
        node = pytree.SUPPORTED_NODES.get(type(x))
        if node is None:
            return self.constant(x)
        parts, context = node.flatten_fn(x)
        return f"{self.constant(node.unflatten_fn)}({self.value(list(parts))}, {self.constant(context)})"

    def constant(self, x: object) -> str:
        """A name for something that is the same in every call."""
        name = f"c{len(self.names)}"
        self.names[name] = x
        return name

    def address(self, number: int, offset: int) -> str:
        """An expression for an address, so many bytes behind where a tensor begins."""
        if number not in self._addresses:
            self._addresses.add(number)
            self.line(f"p{number} = t{number}.data_ptr()")
        return f"p{number} + {offset}" if offset else f"p{number}"

    def arguments(self, args: Sequence[object], keywords: Mapping[str, object]) -> str:
        """The arguments of a call."""
        named = (f"{name}={self.value(x)}" for name, x in keywords.items())
        return ", ".join([*map(self.value, args), *named])

    def function(self, parameters: str) -> Callable[..., Any]:
        """The lines as a function."""
        text = "\n".join([f"def play({parameters}):", *self.lines])
        space: dict[str, Any] = dict(self.names)
        exec(compile(text, "<tape>", "exec"), space)
        found: Callable[..., Any] = space["play"]
        return found


class Operation:
    """One torch operation of a tape. made: the numbers of its results; single: whether it gives one tensor."""

    def __init__(
        self,
        function: torch._ops.OpOverload,
        args: Sequence[Any],
        keywords: dict[str, Any],
        made: Sequence[int],
        *,
        single: bool = True,
    ) -> None:
        self.function = function
        self.changes = function._schema.is_mutable
        self.made = tuple(made)
        self.args = list(args)
        self.keywords = keywords
        self.single = single

    @property
    def reads(self) -> set[int]:
        """The tensors that it is given."""
        return _numbers((self.args, self.keywords))

    def write(self, code: Code) -> None:
        """Its line."""
        quick, args, keywords = _quick(self.function, self.args, self.keywords)
        call = f"{code.value(quick)}({code.arguments(args, keywords)})"
        if self.single:
            code.line(f"t{self.made[0]} = {call}")
        elif self.made:
            code.line("".join(f"t{number}, " for number in self.made) + f"= {code.value(pytree.tree_leaves)}({call})")
        else:
            code.line(call)


class Allocation:
    """Memory that a contiguous tensor takes, uninitialised."""

    changes = False

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device, number: int) -> None:
        self.made = (number,)
        self.reads: set[int] = set()
        self.shape = tuple(shape)
        self.dtype = dtype
        self.device = device
        self.bytes = math.prod(self.shape) * dtype.itemsize

    def write(self, code: Code) -> None:
        """Its line."""
        strides = tuple(math.prod(max(n, 1) for n in self.shape[axis:]) for axis in range(1, len(self.shape) + 1))
        call = f"{code.value(_empty(self.device))}({code.arguments([self.shape, strides, self.dtype], {})})"
        code.line(f"t{self.made[0]} = {call}")


class Launch:
    """One launch of a compiled kernel: the driver is given addresses, in the order of all parameters.

    places: of every number of a tensor, that of the one it is a view of, and how many bytes behind it begins.
    """

    changes = True
    made: tuple[int, ...] = ()

    def __init__(
        self,
        kernel: Compilable,
        compiled: CompiledKernel,
        grid: tuple[int, ...],
        args: Sequence[object],
        keywords: Mapping[str, object],
        places: Mapping[int, tuple[int, int]],
    ) -> None:
        known = kernel.signature.parameters
        bound = kernel.signature.bind(*args, **{name: x for name, x in keywords.items() if name in known})
        bound.apply_defaults()
        self.values = list(bound.arguments.values())
        found = ((at, x.number) for at, x in enumerate(self.values) if isinstance(x, Slot))
        self.addresses = {at: places.get(number, (number, 0)) for at, number in found}
        self.grid = (*grid, 1, 1)[:3]
        self.compiled = compiled
        self.launch = compiled[self.grid]

    @property
    def reads(self) -> set[int]:
        """The tensors that it is given, or that these are views of."""
        return {number for number, _ in self.addresses.values()}

    @property
    def bare(self) -> bool:
        """Whether the driver's launcher is known, and needs nothing but what is given here."""
        run: Launcher | None = getattr(self.compiled, "run", None)
        known = type(run).__name__ == "CudaLauncher" and triton_version().startswith(KNOWN_LAUNCHER)
        return run is not None and known and not (run.global_scratch_size or run.profile_scratch_size)

    def move(self, places: Mapping[int, tuple[int, int]]) -> None:
        """Let tensors lie elsewhere: in the tensor of another number, so many bytes behind its begin."""
        for at, (number, offset) in self.addresses.items():
            if number in places:
                base, start = places[number]
                self.addresses[at] = base, start + offset

    def write(self, code: Code) -> None:
        """Its line, and before it those of addresses that no line before has."""
        values = [
            code.address(*self.addresses[at]) if at in self.addresses else code.value(x)
            for at, x in enumerate(self.values)
        ]
        if code.bare and self.bare:
            run = self.compiled.run
            first = [*map(code.value, self.grid), "stream", code.value(self.compiled.function)]
            flags = [code.value(x) for x in (run.launch_cooperative_grid, run.launch_pdl)]
            # no scratch memory; then what Triton tells the hooks around a launch, of which there are none
            rest = ["None", "None", code.value(self.compiled.packed_metadata), "None", "None", "None"]
            code.line(f"{code.value(run.launch)}({', '.join([*first, *flags, *rest, *values])})")
        else:
            code.line(f"{code.value(self.launch)}({', '.join([*values, 'stream=stream'])})")


class Interpreted:
    """One launch of a kernel that Triton interprets."""

    changes = True
    made: tuple[int, ...] = ()

    def __init__(
        self,
        kernel: TritonKernel,
        grid: tuple[int, ...],
        args: Sequence[object],
        keywords: Mapping[str, object],
    ) -> None:
        self.launch = kernel[grid]
        self.args = args
        self.keywords = keywords

    @property
    def reads(self) -> set[int]:
        """The tensors that it is given."""
        return _numbers((self.args, self.keywords))

    def write(self, code: Code) -> None:
        """Its line."""
        code.line(f"{code.value(self.launch)}({code.arguments(self.args, self.keywords)})")


Step = Operation | Allocation | Launch | Interpreted


class Tape(Generic[Found]):
    """What a call did, and how its results, of the type Found, are made of what it made.

    results: these, with slots for their tensors. inputs: how many tensors it is given.
    """

    def __init__(self, steps: Sequence[Step], results: object, inputs: int, device: torch.device) -> None:
        self.results = results
        self.wanted = _numbers(results)
        self.steps = _pooled(_needed(steps, set(self.wanted)), self.wanted, device)
        self.inputs = inputs
        self.index = device.index if device.type == "cuda" else None
        self._bare = any(isinstance(step, Launch) and step.bare for step in self.steps)
        self._play = self._function(bare=self._bare)

    def play(self, inputs: Sequence[Tensor | None]) -> Found:
        """Do the same with other tensors of the same form."""
        play = self._function(bare=False) if self._bare and _hooked() else self._play
        if self.index is None:
            return play(inputs, None)
        if torch._C._cuda_getDevice() != self.index:
            with torch.cuda.device(self.index):
                return play(inputs, torch._C._cuda_getCurrentRawStream(self.index))
        return play(inputs, torch._C._cuda_getCurrentRawStream(self.index))

    def _function(self, *, bare: bool) -> Callable[[Sequence[Tensor | None], int | None], Found]:
        code = Code(bare=bare)
        code.line("".join(f"t{number}, " for number in range(self.inputs)) + "= inputs")
        last = {number: at for at, step in enumerate(self.steps) for number in (*step.made, *step.reads)}
        for at, step in enumerate(self.steps):
            step.write(code)
            over = [n for n, end in last.items() if end == at and n >= self.inputs and n not in self.wanted]
            if over:
                code.line(f"del {', '.join(f't{number}' for number in over)}")
        code.line(f"return {code.value(self.results)}")
        return code.function("inputs, stream")


def _numbers(values: object) -> set[int]:
    """Of the tensors that are mentioned."""
    return {x.number for x in pytree.tree_leaves(values) if isinstance(x, Slot)}


def _hooked() -> bool:
    """Whether anything wants to be told of launches."""
    hooks = _options().launch_enter_hook, _options().launch_exit_hook
    return any(getattr(hook, "calls", hook) for hook in hooks)


@cache
def _options() -> Hooks:
    from triton import knobs

    found: Hooks = knobs.runtime
    return found


def _needed(steps: Sequence[Step], wanted: set[int]) -> tuple[Step, ...]:
    """The steps that change something or make what is wanted: views that only give an address are not made again."""
    kept: list[Step] = []
    for step in reversed(steps):
        if step.changes or wanted & set(step.made):
            wanted |= step.reads
            kept.append(step)
    return tuple(reversed(kept))


def _pooled(steps: Sequence[Step], results: set[int], device: torch.device) -> tuple[Step, ...]:
    """The steps with one allocation for all small tensors that launches alone use."""
    seen = results.union(*(step.reads for step in steps if not isinstance(step, Launch)))
    small = [
        step for step in steps if isinstance(step, Allocation) and step.bytes <= SMALL and not seen & set(step.made)
    ]
    if len(small) < 2:
        return tuple(steps)
    base, end = small[0].made[0], 0
    places: dict[int, tuple[int, int]] = {}
    for step in small:
        places[step.made[0]] = base, end
        end += -(-step.bytes // PAGE) * PAGE
    for launch in steps:
        if isinstance(launch, Launch):
            launch.move(places)
    return (Allocation((end,), torch.uint8, device, base), *(step for step in steps if step not in small))


def _empty(device: torch.device) -> Callable[..., Tensor]:
    """What makes a tensor of a shape, strides and a dtype on the current device.

    Code that torch compiles calls the first, which takes a third of the time.
    """
    found: Callable[..., Tensor] | None = getattr(torch._C._dynamo.guards, f"_empty_strided_{device.type}", None)
    return found or (lambda shape, strides, dtype: torch.empty(shape, dtype=dtype, device=device))


def _quick(
    function: torch._ops.OpOverload, args: Sequence[Any], keywords: dict[str, Any]
) -> tuple[Callable[..., Any], Sequence[Any], dict[str, Any]]:
    """What does the same as an operation of these arguments, and its own."""
    if function is torch.ops.aten._to_copy.default and set(keywords) == {"dtype"}:
        to: Callable[..., Any] = Tensor.to
        return to, [*args, keywords["dtype"]], {}
    return QUICK.get(function, function), args, keywords
