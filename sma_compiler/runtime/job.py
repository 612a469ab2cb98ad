"""`Job`: one evaluation of an op by its kernels, apart from the tensors; and the launches that carry it out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sma_compiler.backend_errors import KernelTooLarge
from sma_compiler.ir.nodes import Attend, Kind
from sma_compiler.kernel.config import Config
from sma_compiler.kernel.stages import Stage
from sma_compiler.runtime.kernels import DTYPES, Kernel, target_of
from sma_compiler.runtime.program import Program, concrete
from sma_compiler.runtime.replay import ALIGNMENT, form, plain

Number = int | float
Nested: TypeAlias = "Tensor | tuple[Nested, ...]"


@dataclass(frozen=True, eq=False)
class Job:
    """What to compute.

    plan: a name, or "auto". numbers: the number parameters in the order of the spec. want_state: whether the state
    behind the last position is wanted; want_norm: whether the divisors of a normalised op are (under a softmax their
    logarithms), for its gradients or for the caller.
    states: how many tensors the initial state has. packed: whether there are `cu_seqlens`.
    kernel: what carries it out; None: what is found for the tensors. want_lse: whether the divisors, as logarithms, are
    wanted with a gradient.
    """

    program: Program
    plan: str
    precision: str
    numbers: tuple[Number, ...]
    want_state: bool
    want_norm: bool
    states: int
    packed: bool
    kernel: Kernel | None = None
    want_lse: bool = False

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for jobs that do the same."""
        kinds = tuple(type(number) for number in self.numbers)
        wanted = self.want_state, self.want_norm, self.want_lse
        return self.plan, self.precision, self.numbers, kinds, *wanted, self.states, self.packed

    @property
    def keeps_result(self) -> bool:
        """Whether gradients need the result again, beside what is kept for them."""
        return self.want_norm and not self.program.kernels.stages

    @property
    def params(self) -> int:
        """How many tensor parameters there are."""
        return sum(not decl.number for decl in self.program.op.params)

    def split(self, tensors: Sequence[Tensor]) -> Given:
        """What is what among parameters, initial state and `cu_seqlens`, one after the other."""
        end = self.params + self.states
        return Given(tuple(tensors[: self.params]), tuple(tensors[self.params : end]), tuple(tensors[end:]))

    def sizes(self, params: Sequence[Tensor]) -> dict[str, int]:
        """The size of every axis, from tensors in the order of the spec; `head` is the largest."""
        found: dict[str, int] = {}
        tensors = iter(params)
        for decl in self.program.op.params:
            if not decl.number:
                for axis, size in zip(decl.dims, next(tensors).shape, strict=True):
                    found[axis] = max(found.get(axis, 0), size) if axis == "head" else size
        return found

    def kernel_for(self, params: Sequence[Tensor]) -> Kernel:
        """The kernel for these tensors. NoTritonKernel where there is none."""
        return self.kernel or find_kernel(self.program, self.plan, self.sizes(params), params)

    def arguments(self, params: Sequence[Tensor]) -> list[Any]:
        """What a launcher takes, in the order of the spec: these tensors, and the numbers."""
        tensors, numbers = iter(params), iter(self.numbers)
        return [next(numbers) if decl.number else next(tensors) for decl in self.program.op.params]

    def keywords(self, given: Given) -> dict[str, Any]:
        """The keywords of a launcher for the initial state and the pack."""
        found: dict[str, Any] = {"initial_state": joined(self.program, given.states)} if given.states else {}
        return found | ({"cu_seqlens": given.packs[0]} if given.packs else {})


@dataclass(frozen=True)
class Given:
    """The tensors of a job: those of the parameters in the order of the spec, the initial state, `cu_seqlens`."""

    params: tuple[Tensor, ...]
    states: tuple[Tensor, ...]
    packs: tuple[Tensor, ...]


def joined(program: Program, states: Sequence[Tensor]) -> Nested:
    """States as launchers take them: one alone, or a tuple; of several contractions, a tuple of these."""
    if not program.kernels.stages:
        return states[0] if len(states) == 1 else tuple(states)
    left = iter(states)
    parts = [tuple(next(left) for _ in range(one.count)) for one in program.kernels.carried]
    return tuple(part if part[1:] else part[0] for part in parts)


def chunk_of(job: Job, given: Given, stage: Stage) -> int:
    """How many positions the chunks have that are inverted for a `solve`."""
    program, params = job.program, given.params
    config = program.kernels.emitted(job.plan, *_asked(program, job.sizes(params), params)).configs[
        f"{stage.site}.solve"
    ]
    assert isinstance(config, Config)
    return config.chunk


def find_kernel(program: Program, plan: str, sizes: Mapping[str, int], params: Sequence[Tensor]) -> Kernel:
    """The kernel for a plan, sizes and tensors in the order of the spec. NoTritonKernel where there is none."""
    return program.kernels.find(plan, *_asked(program, sizes, params))


def _asked(program: Program, sizes: Mapping[str, int], params: Sequence[Tensor]) -> tuple[dict[str, int], str, str]:
    """What kernels are asked for beside their plan: sizes, a dtype and a target."""
    counts = {axis: concrete(size) for axis, size in all_sizes(program, sizes, params).items()}
    return counts, operand_name(program, params), target_of(params[0].device)


def all_sizes(program: Program, sizes: Mapping[str, int], params: Sequence[Tensor]) -> dict[str, int]:
    """Sizes with `group`, the heads that queries or keys have, for tensors in the order of the spec."""
    decls = [decl for decl in program.op.params if not decl.number]
    groups = [
        x.shape[decl.dims.index("head")]
        for decl, x in zip(decls, params, strict=True)
        if {"head", "key"} <= set(decl.dims)
    ]
    return {**sizes, "group": max(groups)} if groups else dict(sizes)


def operand_name(program: Program, params: Sequence[Tensor]) -> str:
    """The name of the coarsest dtype among the tensors that matrix products multiply."""
    decls = [decl for decl in program.op.params if not decl.number]
    found = {
        x.dtype
        for decl, x in zip(decls, params, strict=True)
        if decl.kind is Kind.REAL and decl.name in program.roles.operands
    }
    return next((name for dtype, name in DTYPES.items() if dtype in found), "float32")


def divisors_dtype(program: Program, params: Sequence[Tensor]) -> torch.dtype:
    """The dtype of what rows are divided by: logarithms of fp32 files are fp64."""
    return torch.float64 if program.softmaxes and operand_name(program, params) == "float32" else torch.float32


def kept(job: Job, tensors: Sequence[Tensor]) -> int:
    """How many tensors a forward launch keeps for the gradients, behind the result and the state."""
    stages = job.program.kernels.stages
    if stages:
        return job.want_norm * sum((stage.value is not None) + (stage.right is not None) for stage in stages)
    result = job.program.op.result
    cancels = isinstance(result, Attend) and result.normalize == "softmax"
    narrow = operand_name(job.program, tensors[: job.params]) != "float32"
    return job.want_norm + (job.want_norm and cancels and narrow)


def forward(job: Job, kernel: Kernel, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Launch: the result, then the state where wanted, then what is kept for gradients where it is wanted."""

    def run() -> tuple[Tensor, ...]:
        given = job.split(aligned(tensors))
        options = kernel.rounding(job.precision)
        wanted = {"return_state": True} if job.want_state else {}
        wanted |= {f"return_{kernel.kept}": True} if job.want_norm else {}
        wanted |= {"return_others": True} if job.want_norm and "return_others" in kernel.keywords else {}
        with on(tensors[0].device, job.program, job.plan):
            found = kernel.forward(*job.arguments(given.params), **job.keywords(given), **wanted, **options)
        return flat(found)

    return _replayed(kernel, ("forward", *job.key), tensors, run)


def backward(
    job: Job,
    kernel: Kernel,
    tensors: Sequence[Tensor],
    dy: Tensor,
    saved: Sequence[Tensor],
    dstates: Sequence[Tensor],
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Launch: the gradients that are needed, in order: of parameters, then of the initial state.

    saved: the result, the divisors of normalised ops, and what rows have but for their largest weights; of several
    contractions, what they hand on. dstates: the
    cotangents of the returned state, or where logarithms are wanted of these; none: 0.
    needs: of every parameter and tensor of the initial state. The latter have a gradient if any of them needs one.
    """
    launch = kernel.backward
    assert launch is not None

    def run() -> tuple[Tensor, ...]:
        given = job.split(aligned(tensors))
        (cotangent,) = aligned((dy,))
        keywords = job.keywords(given) | kernel.rounding(job.precision)
        if kernel.kept == "kept":
            keywords |= {"kept": tuple(aligned(saved)) or None}
        else:
            # the quotient, if that is the result, and the divisors
            names = zip(("y", kernel.kept, "others"), aligned(saved), strict=False)
            keywords |= {name: x for name, x in names if name in kernel.backward_keywords}
        if dstates:
            keywords["dlse" if job.want_lse else "dstate"] = joined(job.program, aligned(dstates))
        keywords["needs"] = tuple(needs[: job.params])
        with on(dy.device, job.program, job.plan):
            found = launch(cotangent, *job.arguments(given.params), **keywords)
        grads = [*found[: job.params], *flat(found[job.params :])]
        return tuple(grad for grad, need in zip(grads, needs, strict=False) if need)

    return _replayed(kernel, ("backward", tuple(needs), *job.key), (*tensors, dy, *saved, *dstates), run)


def aligned(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors as kernels read them 16 bytes at a time: those that begin at no multiple of that are copied."""
    return [x.clone() if x.data_ptr() % ALIGNMENT else x for x in tensors]


def flat(found: Nested) -> tuple[Tensor, ...]:
    """The tensors of what a launcher returned, in order."""
    return (found,) if isinstance(found, Tensor) else tuple(x for part in found for x in flat(part))


def _replayed(
    kernel: Kernel, key: tuple[object, ...], tensors: Sequence[Tensor], run: Callable[[], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    if not plain(tensors):
        return run()
    return kernel.replays.call((key, tuple([form(x) for x in tensors])), tensors, run)


@contextmanager
def on(device: torch.device, program: Program, plan: str) -> Iterator[None]:
    """Launches in this block go to a device, and a kernel that does not fit on it is a clear error."""
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            yield
    except Exception as error:
        if type(error).__name__ == "OutOfResources":
            raise KernelTooLarge(program.op.label, plan, str(error)) from None
        raise
