"""Compiles an emitted file for a GPU that need not be here: every kernel that its launcher starts at given sizes.

The launcher runs on meta tensors with its kernels replaced by recorders, so what is compiled is what a call of these
sizes would launch, specialised as Triton specialises arguments: a stride of 1, multiples of 16, None.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from sma_compiler.ir.nodes import Op
from sma_compiler.target.arguments import example

TARGETS: dict[str, tuple[str, int | str, int]] = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "gfx942": ("hip", "gfx942", 64),
}
"""Backend, architecture and threads of a warp."""
KEPT = ("norm", "lse", "others")
"""What a forward pass may keep for the gradients, in order: `return_` and the name asks for it."""

_POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}


class KernelParameter(Protocol):
    """A parameter of a kernel, as Triton describes it."""

    name: str
    default: object
    has_default: bool
    is_constexpr: bool


class JitFunction(Protocol):
    """A kernel of an emitted file, as Triton holds it."""

    __name__: str
    params: Sequence[KernelParameter]
    arg_names: Sequence[str]


WHOLE = (0, 1)
"""All launches of a file, as one share of them."""


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: its arguments by name, how many warps, and the registers of a thread at most, if any.

    again: whether the kernel was launched before.
    """

    kernel: str
    grid: tuple[int, ...]
    arguments: dict[str, object]
    warps: int
    registers: int | None = None
    again: bool = False


@dataclass(frozen=True)
class Compiled:
    """A kernel compiled for a target. stages: the text of every stage (`ttir`, `ttgir`, `llir`, `ptx` or `amdgcn`)."""

    launch: Launch
    target: str
    stages: dict[str, str]
    binary: bytes
    shared: int


class _Recorder:
    """Stands for a kernel: `kernel[grid](...)` notes the launch."""

    def __init__(self, kernel: JitFunction, launches: list[Launch]) -> None:
        self.kernel = kernel
        self.launches = launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: object, num_warps: int = 4, maxnreg: int | None = None, **keywords: object) -> None:
            defaults = {x.name: x.default for x in self.kernel.params if x.has_default}
            arguments = defaults | dict(zip(self.kernel.arg_names, args, strict=False)) | keywords
            name = self.kernel.__name__
            again = any(one.kernel == name for one in self.launches)
            self.launches.append(Launch(name, tuple(grid), arguments, num_warps, maxnreg, again))

        return launch


def load_text(text: str, folder: Path) -> ModuleType:
    """An emitted file as a module."""
    path = folder / "emitted.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("sma_emitted", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.pop("sma_emitted", None)
    spec.loader.exec_module(module)
    return module


def compile_text(
    text: str,
    op: Op,
    sizes: Mapping[str, int],
    dtype: str,
    target: str,
    cu_seqlens: Tensor | None = None,
    share: tuple[int, int] = WHOLE,
) -> list[Compiled]:
    """Compile every kernel of an emitted file that a call of these sizes launches, its gradient and its decoding step.

    cu_seqlens: of a pack, on the device `meta`. share: which of how many shares of its launches.

    Raises:
        ImportError: Triton is not installed.
    """

    def call(module: ModuleType) -> None:
        arguments = example(op, sizes, dtype, "meta")
        pack = {} if cu_seqlens is None else {"cu_seqlens": cu_seqlens}
        forward = getattr(module, op.name)
        kept = [name for name in KEPT if f"return_{name}" in inspect.signature(forward).parameters]
        found = forward(**arguments, **pack, **{f"return_{name}": True for name in kept})
        y, *saved = found if kept else (found,)
        backward = getattr(module, f"{op.name}_backward", None)
        if backward is not None:
            known = inspect.signature(backward).parameters
            given = {name: x for name, x in zip(("y", *kept), (y, *saved), strict=True) if name in known}
            backward(torch.empty_like(y), **arguments, **given, **pack)
        step = getattr(module, f"{op.name}_step", None)
        if step is not None:
            step(**_at_one_position(op, arguments))

    return compile_call(text, call, target, share)


def compile_call(
    text: str, call: Callable[[ModuleType], object], target: str, share: tuple[int, int] = WHOLE
) -> list[Compiled]:
    """Compile every kernel that a call of an emitted file's functions launches, on tensors of the device `meta`.

    share: see `compile_text`.
    """
    from triton.runtime.jit import JITFunction

    with tempfile.TemporaryDirectory() as folder:
        module = load_text(text, Path(folder))
        launches: list[Launch] = []
        kernels = {}
        for name, value in list(vars(module).items()):
            if isinstance(value, JITFunction) and name.endswith("_kernel"):
                kernels[name] = value
                setattr(module, name, _Recorder(value, launches))
        call(module)
        first, shares = share
        return [compile_launch(kernels[launch.kernel], launch, target) for launch in launches[first::shares]]


def _at_one_position(op: Op, arguments: Mapping[str, Tensor | int | float]) -> dict[str, Tensor | int | float]:
    """The arguments of a step: tensors without their time axis."""
    found = dict(arguments)
    for decl in op.params:
        value = found[decl.name]
        if isinstance(value, Tensor) and "time" in decl.dims:
            found[decl.name] = value.select(decl.dims.index("time"), 0)
    return found


def compile_launch(kernel: JitFunction, launch: Launch, target: str) -> Compiled:
    """Compile one kernel as a launch specialises it."""
    import triton
    from triton.backends.compiler import GPUTarget

    constants = {name for parameter in kernel.params if parameter.is_constexpr for name in [parameter.name]}
    signature: dict[str, str] = {}
    constexprs: dict[tuple[int, ...], object] = {}
    attributes: dict[tuple[int, ...], list[list[object]]] = {}
    for number, name in enumerate(kernel.arg_names):
        value = launch.arguments[name]
        if name in constants or value is None or (isinstance(value, int) and value == 1):
            signature[name] = "constexpr"
            constexprs[(number,)] = value
            if isinstance(value, str):
                attributes[(number,)] = []  # so launches do, and look the kernel up by it
            continue
        signature[name] = _type(value)
        if isinstance(value, Tensor | int):
            known = isinstance(value, Tensor) or value % 16 == 0
            attributes[(number,)] = [["tt.divisibility", 16]] if known else []
    source = triton.compiler.ASTSource(kernel, signature, constexprs, attributes)
    backend, architecture, width = TARGETS[target]
    options = {"num_warps": launch.warps}
    if launch.registers is not None:
        options["maxnreg"] = launch.registers
    made = triton.compile(source, target=GPUTarget(backend, architecture, width), options=options)
    stages = {name: text for name, text in made.asm.items() if isinstance(text, str)}
    binary = made.asm["cubin" if backend == "cuda" else "hsaco"]
    return Compiled(launch, target, stages, binary, made.metadata.shared)


def _type(value: object) -> str:
    if isinstance(value, Tensor):
        return _POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    assert isinstance(value, int)
    return "i32" if -(2**31) <= value < 2**31 else "i64"
