"""Runs ops through the Triton backend in Triton's interpreter; prints what it finds as JSON. A process of its own:
the interpreter is chosen when Triton is imported."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

import sma_compiler as sma
from sma_compiler.backend_errors import NoDoublePrecision, NoKernel, WrongKernel
from sma_compiler.runtime import again, execute, self_check
from sma_compiler.runtime.kernels import Kernel
from sma_compiler.runtime.load import load
from sma_compiler.verify.samples import default_sizes, samples

OPS = ("mamba2", "linear_attention_normalized")
SIZES = {"batch": 2, "time": 9, "head": 2, "key": 6, "value": 5}
SOLVE = "op f(k, v, g: [time, head]):\n    return solve(strict * decay(g), 0.5 * l2norm(k), l2norm(k), v)\n"
Given = dict[str, Tensor | int | float]


def given(op: sma.CompiledOp, **sizes: int) -> Given:
    return dict(samples(op.ir, default_sizes(op.ir, **{**SIZES, **sizes}), torch.float32))


def part(op: sma.CompiledOp, arguments: Given, where: slice | int) -> Given:
    """The arguments of some positions, or of one without its axis."""
    long = {decl.name for decl in op.params if "time" in decl.dims}
    return {name: x[:, where] if name in long and isinstance(x, Tensor) else x for name, x in arguments.items()}


def error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, over the largest value; infinite between unlike tensors."""
    if found.shape != expected.shape or found.dtype != expected.dtype or not bool(found.isfinite().all()):
        return float("inf")
    scale = float(expected.double().abs().max()) or 1.0
    return float((found.double() - expected.double()).abs().max()) / scale


def worst(found: list[Tensor], expected: list[Tensor]) -> float:
    return max(error(x, y) for x, y in zip(found, expected, strict=True))


def gradients(op: sma.CompiledOp, arguments: Given, backend: str) -> list[Tensor]:
    leaves = {name: x.clone().requires_grad_() for name, x in arguments.items() if isinstance(x, Tensor)}
    y, state = op(**{**arguments, **leaves}, return_state=True, backend=backend)
    y2 = op(**{**arguments, **leaves}, initial_state=state, backend=backend)
    plain = op(**{**arguments, **leaves}, backend=backend)
    loss = y.sin().sum() + y2.square().sum() + plain.cos().sum()
    return [y.detach(), *torch.autograd.grad(loss, list(leaves.values()))]


def whole_calls(op: sma.CompiledOp) -> float:
    """Several calls of one form, of which the last are replayed, and gradients."""
    found, expected = [], []
    for number in range(3):
        arguments = given(op)
        arguments = {name: x * (1 + 0.1 * number) if name in "qkv" else x for name, x in arguments.items()}
        found += [op(**arguments, backend="triton"), *gradients(op, arguments, "triton")]
        expected += [op(**arguments, backend="torch"), *gradients(op, arguments, "torch")]
    return worst(found, expected)


def joined_by_states(op: sma.CompiledOp) -> float:
    """A state of one backend continues on the other; steps go on from both."""
    arguments = given(op)
    expected = op(**arguments, backend="torch")
    found = []
    for first, second in (("triton", "torch"), ("torch", "triton")):
        y, state = op(**part(op, arguments, slice(0, 4)), return_state=True, backend=first)
        y2, state = op(**part(op, arguments, slice(4, 8)), initial_state=state, return_state=True, backend=second)
        own = state.clone()
        y3, after = op.step(**part(op, arguments, 8), state=state)
        sums = [name for name in after if name != "position"]
        assert all(state[name] is not after[name] for name in sums)
        y4, same = op.step(**part(op, arguments, 8), state=own, inplace=True)
        assert same is own
        assert all(error(same[name], after[name]) < 1e-6 for name in sums)
        assert same["position"].tolist() == after["position"].tolist() == [9, 9]
        assert error(y4, y3) < 1e-6
        found.append(torch.cat((y, y2, y3[:, None]), 1))
    return worst(found, [expected, expected])


def shifted(x: Tensor) -> Tensor:
    """The same numbers from an address on that is no multiple of 16 bytes."""
    return torch.cat((x.flatten()[:1], x.flatten()))[1:].view(x.shape)


def shifted_steps(op: sma.CompiledOp) -> float:
    """Steps from tensors and into a state that begin at no multiple of 16 bytes; kernels are given none of these."""
    arguments = part(op, given(op), 8)
    y, after = op.step(**arguments, backend="torch")
    before = op.empty_state(2, H=2, K=6, V=5)
    own = sma.State(before.spec_hash, {name: shifted(x) if x.is_floating_point() else x for name, x in before.items()})
    held = own["attend0.S0"]
    places: list[int] = []
    plain_step = Kernel.step

    def noted(kernel: Kernel) -> Callable[..., Any]:
        launch = plain_step.__get__(kernel)
        assert launch is not None

        def noting(*tensors: object, **keywords: object) -> object:
            places.extend(x.data_ptr() % 16 for x in (*tensors, keywords["state"]) if isinstance(x, Tensor))
            return launch(*tensors, **keywords)

        return noting

    moved = {name: shifted(x) if isinstance(x, Tensor) else x for name, x in arguments.items()}
    with patch.object(Kernel, "step", property(noted)):
        found = [op.step(**moved, state=own, inplace=True, backend="triton")[0], held]
    assert own["attend0.S0"] is held
    assert len(places) > 2
    assert not any(places)
    return worst(found, [y, after["attend0.S0"]])


def packs(op: sma.CompiledOp) -> float:
    """Sequences of a pack from a state and to a state, and their gradients."""
    arguments, bounds = given(op, batch=1), torch.tensor([0, 3, 3, 9])
    found = []
    for backend in ("triton", "torch"):
        leaves = {name: x.clone().requires_grad_() for name, x in arguments.items() if isinstance(x, Tensor)}
        start = op.empty_state(3, H=2, K=6, V=5)
        (name, *others) = [name for name in start if name != "position"]
        first = torch.full_like(start[name], 0.5).requires_grad_()
        start = sma.State(start.spec_hash, {**start, name: first, **{x: torch.zeros_like(start[x]) for x in others}})
        y, after = op(**leaves, cu_seqlens=bounds, initial_state=start, return_state=True, backend=backend)
        assert after["position"].tolist() == [3, 0, 6]
        loss = y.square().sum() + after[name].sin().sum()
        found.append([y.detach(), *torch.autograd.grad(loss, [*leaves.values(), first])])
    return worst(*found)


def self_checks(op: sma.CompiledOp) -> float:
    """A right kernel passes, and a wrong one is refused before it gives anything."""
    os.environ["SMA_SELF_CHECK"] = "1"
    arguments = given(op)
    try:
        found = error(op(**arguments, backend="triton"), op(**arguments, backend="torch"))
        (kernel, *_) = op.program.kernels._found.values()
        assert isinstance(kernel, Kernel)
        with open(str(kernel.module.__file__), encoding="utf-8") as file:
            text = file.read()
        for right, wrong in (
            ("o_c[:, None] >= o_c[None, :]", "o_c[:, None] > o_c[None, :]"),
            ("b_s.to(DOT)", "b_s.to(DOT) * 1.01"),
        ):
            assert right in text
            planted = Kernel(kernel.name, load(text.replace(right, wrong)))
            for key in op.program.kernels._found:
                op.program.kernels._found[key] = planted
            with pytest.raises(WrongKernel, match=r"computes something else than the torch backend on cpu(.|\n)*FAIL"):
                op(**arguments, backend="triton")
    finally:
        del os.environ["SMA_SELF_CHECK"]
        op.program.kernels._found.clear()
    return found


def logarithms(op: sma.CompiledOp) -> float:
    """Gradients through the result and the log-sum-exp of its rows, through either alone, and through a trace."""
    arguments = given(op)
    leaves = {name: x.requires_grad_() for name, x in arguments.items() if isinstance(x, Tensor)}
    traced = torch.compile(op, fullgraph=True, backend="aot_eager")

    def found(call: Callable[..., Any], backend: str) -> list[Tensor]:
        y, lse = call(**arguments, plan="quadratic", backend=backend, return_lse=True)
        losses = (lse.sin().sum(), lse.square().sum() + y.cos().sum(), y.sin().sum())
        grads = [torch.autograd.grad(x, [*leaves.values()], retain_graph=True, materialize_grads=True) for x in losses]
        return [y.detach(), lse.detach(), *(x for each in grads for x in each)]

    expected = found(op, "torch")
    return max(worst(found(call, "triton"), expected) for call in (op, op, traced))


def refusals(op: sma.CompiledOp) -> float:
    arguments = given(op)
    batched = {decl.name for decl in op.params if "batch" in decl.dims}
    many = {name: x[:1].expand(65536, *x.shape[1:]) if name in batched else x for name, x in arguments.items()}
    one = {name: x[:1] if name in batched else x for name, x in arguments.items()}
    ends = torch.zeros(65537, dtype=torch.int32)
    ends[-1] = next(x.shape[1] for x in one.values() if isinstance(x, Tensor) and x.dim() == 4)
    double = {name: x.double() if isinstance(x, Tensor) else x for name, x in arguments.items()}
    for wrong, kind, message in (
        ({**arguments, "plan": "quadratic", "return_state": True}, NoKernel, "for plan='quadratic': states have none"),
        (many, NoKernel, "a launch takes a batch of 65535 at most"),
        ({**one, "cu_seqlens": ends}, NoKernel, "a launch takes a pack of 65535 sequences at most"),
        (double, NoDoublePrecision, "take bfloat16, float16 and float32, but 'q' is float64"),
    ):
        with pytest.raises(kind, match=message):
            op(**wrong, backend="triton")
    return 0.0


TESTS: tuple[Callable[[sma.CompiledOp], float], ...] = (
    whole_calls,
    joined_by_states,
    shifted_steps,
    packs,
    self_checks,
    refusals,
)


OTHERS: dict[str, tuple[Callable[[sma.CompiledOp], float], ...]] = {
    "mamba1": (joined_by_states, packs),
    "rwkv4": (joined_by_states, packs),
    "gated_delta_net": (whole_calls, joined_by_states, packs),
    "forgetting": (logarithms,),
    "solve": (whole_calls,),
}


def main() -> None:
    """Print the error of every test of every op."""
    again.replayable = lambda _: True
    execute.check_values = lambda *_: None  # so that calls look at no values, as on a GPU
    self_check.SEEDS, self_check.TIME = 1, 34
    found = {}
    for name in OPS:
        for test in TESTS:
            if name == "mamba2" or test is not self_checks:
                found[f"{name} {test.__name__}"] = test(sma.library(name))
    for name, tests in OTHERS.items():
        for test in tests:
            op = sma.compile(SOLVE) if name == "solve" else sma.library(name)
            found[f"{name} {test.__name__}"] = test(op)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
