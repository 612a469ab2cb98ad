"""Calls that are made again with tensors of the same form: the launches and torch operations of the first, replayed.

What a launcher does depends on the form of its tensors alone: shapes, strides, dtypes, device, alignment; never on
their values. So the second call of a form is recorded, as a tape of operations, and later ones play the tape: no
checks, no choice of plans, no binding of arguments by Triton. A call that reads values, or makes tensors on another
device, has no tape and is made in full every time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

TAPES = 1024
"""Forms that are remembered; beyond them all are forgotten."""
STEPS = 200
"""A longer tape is not worth keeping."""
SMALL = 2**22
"""Bytes of a tensor that may share its memory with others: for larger ones, time on the host does not matter."""
PAGE = 512
"""Where tensors begin in memory that they share, in bytes."""
ALIGNMENT = 16
"""What Triton specialises kernels for: whether addresses are multiples of this."""

Run = Callable[[], Any]
"""The call in full, with the tensors that are given beside it."""


@dataclass(frozen=True)
class Slot:
    """Stands for a tensor in what a tape holds: an input, or what a step before made."""

    number: int


class _Recording(threading.local):
    """The tape that this thread records, where it does; how many kernels it has launched, or played tapes of."""

    tape: Recorder | None = None
    launches: int = 0


_recording = _Recording()


class Tap:
    """A Triton kernel of an emitted file. Its launches go onto the tape of the thread, where one is recorded."""

    def __init__(self, kernel: Any) -> None:  # noqa: ANN401 (a JITFunction, or the interpreter's)
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]:
        launch: Callable[..., object] = self.kernel[grid]
        _recording.launches += 1
        tape = _recording.tape
        if tape is None:
            return launch

        def recorded(*args: object, **keywords: object) -> object:
            with _disable_current_modes():  # the interpreter computes with tensors
                compiled = launch(*args, **keywords)
            tape.launched(self.kernel, compiled, grid, args, keywords)
            return compiled

        return recorded


class _Operation:
    """One torch operation of a tape. made: the numbers of its results."""

    def __init__(
        self, function: torch._ops.OpOverload, args: Sequence[Any], keywords: dict[str, Any], made: Sequence[int]
    ) -> None:
        self.function = _quick(function)
        self.changes = function._schema.is_mutable
        self.made = tuple(made)
        self.leaves, self.spec = pytree.tree_flatten((list(args), keywords))
        self.slots = _slots(self.leaves)
        self.constant = None if self.slots else (tuple(args), keywords)

    @property
    def reads(self) -> set[int]:
        """The tensors that it is given."""
        return {number for _, number in self.slots}

    def play(self, tensors: list[Any], stream: object) -> None:
        if self.constant is not None:
            found = self.function(*self.constant[0], **self.constant[1])
        else:
            args, keywords = pytree.tree_unflatten(_filled(self.leaves, self.slots, tensors), self.spec)
            found = self.function(*args, **keywords)
        if isinstance(found, Tensor):
            tensors[self.made[0]] = found
        else:
            for number, x in zip(self.made, pytree.tree_leaves(found), strict=True):
                tensors[number] = x


class _Allocation(_Operation):
    """Memory that an operation takes, uninitialised."""

    def __init__(self, found: Tensor, made: Sequence[int]) -> None:
        keywords = {"dtype": found.dtype, "device": found.device}
        super().__init__(torch.ops.aten.empty.memory_format, (tuple(found.shape),), keywords, made)
        self.bytes = found.numel() * found.element_size()


class _Scratch:
    """Memory for several tensors that launches alone use."""

    changes = False

    def __init__(self, number: int, count: int, device: torch.device) -> None:
        self.made = (number,)
        self.reads: set[int] = set()
        self.count = count
        self.device = device

    def play(self, tensors: list[Any], stream: object) -> None:
        tensors[self.made[0]] = torch.empty(self.count, dtype=torch.uint8, device=self.device)


class _Launch:
    """One launch of a compiled kernel: the driver is given addresses, in the order of all parameters.

    places: of every number of a tensor, that of the one it is a view of, and how many bytes behind it begins.
    """

    changes = True
    made: tuple[int, ...] = ()

    def __init__(
        self,
        kernel: Any,  # noqa: ANN401 (a JITFunction)
        compiled: Any,  # noqa: ANN401 (a CompiledKernel)
        grid: tuple[int, ...],
        args: Sequence[object],
        keywords: Mapping[str, object],
        places: Mapping[int, tuple[int, int]],
    ) -> None:
        known = kernel.signature.parameters
        bound = kernel.signature.bind(*args, **{name: x for name, x in keywords.items() if name in known})
        bound.apply_defaults()
        self.values = list(bound.arguments.values())
        self.addresses = [(at, *places.get(number, (number, 0))) for at, number in _slots(self.values)]
        self.launch = compiled[(*grid, 1, 1)[:3]]

    @property
    def reads(self) -> set[int]:
        """The tensors that it is given, or that these are views of."""
        return {number for _, number, _ in self.addresses}

    def move(self, places: Mapping[int, tuple[int, int]]) -> None:
        """Let tensors lie elsewhere: in the tensor of another number, so many bytes behind its begin."""
        for place, (at, number, offset) in enumerate(self.addresses):
            if number in places:
                base, start = places[number]
                self.addresses[place] = at, base, start + offset

    def play(self, tensors: list[Any], stream: object) -> None:
        values = self.values.copy()
        for at, number, offset in self.addresses:
            values[at] = tensors[number].data_ptr() + offset
        self.launch(*values, stream=stream)


class _Interpreted:
    """One launch of a kernel that Triton interprets."""

    changes = True
    made: tuple[int, ...] = ()

    def __init__(
        self,
        kernel: Any,  # noqa: ANN401 (an InterpretedFunction)
        grid: tuple[int, ...],
        args: Sequence[object],
        keywords: Mapping[str, object],
    ) -> None:
        self.launch = kernel[grid]
        self.values = list(args)
        self.keywords = keywords
        self.slots = _slots(self.values)

    @property
    def reads(self) -> set[int]:
        """The tensors that it is given."""
        return {number for _, number in self.slots}

    def play(self, tensors: list[Any], stream: object) -> None:
        self.launch(*_filled(self.values, self.slots, tensors), **self.keywords)


_Step = _Operation | _Scratch | _Launch | _Interpreted


def _slots(values: Sequence[object]) -> list[tuple[int, int]]:
    """Where there are slots, and for which tensors."""
    return [(at, value.number) for at, value in enumerate(values) if isinstance(value, Slot)]


def _filled(values: Sequence[Any], slots: Sequence[tuple[int, int]], tensors: Sequence[Any]) -> list[Any]:
    found = list(values)
    for at, number in slots:
        found[at] = tensors[number]
    return found


class Tape:
    """What a call did, and how its results are made of what it made.

    made: how many tensors there are beside the inputs.
    """

    def __init__(self, steps: Sequence[_Step], results: Any, made: int, device: torch.device) -> None:  # noqa: ANN401
        self.leaves, self.spec = pytree.tree_flatten(results)
        self.slots = _slots(self.leaves)
        self.numbers = [number for _, number in self.slots]
        self.flat = isinstance(results, tuple) and len(self.slots) == len(self.leaves) == len(results)
        self.steps = _pooled(_needed(steps, set(self.numbers)), set(self.numbers), device)
        self.blank = [None] * made
        self.index = device.index if device.type == "cuda" else None

    def play(self, inputs: Sequence[Tensor | None]) -> Any:  # noqa: ANN401 (what the recorded call returned)
        """Do the same with other tensors of the same form."""
        _recording.launches += 1
        if self.index is None:
            return self._play(inputs, None)
        if torch.cuda.current_device() != self.index:
            with torch.cuda.device(self.index):
                return self._play(inputs, torch._C._cuda_getCurrentRawStream(self.index))
        return self._play(inputs, torch._C._cuda_getCurrentRawStream(self.index))

    def _play(self, inputs: Sequence[Tensor | None], stream: object) -> Any:  # noqa: ANN401
        tensors: list[Any] = [*inputs, *self.blank]
        for step in self.steps:
            step.play(tensors, stream)
        if self.flat:
            return tuple([tensors[number] for number in self.numbers])
        return pytree.tree_unflatten(_filled(self.leaves, self.slots, tensors), self.spec)


def _needed(steps: Sequence[_Step], wanted: set[int]) -> tuple[_Step, ...]:
    """The steps that change something or make what is wanted: views that only give an address are not made again."""
    kept: list[_Step] = []
    for step in reversed(steps):
        if step.changes or wanted & set(step.made):
            wanted |= step.reads
            kept.append(step)
    return tuple(reversed(kept))


def _pooled(steps: Sequence[_Step], results: set[int], device: torch.device) -> tuple[_Step, ...]:
    """The steps with one allocation for all small tensors that launches alone use."""
    seen = results.union(*(step.reads for step in steps if not isinstance(step, _Launch)))
    small = [
        step for step in steps if isinstance(step, _Allocation) and step.bytes <= SMALL and not seen & set(step.made)
    ]
    if len(small) < 2:
        return tuple(steps)
    base, end = small[0].made[0], 0
    places: dict[int, tuple[int, int]] = {}
    for step in small:
        places[step.made[0]] = base, end
        end += -(-step.bytes // PAGE) * PAGE
    for launch in steps:
        if isinstance(launch, _Launch):
            launch.move(places)
    return (_Scratch(base, end, device), *(step for step in steps if step not in small))


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records what a call does to its tensors.

    broken: why it cannot be replayed; "" where it can.
    """

    def __init__(self, inputs: Sequence[Tensor | None], device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.steps: list[_Step] = []
        self.broken = ""
        self._inputs = len(inputs)
        self._known: list[Tensor | None] = list(inputs)  # held while recording, so that no id is given twice
        self._numbers = {id(x): number for number, x in enumerate(inputs) if x is not None}
        self._places: dict[int, tuple[int, int]] = {}

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if torch.Tag.data_dependent_output in func.tags or torch.Tag.nondeterministic_seeded in func.tags:
            self.broken = f"{func} reads values"
        if func is torch.ops.aten.detach.default and isinstance(found, Tensor) and self._own(args[0]):
            self._known.append(found)
            self._numbers[id(found)] = self._numbers[id(args[0])]
        elif not self.broken:
            slotted = self._slotted(args), self._slotted(kwargs)
            made = [self._add(x) for x in pytree.tree_leaves(found)]
            if func is torch.ops.aten.empty.memory_format and isinstance(found, Tensor) and found.is_contiguous():
                self.steps.append(_Allocation(found, made))
            else:
                self.steps.append(_Operation(func, *slotted, made))
            if func.is_view and isinstance(found, Tensor) and isinstance(args[0], Tensor) and not self.broken:
                base, offset = self._places.get(slotted[0][0].number, (slotted[0][0].number, 0))
                self._places[made[0]] = base, offset + found.data_ptr() - args[0].data_ptr()
        return found

    def launched(
        self, kernel: object, compiled: object, grid: tuple[int, ...], args: Sequence[object], keywords: dict[str, Any]
    ) -> None:
        """Note a launch. compiled: None where Triton interprets the kernel."""
        given = self._slotted(args), self._slotted(keywords)
        if compiled is None:
            self.steps.append(_Interpreted(kernel, grid, *given))
        else:
            self.steps.append(_Launch(kernel, compiled, grid, *given, self._places))

    def tape(self, results: Any) -> Tape | None:  # noqa: ANN401
        """The tape, where the call can be replayed."""
        slotted = self._slotted(results)
        if self.broken or len(self.steps) > STEPS:
            return None
        return Tape(self.steps, slotted, len(self._known) - self._inputs, self.device)

    def _own(self, x: object) -> bool:
        """Whether the call made a tensor itself: another that shares its memory is then as good."""
        return self._numbers.get(id(x), 0) >= self._inputs

    def _add(self, x: object) -> int:
        """The number of what an operation made."""
        if not isinstance(x, Tensor) or x.device != self.device:
            self.broken = "an operation makes something else than tensors of the device"
            self._known.append(None)
        else:
            self._numbers[id(x)] = len(self._known)
            self._known.append(x)
        return len(self._known) - 1

    def _slotted(self, values: Any) -> Any:  # noqa: ANN401
        return pytree.tree_map_only(Tensor, self._slot, values)

    def _slot(self, x: Tensor) -> Slot | Tensor:
        if id(x) not in self._numbers:
            self.broken = "a tensor comes from elsewhere"
            return x
        return Slot(self._numbers[id(x)])


def _quick(func: torch._ops.OpOverload) -> Callable[..., Any]:
    """What does the same as an operation, and faster where allocations are concerned."""
    return torch.empty if func is torch.ops.aten.empty.memory_format else func


class Replays:
    """The tapes of a function, by the form of what it is given."""

    def __init__(self) -> None:
        self._tapes: dict[Hashable, Tape | None] = {}
        self._seen: set[Hashable] = set()

    def clear(self) -> None:
        """Forget them: the function does something else from now on."""
        self._tapes.clear()
        self._seen.clear()

    def call(self, key: Hashable, inputs: Sequence[Tensor | None], run: Run) -> Any:  # noqa: ANN401
        """`run()`, or a tape of it. key: `form` of the inputs, and whatever else `run` depends on."""
        if _recording.tape is not None:
            return run()
        if same := alike(inputs):
            key = key, same
        tape = self._tapes.get(key)
        if tape is not None:
            return tape.play(inputs)
        if key in self._tapes:
            return run()
        if key not in self._seen:  # the first call compiles kernels: what it does is not worth noting
            if max(len(self._seen), len(self._tapes)) >= TAPES:
                self.clear()
            before = _recording.launches
            found = run()
            if _recording.launches > before:
                self._seen.add(key)
            else:
                self._tapes[key] = None
            return found
        device = next(x.device for x in inputs if x is not None)
        recorder = Recorder(inputs, device)
        _recording.tape = recorder
        try:
            with recorder:
                found = run()
        finally:
            _recording.tape = None
        self._tapes[key] = recorder.tape(found)
        return found


def form(x: Tensor) -> tuple[Hashable, ...]:
    """All that a launcher can depend on, but for values."""
    return x.shape, x.stride(), x.dtype, x.device, x.data_ptr() % ALIGNMENT, x.is_neg()


def alike(inputs: Sequence[Tensor | None]) -> tuple[int, ...]:
    """Which inputs are one tensor, by the place of its first; () where all differ."""
    numbers = [id(x) for x in inputs]
    return () if len(set(numbers)) == len(numbers) else tuple(numbers.index(number) for number in numbers)


def plain(tensors: Sequence[Tensor | None]) -> bool:
    """Whether tensors are what they seem, with memory of their own: no tracing, no transform, no mode is active."""
    modes = torch._C._len_torch_dispatch_stack()
    if modes != (_recording.tape is not None) or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    if forward_ad._current_level >= 0 or torch.compiler.is_compiling():
        return False
    return all(x is None or type(x) is Tensor or type(x) is Parameter for x in tensors)
