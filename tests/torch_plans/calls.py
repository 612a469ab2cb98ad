"""Ops from text, and arguments for them."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from sma_compiler.ir.check import check_file
from sma_compiler.ir.graph import Graph
from sma_compiler.ir.nodes import Attend, Kind, MaskTimes, Op, Param, Solve, postorder
from sma_compiler.mask.elementary import elementary
from sma_compiler.plan.choose import Plans
from sma_compiler.plan.choose import plan as make_plans
from sma_compiler.source import Source
from sma_compiler.torch_plans.elementary import Elementary
from sma_compiler.torch_plans.evaluate import Evaluator, bind_params
from sma_compiler.torch_plans.frame import Frame
from sma_compiler.torch_plans.run import Result, run_op
from sma_compiler.torch_plans.traits import wide_nodes

SIZES = {"batch": 2, "time": 23, "head": 4, "key": 4, "value": 5, "mode": 2, "lag": 6, "level": 4}

Arguments = dict[str, Tensor | int | float]


def make_op(signature: str, *lines: str) -> Op:
    """The op of a signature and the lines of its body."""
    body = "\n".join(f"    {line}" for line in lines)
    (op,) = check_file(Source(f"op f({signature}):\n{body}\n"))
    return op


def make_arguments(op: Op, seed: int = 0, dtype: torch.dtype = torch.float32, **sizes: int | float) -> Arguments:
    """Random arguments: log gates (`g…`) are negative, ids (`doc`) repeat in runs, numbers come from `sizes`."""
    generator = torch.Generator().manual_seed(seed)
    found: Arguments = {}
    for param in op.params:
        shape = [int(sizes.get(f"{param.name}_{axis}", sizes.get(axis, SIZES[axis]))) for axis in param.dims]
        if param.number:
            found[param.name] = sizes[param.name]
        elif param.kind is Kind.BOOL:
            found[param.name] = torch.rand(shape, generator=generator) < 0.6
        elif param.kind is Kind.INT:
            found[param.name] = torch.randint(0, 3, shape, generator=generator).cumsum(-1) // 4
        else:
            data = torch.randn(shape, generator=generator, dtype=torch.float64)
            found[param.name] = (-data.abs() if param.name.startswith("g") else data).to(dtype)
    return found


def sizes_of(op: Op, arguments: Arguments) -> dict[str, int]:
    """The size of every axis in a call; of `head`, the largest."""
    found = {"batch": 1, "time": 1, "head": 1}
    for param in op.params:
        value = arguments[param.name]
        if isinstance(value, Tensor):
            for axis, size in zip(param.dims, value.shape, strict=True):
                found[axis] = max(found.get(axis, 0), size) if axis in ("batch", "head") else size
    return found


def make_frame(op: Op, arguments: Arguments, compute: torch.dtype = torch.float32) -> tuple[Evaluator, Frame]:
    """The evaluator and the frame of a call that starts at 0."""
    sizes = sizes_of(op, arguments)
    evaluator = Evaluator(bind_params(op.params, arguments), sizes, compute)
    frame = Frame(
        batch=sizes["batch"],
        length=sizes["time"],
        start=None,
        lengths=None,
        compute=compute,
        operand=compute,
        device=evaluator.device,
        evaluate=evaluator,
    )
    return evaluator, frame


def bind_elementary(op: Op, evaluator: Evaluator, frame: Frame) -> None:
    """Evaluates the op's shifts and cumulative sums."""
    wide = wide_nodes((op.result,))
    for node in postorder((op.result,)):
        what = elementary(Graph.of(op.result), node)
        if what is not None and isinstance(node, MaskTimes):
            evaluator.bind(node, Elementary(node, what.kind, what, node in wide).run(evaluator, frame, None)[0])


def run(op: Op, arguments: Arguments, plan: str = "quadratic", **options: object) -> Result:
    """The op with one plan wherever it is legal, else quadratic."""
    plans = plans_of(op)
    chosen = {one.site.node: plan if plan in one.legal else "quadratic" for one in plans.choices}
    return run_op(op, plans, chosen, arguments, sizes_of(op, arguments), **options)


@cache
def plans_of(op: Op) -> Plans:
    """What is decided about an op, once."""
    return make_plans(op)


def between(op: Op, arguments: Arguments, start: int, stop: int) -> Arguments:
    """The positions start .. stop - 1 of the arguments."""
    found = dict(arguments)
    for param in op.params:
        value = found[param.name]
        if isinstance(value, Tensor) and "time" in param.dims:
            found[param.name] = value.narrow(param.dims.index("time"), start, stop - start)
    return found


def error(found: Tensor, expected: Tensor) -> float:
    """The relative rms error."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def contractions(op: Op) -> list[Attend | MaskTimes | Solve]:
    """The op's contractions, operands first."""
    return [node for node in postorder((op.result,)) if isinstance(node, Attend | MaskTimes | Solve)]


def parameters(op: Op) -> dict[str, Param]:
    """The op's parameters as expressions."""
    return {node.name: node for node in postorder((op.result,)) if isinstance(node, Param)}
