"""Calls that are made again with tensors of the same form: the launches and torch operations of the first, replayed.

What a launcher does depends on the form of its tensors alone: shapes, strides, dtypes, device, alignment; never on
their values. So the second call of a form is recorded, as a tape of operations, and later ones play the tape: no
checks, no choice of plans, no binding of arguments by Triton. A call that reads values, or makes tensors on another
device, has no tape and is made in full every time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

TAPES = 1024
"""Forms that are remembered; beyond them all are forgotten."""
STEPS = 64
"""A longer tape is not worth keeping."""
ALIGNMENT = 16
"""What Triton specialises kernels for: whether addresses are multiples of this."""

Run = Callable[[], Any]
"""The call in full, with the tensors that are given beside it."""


class Slot(NamedTuple):
    """Stands for a tensor in what a tape holds: an input, or what a step before made."""

    number: int


class _Recording(threading.local):
    """The tape that this thread records, where it does."""

    tape: Recorder | None = None


_recording = _Recording()


class Tap:
    """A Triton kernel of an emitted file. Its launches go onto the tape of the thread, where one is recorded."""

    def __init__(self, kernel: Any) -> None:  # noqa: ANN401 (a JITFunction, or the interpreter's)
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]:
        launch: Callable[..., object] = self.kernel[grid]
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
    """One torch operation of a tape."""

    def __init__(self, function: Callable[..., Any], args: Sequence[Any], keywords: dict[str, Any]) -> None:
        self.function = function
        self.leaves, self.spec = pytree.tree_flatten((list(args), keywords))
        self.slots = [(at, leaf.number) for at, leaf in enumerate(self.leaves) if isinstance(leaf, Slot)]
        self.plain = None if self.slots else (tuple(args), keywords)

    def play(self, tensors: list[Any], stream: object) -> None:
        if self.plain is not None:
            found = self.function(*self.plain[0], **self.plain[1])
        else:
            leaves = self.leaves.copy()
            for at, number in self.slots:
                leaves[at] = tensors[number]
            args, keywords = pytree.tree_unflatten(leaves, self.spec)
            found = self.function(*args, **keywords)
        if isinstance(found, Tensor):
            tensors.append(found)
        else:
            tensors.extend(x for x in pytree.tree_leaves(found) if isinstance(x, Tensor))


class _Launch:
    """One launch of a tape. Of a compiled kernel, the driver is given addresses, in the order of all parameters."""

    def __init__(
        self,
        kernel: Any,  # noqa: ANN401 (a JITFunction, or the interpreter's)
        compiled: Any,  # noqa: ANN401 (a CompiledKernel; None: there is none)
        grid: tuple[int, ...],
        args: Sequence[object],
        keywords: dict[str, object],
    ) -> None:
        self.compiled = compiled is not None
        self.keywords: dict[str, object] = {}
        if self.compiled:
            known = kernel.signature.parameters
            bound = kernel.signature.bind(*args, **{name: x for name, x in keywords.items() if name in known})
            bound.apply_defaults()
            self.values = list(bound.arguments.values())
            self.launch = compiled[(*grid, 1, 1)[:3]]
        else:
            self.values = list(args)
            self.keywords = keywords
            self.launch = kernel[grid]
        self.slots = [(at, value.number) for at, value in enumerate(self.values) if isinstance(value, Slot)]

    def play(self, tensors: list[Any], stream: object) -> None:
        values = self.values.copy()
        if self.compiled:
            for at, number in self.slots:
                values[at] = tensors[number].data_ptr()
            self.launch(*values, stream=stream)
        else:
            for at, number in self.slots:
                values[at] = tensors[number]
            self.launch(*values, **self.keywords)


class Tape:
    """What a call did, and how its results are made of what it made."""

    def __init__(self, steps: Sequence[_Operation | _Launch], results: Any, device: torch.device) -> None:  # noqa: ANN401
        self.steps = tuple(steps)
        self.leaves, self.spec = pytree.tree_flatten(results)
        self.slots = [(at, leaf.number) for at, leaf in enumerate(self.leaves) if isinstance(leaf, Slot)]
        self.flat = isinstance(results, tuple) and len(self.slots) == len(self.leaves) == len(results)
        self.index = device.index if device.type == "cuda" else None

    def play(self, inputs: Sequence[Tensor | None]) -> Any:  # noqa: ANN401 (what the recorded call returned)
        """Do the same with other tensors of the same form."""
        if self.index is None:
            return self._play(inputs, None)
        if torch.cuda.current_device() != self.index:
            with torch.cuda.device(self.index):
                return self._play(inputs, torch._C._cuda_getCurrentRawStream(self.index))
        return self._play(inputs, torch._C._cuda_getCurrentRawStream(self.index))

    def _play(self, inputs: Sequence[Tensor | None], stream: object) -> Any:  # noqa: ANN401
        tensors: list[Any] = list(inputs)
        for step in self.steps:
            step.play(tensors, stream)
        if self.flat:
            return tuple([tensors[number] for _, number in self.slots])
        leaves = self.leaves.copy()
        for at, number in self.slots:
            leaves[at] = tensors[number]
        return pytree.tree_unflatten(leaves, self.spec)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records what a call does to its tensors.

    broken: why it cannot be replayed; "" where it can.
    """

    def __init__(self, inputs: Sequence[Tensor | None], device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.steps: list[_Operation | _Launch] = []
        self.broken = ""
        self._made: list[Tensor | None] = list(inputs)  # held while recording, so that no id is given twice
        self._numbers = {id(x): number for number, x in enumerate(inputs) if x is not None}

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
        if not self.broken:
            slotted = self._slotted(args), self._slotted(kwargs)
            self.steps.append(_Operation(_function(func), *slotted))
            for x in pytree.tree_leaves(found):
                if isinstance(x, Tensor):
                    self._numbers[id(x)] = len(self._made)
                    self._made.append(x)
                    if x.device != self.device:
                        self.broken = f"{func} makes a tensor on {x.device}"
        return found

    def launched(
        self, kernel: object, compiled: object, grid: tuple[int, ...], args: Sequence[object], keywords: dict[str, Any]
    ) -> None:
        """Note a launch."""
        if not self.broken:
            self.steps.append(_Launch(kernel, compiled, grid, self._slotted(args), self._slotted(keywords)))

    def tape(self, results: Any) -> Tape | None:  # noqa: ANN401
        """The tape, where the call can be replayed and is worth it: it launched a kernel."""
        slotted = self._slotted(results)
        launches = sum(isinstance(step, _Launch) for step in self.steps)
        if self.broken or not launches or len(self.steps) > STEPS:
            return None
        return Tape(self.steps, slotted, self.device)

    def _slotted(self, values: Any) -> Any:  # noqa: ANN401
        return pytree.tree_map_only(Tensor, self._slot, values)

    def _slot(self, x: Tensor) -> Slot | Tensor:
        if id(x) not in self._numbers:
            self.broken = "a tensor comes from elsewhere"
            return x
        return Slot(self._numbers[id(x)])


def _function(func: torch._ops.OpOverload) -> Callable[..., Any]:
    """What does the same as an operation, and faster where allocations are concerned."""
    return torch.empty if func is torch.ops.aten.empty.memory_format else func


class Replays:
    """The tapes of a function, by the form of what it is given."""

    def __init__(self) -> None:
        self._tapes: dict[Hashable, Tape | None] = {}
        self._seen: set[Hashable] = set()

    def call(self, key: Hashable, inputs: Sequence[Tensor | None], run: Run) -> Any:  # noqa: ANN401
        """`run()`, or a tape of it. key: `form` of the inputs, and whatever else `run` depends on."""
        tape = self._tapes.get(key)
        if tape is not None:
            return tape.play(inputs)
        if key in self._tapes or _recording.tape is not None:
            return run()
        if key not in self._seen:  # the first call compiles kernels: what it does is not worth noting
            if len(self._seen) >= TAPES:
                self._seen.clear()
                self._tapes.clear()
            found = run()
            self._seen.add(key)
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


def plain(tensors: Sequence[Tensor | None]) -> bool:
    """Whether tensors are what they seem, with memory of their own: no tracing, no transform, no mode is active."""
    if torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    if forward_ad._current_level >= 0 or torch.compiler.is_compiling():
        return False
    return all(x is None or type(x) is Tensor or type(x) is Parameter for x in tensors)
