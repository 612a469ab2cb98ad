"""Calls that are made again with tensors of the same form: the launches and torch operations of the first, replayed.

What a launcher does depends on the form of its tensors alone: shapes, strides, dtypes, device, alignment; never on
their values. So the second call of a form is recorded, as a tape of operations, and later ones play the tape: no
checks, no choice of plans, no binding of arguments by Triton. A call that reads values, or makes tensors on another
device, has no tape and is made in full every time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from sma_compiler.runtime.tape import (
    Allocation,
    Compilable,
    CompiledKernel,
    Found,
    Interpreted,
    Launch,
    Operation,
    Slot,
    Step,
    Tape,
    TritonKernel,
)

TAPES = 1024
"""Forms that are remembered; beyond them all are forgotten."""
STEPS = 200
"""A longer tape is not worth keeping."""
ALIGNMENT = 16
"""What Triton specialises kernels for: whether addresses are multiples of this."""

Nested = TypeVar("Nested")
"""Tensors and constants in lists, tuples, dicts, and what else torch knows the parts of."""


class _Recording(threading.local):
    """The tape that this thread records, where it does; how many kernels it has launched, or played tapes of."""

    tape: Recorder | None = None
    launches: int = 0


_recording = _Recording()


class Tap:
    """A Triton kernel of an emitted file. Its launches go onto the tape of the thread, where one is recorded."""

    def __init__(self, kernel: TritonKernel) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]:
        launch = self.kernel[grid]
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


class Recorder(TorchDispatchMode):
    """Records what a call does to its tensors.

    broken: why it cannot be replayed; "" where it can.
    """

    def __init__(self, inputs: Sequence[Tensor | None], device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.steps: list[Step] = []
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
                self.steps.append(Allocation(found.shape, found.dtype, found.device, *made))
            else:
                self.steps.append(Operation(func, *slotted, made, single=isinstance(found, Tensor)))
            if func.is_view and isinstance(found, Tensor) and isinstance(args[0], Tensor) and not self.broken:
                slot = slotted[0][0]
                assert isinstance(slot, Slot)
                base, offset = self._places.get(slot.number, (slot.number, 0))
                self._places[made[0]] = base, offset + found.data_ptr() - args[0].data_ptr()
        return found

    def launched(
        self,
        kernel: TritonKernel,
        compiled: CompiledKernel | None,
        grid: tuple[int, ...],
        args: Sequence[object],
        keywords: dict[str, object],
    ) -> None:
        """Note a launch. compiled: None where Triton interprets the kernel."""
        given = self._slotted(args), self._slotted(keywords)
        if compiled is None:
            self.steps.append(Interpreted(kernel, grid, *given))
        else:
            assert isinstance(kernel, Compilable)
            self.steps.append(Launch(kernel, compiled, grid, *given, self._places))

    def tape(self, results: Found) -> Tape[Found] | None:
        """The tape, where the call can be replayed."""
        slotted = self._slotted(results)
        if self.broken or len(self.steps) > STEPS:
            return None
        return Tape(self.steps, slotted, self._inputs, self.device)

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

    def _slotted(self, values: Nested) -> Nested:
        """The same with slots for tensors."""
        found: Nested = pytree.tree_map_only(Tensor, self._slot, values)
        return found

    def _slot(self, x: Tensor) -> Slot | Tensor:
        if id(x) not in self._numbers:
            self.broken = "a tensor comes from elsewhere"
            return x
        return Slot(self._numbers[id(x)])


class Replays(Generic[Found]):
    """The tapes of a function that returns what the type Found says, by the form of what it is given."""

    def __init__(self) -> None:
        self._tapes: dict[Hashable, Tape[Found] | None] = {}
        self._seen: set[Hashable] = set()

    def clear(self) -> None:
        """Forget them: the function does something else from now on."""
        self._tapes.clear()
        self._seen.clear()

    def call(self, key: Hashable, inputs: Sequence[Tensor | None], run: Callable[[], Found]) -> Found:
        """`run()`, or a tape of it. key: `form` of the inputs, and whatever else `run` depends on."""
        if _recording.tape is not None:
            return run()
        if same := alike(inputs):
            key = key, same
        tape = self._tapes.get(key)
        if tape is not None:
            _recording.launches += 1
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
