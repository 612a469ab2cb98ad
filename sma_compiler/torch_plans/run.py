"""Runs an op with torch: its contractions one after the other, each by the plan chosen for it, states in and out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sma_compiler.ir.graph import sort_axes
from sma_compiler.ir.nodes import Attend, Contraction, Expr, Kind, MaskTimes, Op, Param, Solve, children
from sma_compiler.plan.choose import Plans
from sma_compiler.torch_plans.contractions import Contracting, within
from sma_compiler.torch_plans.elementary import Elementary
from sma_compiler.torch_plans.evaluate import Evaluator, Number, bind_params
from sma_compiler.torch_plans.frame import Frame
from sma_compiler.torch_plans.named import Named
from sma_compiler.torch_plans.named_ops import arranged, picked
from sma_compiler.torch_plans.sites import layout_of

COARSEST_FIRST = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Result:
    """What a call gives.

    result: with the dimensions `op.result.axes`. state: by name, where it is wanted. lse: [batch, time, ...], the
    log-sum-exp of the rows of the op's last softmax, in the dtype of the computation; None: it has none.
    """

    result: Tensor
    state: dict[str, Tensor] | None
    lse: Tensor | None


def run_op(
    op: Op,
    plans: Plans,
    chosen: Mapping[Expr, str],
    arguments: Mapping[str, Tensor | Number],
    sizes: Mapping[str, int],
    *,
    compute: torch.dtype | None = None,
    lengths: Tensor | None = None,
    state: Mapping[str, Tensor] | None = None,
    want_state: bool = False,
    fixed: bool = False,
    capacity: int | None = None,
) -> Result:
    """Evaluate an op whose arguments are checked.

    Args:
        op: the checked op.
        plans: what was decided about it.
        chosen: the plan of every contraction that has one.
        arguments: tensors with the declared dimensions, and numbers, by name.
        sizes: of every axis in this call; `batch` is the number of rows, `head` the largest head size.
        compute: float32 or float64; None: float64 where an argument is.
        lengths: [batch] int64, how many positions of each row are there; what the others hold changes no result.
        state: what an earlier call returned; None is the empty state.
        want_state: whether to return the state behind each row's last position.
        fixed: whether caches keep as many slots as they have (the oldest are dropped).
        capacity: the slots of caches that hold every position, where not fixed; None: as many as there were positions.
    """
    if sizes["time"] == 0:
        return _nothing(op, plans, arguments, sizes, compute, state, want_state)
    bound = bind_params(op.params, arguments)
    tensors = [value for value in bound.values() if isinstance(value, Named)]
    if compute is None:
        compute = torch.float64 if any(x.data.dtype == torch.float64 for x in tensors) else torch.float32
    layout = layout_of(op, plans)
    evaluator = Evaluator(bound, sizes, compute, layout.traits)
    frame = Frame(
        batch=sizes["batch"],
        length=sizes["time"],
        start=None if state is None else state["position"],
        lengths=lengths,
        compute=compute,
        operand=compute,
        device=evaluator.device,
        evaluate=evaluator,
    )
    after: dict[str, Tensor] = {"position": _position(frame)}
    lse: Tensor | None = None
    for site in layout.sites:
        own = None if state is None else within(state, f"{site.name}.")
        if isinstance(site, Elementary):
            value, kept = site.run(evaluator, frame, own)
            evaluator.bind(site.node, value)
        else:
            rounded = replace(frame, operand=operand_dtype(site.node, bound, compute))
            slots = own["cache.pos"].shape[1] if fixed and own is not None and "cache.pos" in own else capacity
            plan = chosen.get(site.node, "quadratic")
            contracting = Contracting(site, plan, evaluator, rounded, own, want_state, slots)
            value, logs = contracting.run()
            kept = contracting.after
            lse = lse if logs is None else _of_rows(logs, _row_axes(site.node), sizes)
        after.update({f"{site.name}.{name}": x for name, x in kept.items()})
    found = evaluator.tensor(op.result)
    result = _full(found, op.result.axes, sizes).to(result_dtype(op, arguments, compute))
    return Result(result, after if want_state else None, lse)


def _nothing(
    op: Op,
    plans: Plans,
    arguments: Mapping[str, Tensor | Number],
    sizes: Mapping[str, int],
    compute: torch.dtype | None,
    state: Mapping[str, Tensor] | None,
    want_state: bool,
) -> Result:
    """A call without positions: one position that no row has, cut off again."""
    padded = dict(arguments)
    for param in op.params:
        value = padded[param.name]
        if isinstance(value, Tensor) and "time" in param.dims:
            at = param.dims.index("time")
            padded[param.name] = value.new_ones([*value.shape[:at], 1, *value.shape[at + 1 :]])
    device = next(value.device for value in arguments.values() if isinstance(value, Tensor))
    lengths = torch.zeros(sizes["batch"], dtype=torch.int64, device=device)
    found = run_op(
        op,
        plans,
        {},
        padded,
        {**sizes, "time": 1},
        compute=compute,
        lengths=lengths,
        state=state,
        want_state=want_state,
        fixed=True,
        capacity=0,
    )
    result = found.result.narrow(op.result.axes.index("time"), 0, 0)
    return Result(result, found.state, None if found.lse is None else found.lse.narrow(1, 0, 0))


def empty_state(
    op: Op,
    plans: Plans,
    sizes: Mapping[str, int],
    numbers: Mapping[str, Number],
    *,
    capacity: int | None = None,
    compute: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> dict[str, Tensor]:
    """The state before the first position.

    sizes: of every axis but `time`. capacity: the slots of caches that hold every position; None: none, they grow.
    """
    arguments: dict[str, Tensor | Number] = dict(numbers)
    every = {**sizes, "time": 1}
    dtypes = {Kind.BOOL: torch.bool, Kind.INT: torch.int64, Kind.REAL: compute}
    for param in op.params:
        if not param.number:
            shape = [every[axis] for axis in param.dims]
            arguments[param.name] = torch.ones(shape, dtype=dtypes[param.kind], device=device)
    lengths = torch.zeros(every["batch"], dtype=torch.int64, device=device)
    with torch.no_grad():
        found = run_op(
            op, plans, {}, arguments, every, compute=compute, lengths=lengths, want_state=True, capacity=capacity or 0
        )
    assert found.state is not None
    return found.state


def operand_dtype(node: Contraction, bound: Mapping[str, Named | Number], compute: torch.dtype) -> torch.dtype:
    """The coarsest floating-point dtype of the tensors that feed what a contraction multiplies by its mask."""
    found = set()
    seen: set[Expr] = set()
    stack = list(_operands(node))
    while stack:
        expr = stack.pop()
        if expr in seen:
            continue
        seen.add(expr)
        if isinstance(expr, Param):
            value = bound[expr.name]
            if isinstance(value, Named):
                found.add(value.data.dtype)
        stack.extend(_operands(expr) if isinstance(expr, Attend | MaskTimes | Solve) else children(expr))
    return next((dtype for dtype in COARSEST_FIRST if dtype in found), compute)


def result_dtype(op: Op, arguments: Mapping[str, Tensor | Number], compute: torch.dtype) -> torch.dtype:
    """The dtype of the op's first tensor; of its first floating-point tensor, where the result is real."""
    dtypes = [value.dtype for value in arguments.values() if isinstance(value, Tensor)]
    if op.result.kind is Kind.REAL:
        dtypes = [dtype for dtype in dtypes if dtype.is_floating_point]
    return dtypes[0] if dtypes else compute


def _operands(node: Contraction) -> tuple[Expr, ...]:
    match node:
        case Attend(q=q, k=k, v=v):
            return (q, k, v)
        case MaskTimes(x=x):
            return (x,)
        case Solve(a=a, b=b, u=u):
            return (a, b, u)


def _position(frame: Frame) -> Tensor:
    """[batch] int64: the positions seen after the call."""
    new = torch.full((frame.batch,), frame.length, dtype=torch.int64, device=frame.device)
    if frame.lengths is not None:
        new = frame.lengths.to(torch.int64)
    return new if frame.start is None else frame.start + new


def _row_axes(node: Contraction) -> tuple[str, ...]:
    """The axes of a softmax's rows."""
    assert isinstance(node, Attend)
    factors = (node.mask, node.q, node.k, node.scale)
    return sort_axes(("batch", "time", *(axis for x in factors for axis in x.axes if axis != "key")))


def _of_rows(logs: Named, axes: tuple[str, ...], sizes: Mapping[str, int]) -> Tensor:
    """Logs with the axes of the rows: along others, which they have from the values beside them, they are the same."""
    for axis in logs.axes:
        if axis not in axes:
            logs = picked(logs, axis, 0)
    return _full(logs, axes, sizes)


def _full(x: Named, axes: tuple[str, ...], sizes: Mapping[str, int]) -> Tensor:
    return arranged(x, axes, [sizes[axis] for axis in axes]).contiguous()
