"""`CompiledOp`: what `sma.compile` and `sma.library` return, an op that can be called, stepped and asked about."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

from sma_compiler import reference
from sma_compiler.call_errors import (
    InPlaceNeedsState,
    MissingSize,
    WrongCapacity,
    WrongStateElements,
    dims_text,
)
from sma_compiler.facts.facts import Facts
from sma_compiler.ir.nodes import Op, ParamDecl
from sma_compiler.plan.choose import Plan
from sma_compiler.runtime.args import FLOATS, bind, check_pack, check_turns, check_values
from sma_compiler.runtime.execute import Call, check_options
from sma_compiler.runtime.explain import Explanation
from sma_compiler.runtime.graph_call import in_graph
from sma_compiler.runtime.program import Program
from sma_compiler.runtime.sizes import named_sizes
from sma_compiler.runtime.state import State
from sma_compiler.runtime.state_layout import empty_state

if TYPE_CHECKING:
    from sma_compiler.emit.file import Emitted
    from sma_compiler.tune.report import Tuning

Argument = Tensor | int | float
"""What a parameter takes: a tensor, or for `w: int` and `s: real` a Python number."""


class CompiledOp:
    """An op compiled from a spec.

    Call it with its tensors, by position in the order of the spec or by name. Tensors have the dimensions that the
    spec declares, `batch` first: q [B, T, H, K], k [B, T, G, K], v [B, T, G, V], any strides; G heads that divide H
    serve H / G heads each; a batch of 1 serves all. bf16, fp16 and fp32, and fp64 throughout for `gradcheck`.
    Results are differentiable by autograd in every floating-point argument and in the state.
    """

    def __init__(self, program: Program) -> None:
        self.program = program

    @property
    def name(self) -> str:
        """The op's name in the spec."""
        return self.program.op.name

    @property
    def doc(self) -> str:
        """The comment above the op."""
        return self.program.op.doc

    @property
    def params(self) -> tuple[ParamDecl, ...]:
        """The parameters in order: `.name`, `.dims` (as the caller's dimensions), `.kind`, `.number`."""
        return self.program.op.params

    @property
    def ir(self) -> Op:
        """The checked op: its typed expressions."""
        return self.program.op

    @property
    def spec_hash(self) -> str:
        """SHA-256 of what the op computes, in hexadecimal: the same whatever its text, name and local names."""
        return self.program.spec_hash

    @property
    def facts(self) -> Facts:
        """What is proven of every mask, with reasons; `.masks` has one entry a contraction. Print it."""
        return self.program.plans.facts

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plans that are legal in some contraction, each with `.name`, `.cost` and `.state`."""
        return self.program.plans.legal

    @property
    def refused(self) -> dict[str, str]:
        """Why each other plan is legal in no contraction, by name."""
        return dict(self.program.plans.refused)

    @property
    def causal(self) -> bool:
        """Whether no position depends on a later one: only then there are states and steps."""
        return self.program.plans.causal

    def __deepcopy__(self, memo: dict[int, object]) -> CompiledOp:
        """The op itself: it never changes."""
        return self

    def __repr__(self) -> str:
        params = ", ".join(decl.name for decl in self.params)
        return f"<sma op {self.name}({params}), plans {', '.join(plan.name for plan in self.plans)}>"

    @overload
    def __call__(
        self,
        *tensors: Argument,
        initial_state: State | None = None,
        return_state: Literal[False] = False,
        return_lse: Literal[False] = False,
        cu_seqlens: Tensor | None = None,
        plan: str = "auto",
        backend: str = "auto",
        precision: str = "ieee",
        **named: Argument,
    ) -> Tensor: ...

    @overload
    def __call__(
        self,
        *tensors: Argument,
        initial_state: State | None = None,
        return_state: Literal[True],
        return_lse: Literal[False] = False,
        cu_seqlens: Tensor | None = None,
        plan: str = "auto",
        backend: str = "auto",
        precision: str = "ieee",
        **named: Argument,
    ) -> tuple[Tensor, State]: ...

    @overload
    def __call__(
        self,
        *tensors: Argument,
        initial_state: State | None = None,
        return_state: Literal[False] = False,
        return_lse: Literal[True],
        cu_seqlens: Tensor | None = None,
        plan: str = "auto",
        backend: str = "auto",
        precision: str = "ieee",
        **named: Argument,
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def __call__(
        self,
        *tensors: Argument,
        initial_state: State | None = None,
        return_state: Literal[True],
        return_lse: Literal[True],
        cu_seqlens: Tensor | None = None,
        plan: str = "auto",
        backend: str = "auto",
        precision: str = "ieee",
        **named: Argument,
    ) -> tuple[Tensor, State, Tensor]: ...

    @overload
    def __call__(
        self,
        *tensors: Argument,
        initial_state: State | None = None,
        return_state: bool = False,
        return_lse: bool = False,
        cu_seqlens: Tensor | None = None,
        plan: str = "auto",
        backend: str = "auto",
        precision: str = "ieee",
        **named: Argument,
    ) -> Tensor | tuple[Tensor | State, ...]: ...

    def __call__(
        self,
        *tensors: Argument,
        initial_state: State | None = None,
        return_state: bool = False,
        return_lse: bool = False,
        cu_seqlens: Tensor | None = None,
        plan: str = "auto",
        backend: str = "auto",
        precision: str = "ieee",
        **named: Argument,
    ) -> Tensor | tuple[Tensor | State, ...]:
        """Evaluate the op.

        Args:
            tensors: arguments in the order of the spec.
            initial_state: the state that an earlier call returned, of as many rows as the batch (as sequences in a
                pack); None is the empty state.
            return_state: also return the state after the last position, or after each sequence of a pack.
            return_lse: also return the log-sum-exp of every row of the op's only softmax, [B, T, H], -inf for a row
                without columns.
            cu_seqlens: a pack: int32 or int64 [S + 1], where each of S sequences starts, and the end; the batch is 1.
                Every sequence gives what it would give alone.
            plan: the algorithm, in every contraction where it is legal ("auto": the cheapest at these sizes). The
                result is the same up to rounding, and the state has the same form.
            backend: "triton" or "torch"; "auto": Triton on a GPU where there is a kernel for the op, the plan, the
                dtypes and the sizes, else torch; `explain` says which.
            precision: "ieee", or "tf32" to allow matrix products of fp32 operands in TF32 where a backend has them.
            named: arguments by the spec's names.

        Returns:
            The result in the dtype of the op's first tensor; with `return_state` or `return_lse` a tuple of the
            result, then the state, then the log-sum-exp.

        Raises:
            CallError: before any work, a subclass for each mistake.
        """
        states = () if initial_state is None else (initial_state,)
        packs = () if cu_seqlens is None else (cu_seqlens,)
        call = Call(plan, backend, precision, want_state=return_state, want_lse=return_lse)
        found = in_graph(self.program, call, tensors, named, states, packs)
        result, *beside = found
        assert isinstance(result, Tensor)
        return found if beside else result

    def step(
        self,
        *tensors: Argument,
        state: State | None = None,
        inplace: bool = False,
        backend: str = "auto",
        **named: Argument,
    ) -> tuple[Tensor, State]:
        """Evaluate the op at one position after those that the state has seen.

        Args:
            tensors: arguments in the order of the spec, without their time axis: q [B, H, K].
            state: the state that an earlier call or step returned; None is the empty state.
            inplace: write the new state into the tensors of `state`, whose addresses stay, without autograd: for
                decoding loops and CUDA graphs.
            backend: "triton", "torch" or "auto", as in a call.
            named: arguments by the spec's names.

        Returns:
            The result without its time axis, and the state after this position (`state` itself where in place).

        Raises:
            CallError: before any work, a subclass for each mistake; `CapacityExceeded` where an in-place step would
                drop a position that is still needed.
        """
        if inplace and state is None:
            raise InPlaceNeedsState(self.ir.label)
        self.program.check_causal("step")
        call = Call(backend=backend, want_state=True, step=True, inplace=inplace)
        states = () if state is None else (state,)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not inplace):
            result, after = in_graph(self.program, call, tensors, named, states, ())
            assert isinstance(result, Tensor)
            assert isinstance(after, State)
            if state is not None and inplace:
                for name, tensor in state.items():
                    if after[name] is not tensor:
                        tensor.copy_(after[name])
                after = state
        return result, after

    def empty_state(
        self,
        batch: int = 1,
        capacity: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        **sizes: int,
    ) -> State:
        """The state before the first position.

        Args:
            batch: rows; sequences of a pack.
            capacity: for in-place steps, how many positions a cache that holds every position has room for. None:
                none, the cache grows with each call, as it always does without `inplace`.
            dtype: of the tensors that will be passed; the state itself is fp32, and fp64 for fp64.
            device: of the tensors that will be passed.
            sizes: of the op's axes by name or letter (`head=8, key=64` or `H=8, K=64`); and the op's integer
                parameters by name: without the width of a window its cache has `capacity` slots. `group` or `G`: how
                many heads the tensors have that a cache keeps as they are given, where heads share them. Such a cache
                may also have their dtype: `op.empty_state(...).to(torch.bfloat16)`; later states are like it.

        Raises:
            CallError: a size is missing, unknown or not positive; the dtype is no floating-point one that tensors may
                have; the op is not causal.
        """
        self.program.check_causal("empty_state")
        numbers = tuple(decl.name for decl in self.params if decl.number)
        known = named_sizes(self.ir.label, {"batch": batch, **sizes}, numbers)
        if capacity is not None and (isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1):
            raise WrongCapacity(self.ir.label, capacity)
        if dtype not in FLOATS:
            raise WrongStateElements(self.ir.label, dtype)
        for decl in self.params:
            for axis in decl.dims:
                if axis not in known and axis != "time":
                    raise MissingSize(self.ir.label, axis, f"{decl.name!r} has the dimensions {dims_text(decl.dims)}")
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        given = {name: known.pop(name) for name in numbers if name in known}
        tensors = empty_state(self.program, known, given, batch, compute, torch.device(device), capacity)
        return State(self.spec_hash, tensors)

    @overload
    def reference(
        self,
        *tensors: Argument,
        cu_seqlens: Tensor | None = None,
        return_lse: Literal[False] = False,
        **named: Argument,
    ) -> Tensor: ...

    @overload
    def reference(
        self,
        *tensors: Argument,
        cu_seqlens: Tensor | None = None,
        return_lse: Literal[True],
        **named: Argument,
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def reference(
        self,
        *tensors: Argument,
        cu_seqlens: Tensor | None = None,
        return_lse: bool,
        **named: Argument,
    ) -> Tensor | tuple[Tensor, Tensor]: ...

    def reference(
        self,
        *tensors: Argument,
        cu_seqlens: Tensor | None = None,
        return_lse: bool = False,
        **named: Argument,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The dense evaluation in fp64 that every plan is judged by: same arguments, slow, exact, differentiable.

        Args:
            tensors: arguments in the order of the spec.
            cu_seqlens: a pack, as in a call.
            return_lse: also return the log-sum-exp of every row of the op's only softmax.
            named: arguments by the spec's names.

        Raises:
            CallError: before any work, as a call does.
        """
        check_options(self.program, Call(want_lse=return_lse))
        arguments = bind(self.ir, tensors, named)
        check_turns(self.ir, self.program.roles, arguments)
        check_values(self.ir, self.program.roles, arguments)
        if cu_seqlens is not None:
            check_pack(self.ir, arguments, cu_seqlens)
        evaluate = reference.evaluate_with_lse if return_lse else reference.evaluate
        return evaluate(self.ir, arguments.values, cu_seqlens=cu_seqlens)

    def explain(self, shape: Mapping[str, int] | None = None) -> Explanation:
        """What the op computes and why its plans are legal, to be printed.

        Args:
            shape: sizes by axis or letter, and integer parameters by name: `dict(B=1, T=4096, H=8, K=64, V=64)`. With
                it, the plan that "auto" takes there.
        """
        numbers = tuple(decl.name for decl in self.params if decl.number)
        return Explanation(self.program, named_sizes(self.ir.label, shape or {}, numbers))

    def source(
        self,
        plan: str = "auto",
        shape: Mapping[str, int] | None = None,
        dtype: str = "bfloat16",
        target: str = "sm_90",
    ) -> str:
        """The text of a standalone Triton file with the op's kernels and a launcher named after it; needs no GPU.

        Args:
            plan: "chunked", or "auto".
            shape: sizes by axis or letter; they choose the configuration, the file works at any.
            dtype: "bfloat16", "float16" or "float32", likewise.
            target: "sm_80", "sm_90" or "gfx942", likewise.

        Raises:
            NoTritonKernel: this version emits nothing for the op, the plan or the sizes.
        """
        return self.emitted(plan, shape, dtype, target).text

    def emitted(self, plan: str, shape: Mapping[str, int] | None, dtype: str, target: str) -> Emitted:
        """What `source` prints, as kernel IR."""
        self.program.check_plan(plan)
        numbers = tuple(decl.name for decl in self.params if decl.number)
        sizes = named_sizes(self.ir.label, shape or {}, numbers)
        return self.program.kernels.emitted(plan, sizes, dtype, target)

    def save(
        self,
        path: str | os.PathLike[str],
        plan: str = "auto",
        shape: Mapping[str, int] | None = None,
        dtype: str = "bfloat16",
        target: str = "sm_90",
    ) -> None:
        """Write the text that `source` gives with the same arguments."""
        text = self.source(plan, shape, dtype, target)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)

    def tune(
        self,
        *given: Mapping[str, int] | Sequence[Mapping[str, int]] | Argument,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str | None = None,
        training: bool = True,
        limit: int = 12,
        seconds: float = 60.0,
        **named: Argument,
    ) -> tuple[Tuning, ...]:
        """Measure plans and configurations on this machine, and keep the best: `plan="auto"` goes by them from then on.

        Every one is checked against the torch backend or the fp64 reference on fresh random inputs before it may win.
        Records are kept in `sma.cache_dir()`, for this op, sizes (lengths and batches up to a power of two), dtype,
        device and versions, apart for calls with gradients and without.

        Args:
            given: shapes, each a mapping as `explain` takes it (or a list of them); or example tensors, as a call
                takes them.
            dtype: of queries, keys and values, where shapes are given.
            device: where, likewise; None: the GPU if there is one.
            training: whether to measure gradients, too.
            limit: configurations for each shape, at most.
            seconds: for each shape, beyond which no further configuration is begun.
            named: example tensors by the spec's names.

        Returns:
            For each shape its table, to be printed: `.rows`, `.forward` and `.training` (the records), `.rejected`.

        Raises:
            CallError: before any work, a subclass for each mistake.
        """
        from sma_compiler.tune.entry import tune_all

        return tune_all(
            self.program,
            given,
            named,
            dtype=dtype,
            device=device,
            training=training,
            limit=limit,
            seconds=seconds,
        )
