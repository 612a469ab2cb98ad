"""One class for each mistake in a call of a compiled op. All are raised before any work is done.

An error about one argument shows the parameter's declaration in the spec: file, line, column and a caret. Any other
begins with the place of the op in the spec and its name (`Op.label`), which is what its class takes as `op`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from sma_compiler.errors import CallError
from sma_compiler.ir.nodes import ParamDecl


class Mistake(CallError):
    """Base of the classes below; they can be pickled, to cross processes."""

    def __reduce__(self) -> tuple[object, ...]:
        return _remake, (type(self), self.args, vars(self))


def _remake(kind: type[Mistake], args: tuple[object, ...], attributes: dict[str, object]) -> Mistake:
    error = kind.__new__(kind, *args)
    vars(error).update(attributes)
    return error


class ParameterError(Mistake):
    """A mistake about one parameter. `parameter` is its name, `span` its declaration in the spec."""

    def __init__(self, op: str, decl: ParamDecl, message: str) -> None:
        self.parameter = decl.name
        self.span = decl.span
        where = f"{decl.span.source.name}:{decl.span.line}:{decl.span.column}"
        excerpt = "\n".join("  " + line for line in decl.span.render().split("\n"))
        super().__init__(f"{where}: {op}: {message}\n{excerpt}")


def closest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where a known name is near, else a full stop."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else "."


def listed(names: Iterable[str]) -> str:
    """The names in quotes with commas between, or `none`."""
    return ", ".join(repr(name) for name in names) or "none"


def dims_text(dims: Iterable[str]) -> str:
    """`[batch, time, head]`."""
    return "[" + ", ".join(dims) + "]"


class MissingArgument(ParameterError):
    """A parameter of the spec was given no value."""

    def __init__(self, op: str, decl: ParamDecl) -> None:
        what = "a number" if decl.number else f"a tensor {dims_text(decl.dims)}"
        super().__init__(op, decl, f"argument {decl.name!r} is missing: pass {what}")


class UnknownArgument(Mistake):
    """A keyword that is no parameter of the spec, nor an option of the call."""

    def __init__(self, op: str, name: str, known: Sequence[str]) -> None:
        super().__init__(f"{op}: no parameter {name!r}{closest(name, known)} It takes {listed(known)}.")


class TooManyArguments(Mistake):
    """More positional arguments than the spec has parameters."""

    def __init__(self, op: str, given: int, known: Sequence[str]) -> None:
        super().__init__(f"{op}: {given} positional arguments for {len(known)} parameters: {listed(known)}")


class RepeatedArgument(ParameterError):
    """A parameter was given both by position and by name."""

    def __init__(self, op: str, decl: ParamDecl) -> None:
        super().__init__(op, decl, f"argument {decl.name!r} is given twice, by position and by name")


class NotATensor(ParameterError):
    """A tensor parameter was given something else."""

    def __init__(self, op: str, decl: ParamDecl, value: object) -> None:
        super().__init__(
            op, decl, f"{decl.name!r} must be a torch.Tensor {dims_text(decl.dims)}, not {type(value).__name__}"
        )


class WrongNumber(ParameterError):
    """A number parameter (`w: int`, `s: real`) was given something that is no such number."""

    def __init__(self, op: str, decl: ParamDecl, must: str, value: object) -> None:
        shown = f"{type(value).__name__} {value!r}" if isinstance(value, bool | int | float) else type(value).__name__
        super().__init__(op, decl, f"{decl.name!r} must be {must}, not {shown}")


class WrongDimensions(ParameterError):
    """A tensor with too few or too many dimensions."""

    def __init__(self, op: str, decl: ParamDecl, dims: Sequence[str], shape: Sequence[int]) -> None:
        super().__init__(
            op,
            decl,
            f"{decl.name!r} must have {len(dims)} dimensions {dims_text(dims)}, but has {len(shape)}: {list(shape)}",
        )


class SizeConflict(ParameterError):
    """Two tensors disagree about the size of an axis."""

    def __init__(self, op: str, decl: ParamDecl, axis: str, size: int, other: str, expected: int) -> None:
        rule = " (a batch is 1 or the same for all)" if axis == "batch" else ""
        super().__init__(
            op, decl, f"the {axis} size of {decl.name!r} is {size}, but that of {other!r} is {expected}{rule}"
        )


class EmptyAxis(ParameterError):
    """A tensor without heads, keys, values, lags or levels."""

    def __init__(self, op: str, decl: ParamDecl, axis: str) -> None:
        super().__init__(op, decl, f"the {axis} size of {decl.name!r} is 0; it must be at least 1")


class TooManyTurns(ParameterError):
    """More angles of a `rope` than the key has pairs of entries."""

    def __init__(self, op: str, decl: ParamDecl, turns: int, key: int) -> None:
        super().__init__(
            op,
            decl,
            f"{decl.name!r} has {turns} angles along mode, but a key of size {key} has {key // 2} pairs to turn",
        )


class HeadSize(ParameterError):
    """A tensor whose number of heads does not divide the largest one."""

    def __init__(self, op: str, decl: ParamDecl, size: int, largest: str, heads: int) -> None:
        super().__init__(
            op,
            decl,
            f"{decl.name!r} has {size} heads, which does not divide the {heads} heads of {largest!r}: "
            "every head size must divide the largest",
        )


class NoLength(Mistake):
    """None of the op's parameters has a time axis, so nothing tells how long the result is."""

    def __init__(self, op: str) -> None:
        super().__init__(f"{op}: no parameter has a time axis, so the length of the sequence is unknown")


class WrongElements(ParameterError):
    """A tensor whose dtype the spec or the compiler does not take."""

    def __init__(self, op: str, decl: ParamDecl, must: str, dtype: object) -> None:
        super().__init__(op, decl, f"the elements of {decl.name!r} must be {must}, but are {dtype}")


class MixedDevices(ParameterError):
    """Tensors on different devices."""

    def __init__(self, op: str, decl: ParamDecl, device: object, other: str, expected: object) -> None:
        super().__init__(
            op, decl, f"{decl.name!r} is on {device}, but {other!r} is on {expected}: move all tensors to one device"
        )


class NaNInGate(ParameterError):
    """A NaN in a parameter that feeds a mask, where it would spread to every later position."""

    def __init__(self, op: str, decl: ParamDecl, where: Sequence[int]) -> None:
        place = ", ".join(f"{axis} {at}" for axis, at in zip(decl.dims, where, strict=True))
        super().__init__(op, decl, f"{decl.name!r} feeds a mask and holds NaN{f', first at {place}' if place else ''}")


class NotFinite(ParameterError):
    """A query, key or value that is infinite or NaN (checked under SMA_SELF_CHECK=1)."""

    def __init__(self, op: str, decl: ParamDecl) -> None:
        super().__init__(op, decl, f"{decl.name!r} must be finite, but holds inf or NaN")


class BadSequenceBounds(Mistake):
    """`cu_seqlens` that does not cut the time axis into sequences."""

    def __init__(self, op: str, what: str) -> None:
        super().__init__(
            f"{op}: cu_seqlens {what}; sequence s of a pack holds positions cu_seqlens[s] to cu_seqlens[s + 1] - 1"
        )


class PackedBatch(ParameterError):
    """`cu_seqlens` beside a tensor whose batch is not 1."""

    def __init__(self, op: str, decl: ParamDecl, size: int) -> None:
        super().__init__(
            op, decl, f"with cu_seqlens every batch is 1, but that of {decl.name!r} is {size}: pack along time instead"
        )


class NotAState(Mistake):
    """Something other than a `sma.State` where a state is taken."""

    def __init__(self, op: str, value: object) -> None:
        super().__init__(f"{op}: a state is a sma.State, as the op returned it, not {type(value).__name__}")


class ForeignState(Mistake):
    """A state that another spec made."""

    def __init__(self, op: str, theirs: str, ours: str) -> None:
        super().__init__(
            f"{op}: this state belongs to another op: its spec hash is {theirs[:12]}…, this op's is {ours[:12]}…"
        )


class StateMismatch(Mistake):
    """A state of this op with other sizes, dtype or device than the call."""

    def __init__(self, op: str, name: str, what: str, found: object, expected: object) -> None:
        super().__init__(f"{op}: the {what} of state tensor {name!r} is {found}, but this call needs {expected}")


class ForgottenPositions(Mistake):
    """A state whose cache lacks positions that the call's wider window reads."""

    def __init__(self, op: str, cache: str, kept: int, read: int) -> None:
        super().__init__(
            f"{op}: this call reads {read} earlier position{'s' if read != 1 else ''} of {cache!r}, "
            f"but the state keeps {kept}: it was made with a narrower window; "
            "make it with the widest one that it is continued with"
        )


class NoStates(Mistake):
    """A state was asked of an op that is not causal, or given to it."""

    def __init__(self, op: str, asked: str, reason: str) -> None:
        super().__init__(f"{op}: {asked} needs a causal op, and this one has no states: {reason}")


class InPlaceNeedsState(Mistake):
    """`step(inplace=True)` without a state to update."""

    def __init__(self, op: str) -> None:
        super().__init__(f"{op}: inplace=True updates a state: pass state=op.empty_state(batch, capacity=...)")


class CapacityExceeded(Mistake):
    """An in-place step that would drop a position that is still needed."""

    def __init__(self, op: str, name: str, capacity: int) -> None:
        super().__init__(
            f"{op}: the cache {name!r} holds {capacity} positions and is full: "
            "make the state with a larger empty_state(capacity=...)"
        )


class UnknownPlan(Mistake):
    """A `plan=` that is not the name of any plan."""

    def __init__(self, op: str, plan: object, known: Sequence[str]) -> None:
        near = closest(plan, known) if isinstance(plan, str) else "."
        super().__init__(f"{op}: no plan {plan!r}{near} This op has {listed(known)} and 'auto'.")


class RefusedPlan(Mistake):
    """A plan that is legal in none of the op's contractions."""

    def __init__(self, op: str, plan: str, reason: str, legal: Sequence[str]) -> None:
        super().__init__(f"{op}: plan {plan!r} is not legal here: {reason}\n  Legal plans: {listed(legal)}.")


class UnknownBackend(Mistake):
    """A `backend=` that is not the name of any backend."""

    def __init__(self, op: str, backend: object, known: Sequence[str]) -> None:
        super().__init__(f"{op}: no backend {backend!r}; backends: {listed(known)} and 'auto'")


class UnknownPrecision(Mistake):
    """A `precision=` other than "ieee" and "tf32"."""

    def __init__(self, op: str, precision: object, known: Sequence[str]) -> None:
        super().__init__(f"{op}: no precision {precision!r}; precisions: {listed(known)}")


class NoLogSumExp(Mistake):
    """`return_lse=True` of an op without exactly one softmax contraction."""

    def __init__(self, op: str, count: int) -> None:
        super().__init__(
            f"{op}: return_lse needs exactly one attend(..., normalize=softmax), and this op has {count or 'none'}"
        )


class UnknownSize(Mistake):
    """A size under a name that is neither an axis of the op nor one of its integer parameters."""

    def __init__(self, op: str, name: str, known: Sequence[str]) -> None:
        super().__init__(f"{op}: no size {name!r}{closest(name, known)} It takes {listed(known)}.")


class MissingSize(Mistake):
    """A size that nothing tells."""

    def __init__(self, op: str, name: str, why: str) -> None:
        super().__init__(f"{op}: the size {name!r} is missing: {why}")


class WrongSize(Mistake):
    """A size that is not a positive integer."""

    def __init__(self, op: str, name: str, value: object) -> None:
        super().__init__(f"{op}: the size {name!r} must be an integer of at least 1, not {value!r}")


class WrongCapacity(Mistake):
    """A capacity of caches that is not a positive integer."""

    def __init__(self, op: str, value: object) -> None:
        super().__init__(
            f"{op}: capacity, the positions that a cache has room for, must be an integer of at least 1 (or None), "
            f"not {value!r}"
        )


class WrongStateElements(Mistake):
    """`empty_state(dtype=...)` of elements that no tensor of a call may have."""

    def __init__(self, op: str, dtype: object) -> None:
        super().__init__(
            f"{op}: empty_state takes the dtype of the queries, keys and values to come: bfloat16, float16, float32 or "
            f"float64, not {dtype}"
        )


class NothingToTune(Mistake):
    """`op.tune` without a shape or tensors, or with options that leave nothing to measure."""

    def __init__(self, op: str, what: str) -> None:
        super().__init__(
            f"{op}: nothing to tune: {what}\n"
            "  Write op.tune(dict(B=8, T=4096, H=16, K=128, V=128)), or give the tensors of a call."
        )


class UnknownLibraryOp(Mistake, LookupError):
    """A name that is not in the library."""

    def __init__(self, name: object, known: Sequence[str]) -> None:
        near = closest(name, known) if isinstance(name, str) else "."
        super().__init__(f"the library has no {name!r}{near} It has {listed(known)}.")
