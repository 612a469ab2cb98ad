"""The two laws, and plans against the reference, for one op with some arguments; all in the dtype of the arguments.

A pack gives what each sequence gives alone; a sequence cut and joined by a state gives what the whole gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from sma_compiler.ir.nodes import ParamDecl
from sma_compiler.runtime.op import Argument, CompiledOp
from sma_compiler.runtime.state import State

Given = Mapping[str, Argument]

CLOSE = 1e-9
"""Of the largest magnitude: what fp64 arithmetic in another order may differ by, well conditioned."""


def plans_of(op: CompiledOp) -> list[str]:
    """The names of the legal plans."""
    return [plan.name for plan in op.plans]


def over_time(op: CompiledOp) -> Iterator[ParamDecl]:
    """The parameters with a time axis."""
    return (decl for decl in op.params if "time" in decl.dims)


def between(op: CompiledOp, given: Given, start: int, stop: int) -> dict[str, Argument]:
    """Positions start .. stop - 1."""
    found = dict(given)
    for decl in over_time(op):
        value = given[decl.name]
        assert isinstance(value, Tensor)
        found[decl.name] = value.narrow(decl.dims.index("time"), start, stop - start)
    return found


def at(op: CompiledOp, given: Given, position: int) -> dict[str, Argument]:
    """One position, without the time axis."""
    found = dict(given)
    for decl in over_time(op):
        value = given[decl.name]
        assert isinstance(value, Tensor)
        found[decl.name] = value.select(decl.dims.index("time"), position)
    return found


def length_of(op: CompiledOp, given: Given) -> int:
    """T."""
    for decl in over_time(op):
        value = given[decl.name]
        assert isinstance(value, Tensor)
        return value.shape[decl.dims.index("time")]
    raise AssertionError("no parameter has time")


def time_of(op: CompiledOp) -> int:
    """The dimension of time in the result."""
    return op.ir.result.axes.index("time")


def with_leaves(given: Given) -> tuple[dict[str, Argument], dict[str, Tensor]]:
    """The arguments, with fresh leaves for what is floating point; and these."""
    leaves = {
        name: x.detach().clone().requires_grad_()
        for name, x in given.items()
        if isinstance(x, Tensor) and x.is_floating_point()
    }
    return {**given, **leaves}, leaves


def gradients(result: Tensor, leaves: Mapping[str, Tensor], cotangent: Tensor) -> dict[str, Tensor]:
    """Of <cotangent, result>; zeros for what does not matter to it."""
    if not result.requires_grad or not result.is_floating_point():
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    found = torch.autograd.grad(result, list(leaves.values()), cotangent, allow_unused=True)
    pairs = zip(leaves.items(), found, strict=True)
    return {name: torch.zeros_like(leaf) if grad is None else grad for (name, leaf), grad in pairs}


def cotangent_of(result: Tensor) -> Tensor:
    """Random, the same for every result of this shape."""
    drawn = torch.randn(result.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return drawn.to(result.dtype)


def assert_near(found: Tensor, expected: Tensor, what: str, close: float = CLOSE) -> None:
    """Equal but for `close` of the largest magnitude; infinite and NaN at the same places."""
    assert found.shape == expected.shape, f"{what}: shape {tuple(found.shape)}, not {tuple(expected.shape)}"
    if not expected.is_floating_point():
        assert torch.equal(found, expected.to(found.dtype)), f"{what}: {found} is not {expected}"
        return
    finite = expected.isfinite()
    same = found.isfinite() == finite
    assert bool(same.all()), f"{what}: {int((~same).sum())} of {same.numel()} are not finite where they should be"
    scale = float(expected[finite].abs().max()) if bool(finite.any()) else 0.0
    error = float((found[finite].double() - expected[finite].double()).abs().max()) if bool(finite.any()) else 0.0
    assert error <= close * max(scale, 1.0), f"{what}: off by {error:.2e} where the largest is {scale:.2e}"


def assert_states_near(found: State, expected: State, what: str, close: float = CLOSE) -> None:
    """The same names and shapes, and near values."""
    assert list(found) == list(expected), what
    for name in expected:
        assert_near(found[name], expected[name], f"{what}, state {name}", close)


def check_plan(op: CompiledOp, given: Given, plan: str, close: float = CLOSE) -> None:
    """Output and gradients of a plan against the reference."""
    arguments, leaves = with_leaves(given)
    exact, exact_leaves = with_leaves(given)
    found, expected = op(**arguments, plan=plan), op.reference(**exact)
    assert_near(found.detach(), expected.detach(), f"{op.name} {plan}", close)
    cotangent = cotangent_of(expected)
    wanted = gradients(expected, exact_leaves, cotangent)
    for name, grad in gradients(found, leaves, cotangent).items():
        assert_near(grad, wanted[name], f"{op.name} {plan}, gradient of {name}", close)


def joined(
    op: CompiledOp, given: Given, cuts: Sequence[int], plans: Sequence[str], state: State | None = None
) -> tuple[Tensor, State]:
    """The results of the pieces between cuts, joined by states; the plans take turns."""
    bounds = [0, *cuts, length_of(op, given)]
    results = []
    for number, (start, stop) in enumerate(pairwise(bounds)):
        piece = between(op, given, start, stop)
        result, state = op(**piece, initial_state=state, return_state=True, plan=plans[number % len(plans)])
        results.append(result)
    assert state is not None
    return torch.cat(results, time_of(op)), state


def check_cuts(op: CompiledOp, given: Given, cuts: Sequence[int], plans: Sequence[str], close: float = CLOSE) -> None:
    """The pieces give what the whole gives: result, last state, and all gradients."""
    what = f"{op.name} cut at {list(cuts)}, {'/'.join(plans)}"
    arguments, leaves = with_leaves(given)
    whole, end = op(**arguments, return_state=True, plan=plans[0])
    cotangent = cotangent_of(whole)
    wanted = gradients(whole, leaves, cotangent)
    pieces, last = joined(op, arguments, cuts, plans)
    assert_near(pieces.detach(), whole.detach(), what, close)
    assert_states_near(last.detach(), end.detach(), what, close)
    for name, grad in gradients(pieces, leaves, cotangent).items():
        assert_near(grad, wanted[name], f"{what}, gradient of {name}", close)


def check_steps(op: CompiledOp, given: Given, cut: int, plan: str, close: float = CLOSE) -> None:
    """From a cut on, position by position."""
    what = f"{op.name} {plan}, steps from {cut}"
    length = length_of(op, given)
    whole, end = op(**given, return_state=True, plan=plan)
    state: State | None = None
    if cut:
        _, state = op(**between(op, given, 0, cut), return_state=True, plan=plan)
    for position in range(cut, length):
        result, state = op.step(**at(op, given, position), state=state)
        assert_near(result, whole.select(time_of(op), position), f"{what}, position {position}", close)
    if state is not None:
        assert_states_near(state, end, what, close)


def sizes_of(op: CompiledOp, given: Given) -> dict[str, int]:
    """The sizes that `empty_state` wants: of every axis but time and batch, and the integer parameters."""
    sizes: dict[str, int] = {}
    for decl in op.params:
        value = given[decl.name]
        if isinstance(value, Tensor):
            for axis, size in zip(decl.dims, value.shape, strict=True):
                sizes[axis] = max(size, sizes.get(axis, 0))
        else:
            sizes[decl.name] = value
    return {axis: size for axis, size in sizes.items() if axis != "time"}


def check_steps_in_place(op: CompiledOp, given: Given, close: float = CLOSE) -> None:
    """From `empty_state` on, in place: the same tensors at the same addresses, the results of the whole."""
    what = f"{op.name}, steps in place"
    length = length_of(op, given)
    whole, end = op(**given, return_state=True)
    sizes = sizes_of(op, given)
    state = op.empty_state(capacity=length, dtype=torch.float64, **sizes)
    addresses = {name: tensor.data_ptr() for name, tensor in state.items()}
    for position in range(length):
        result, same = op.step(**at(op, given, position), state=state, inplace=True)
        assert same is state
        assert not result.requires_grad
        assert_near(result, whole.select(time_of(op), position), f"{what}, position {position}", close)
    assert {name: tensor.data_ptr() for name, tensor in state.items()} == addresses
    assert_states_near(state, end, what, close)


def packed(op: CompiledOp, parts: Sequence[Given]) -> tuple[dict[str, Argument], Tensor]:
    """Sequences end to end, and where they begin."""
    found = dict(parts[0])
    for decl in over_time(op):
        tensors = [part[decl.name] for part in parts]
        found[decl.name] = torch.cat([x for x in tensors if isinstance(x, Tensor)], decl.dims.index("time"))
    lengths = [length_of(op, part) for part in parts]
    return found, torch.tensor([0, *lengths]).cumsum(0)


def check_pack(op: CompiledOp, given: Given, cuts: Sequence[int], plan: str, close: float = CLOSE) -> None:
    """A row (batch 1) as a pack of the sequences between cuts: result, states, gradients, and the reference's pack."""
    length = length_of(op, given)
    bounds = [0, *cuts, length]
    what = f"{op.name} {plan}, pack {bounds}"
    arguments, leaves = with_leaves(given)
    cu_seqlens = torch.tensor(bounds)
    found = op(**arguments, cu_seqlens=cu_seqlens, plan=plan, return_state=op.causal)
    result, states = found if op.causal else (found, None)
    alone, ends = [], []
    for start, stop in pairwise(bounds):
        one = op(**between(op, arguments, start, stop), plan=plan, return_state=op.causal)
        alone.append(one[0] if op.causal else one)
        ends.append(one[1] if op.causal else None)
    expected = torch.cat(alone, time_of(op))
    assert_near(result.detach(), expected.detach(), what, close)
    exact = op.reference(**given, cu_seqlens=cu_seqlens)
    assert_near(result.detach(), exact, f"{what}, reference", close)
    cotangent = cotangent_of(result)
    wanted = gradients(expected, leaves, cotangent)
    for name, grad in gradients(result, leaves, cotangent).items():
        assert_near(grad, wanted[name], f"{what}, gradient of {name}", close)
    if states is None:
        return
    for row, end in enumerate(ends):
        assert end is not None
        mine = states.rows(row).detach()
        for name, tensor in end.detach().items():
            kept = mine[name]
            if ".cache." in name:  # empty slots may stand in front
                kept = kept[:, kept.shape[1] - tensor.shape[1] :]
            assert_near(kept, tensor, f"{what}, state {name} of sequence {row}", close)
