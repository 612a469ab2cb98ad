"""Every legal plan of random ops against the reference in fp64: values, gradients, packs, states."""

from __future__ import annotations

import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import sma_compiler as sma
from sma_compiler.reference import Argument, evaluate
from sma_compiler.runtime.op import CompiledOp
from sma_compiler.verify.samples import default_sizes, samples
from tests.oracle.random_specs import SIZES, SMALL_MASKS, spec_of

FORMS = [
    "({m}) @ v",
    "attend({m}, q, k, v)",
    "attend({m}, q, k, v, normalize=max1)",
    "attend({m}, 1, sum(k, key), v, normalize=softmax)",
    "attend({m}, q, k, v, normalize=softmax, scale=s)",
    "attend({m}, q, k, v, activation=silu)",
    "attend({m}, rope(q, cumsum(turn)), rope(k, cumsum(turn)), v)",
    "attend({m}, shift(q), k, ({n}) @ v)",
    "attend({m}, q, k, v) + attend({n}, q, k, v)",
    "attend({m}, q, k, solve(strict * decay(g), 0.3 * k, k, v))",
    "solve(strict * decay(r) * h[j], 0.3 * k, k, attend({m}, q, k, v))",
    "solve(strict * ({m}), 0.1 * k, k, v)",
    "solve(strict * (({m}) @ ({n})), 0.02 * k, k, v)",
]


def part(op: CompiledOp, arguments: dict[str, Argument], start: int, stop: int) -> list[Argument]:
    """The arguments at some positions, in the order of the spec."""
    return [
        x.narrow(decl.dims.index("time"), start, stop - start) if isinstance(x, Tensor) and "time" in decl.dims else x
        for decl, x in ((decl, arguments[decl.name]) for decl in op.params)
    ]


@example(m="(i == j)", n="causal", form=FORMS[4], cut=1)
@given(m=SMALL_MASKS, n=SMALL_MASKS, form=st.sampled_from(FORMS), cut=st.integers(1, 6))
@settings(max_examples=60)
def test_plans_of_random_ops(m: str, n: str, form: str, cut: int) -> None:
    try:
        op = sma.compile(spec_of(form.format(m=m, n=n)))
    except sma.SpecError:
        assume(False)
        return
    drawn = samples(op.ir, default_sizes(op.ir, **SIZES), torch.float64, seed=3)
    arguments: dict[str, Argument] = {}
    leaves: list[Tensor] = []
    for name, x in drawn.items():
        arguments[name] = x
        if isinstance(x, Tensor) and x.is_floating_point():
            leaves.append(x.clamp(-2, 2).requires_grad_())
            arguments[name] = leaves[-1]
    length = SIZES["time"]
    whole = part(op, arguments, 0, length)
    expected = evaluate(op.ir, arguments)
    assume(bool(expected.isfinite().all()))
    cotangent = torch.randn_like(expected)
    slopes = torch.autograd.grad(expected, leaves, cotangent, allow_unused=True)
    time = op.ir.result.axes.index("time")
    largest = max(1.0, float(expected.detach().abs().max()))  # terms of size 1 may cancel
    steep = max(float(slope.abs().max()) for slope in slopes if slope is not None) + largest
    bounds = torch.tensor([0, cut, cut, length])
    first_row = [
        x[:1] if isinstance(x, Tensor) and "batch" in decl.dims else x for decl, x in zip(op.params, whole, strict=True)
    ]
    packed = op.reference(*first_row, cu_seqlens=bounds)
    after = None
    for plan in op.plans:
        found = op(*whole, plan=plan.name, backend="torch")
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10 * largest)
        grads = torch.autograd.grad(found, leaves, cotangent, allow_unused=True)
        for grad, slope in zip(grads, slopes, strict=True):
            if slope is not None:
                grad = torch.zeros_like(slope) if grad is None else grad
                torch.testing.assert_close(grad, slope, rtol=1e-8, atol=1e-8 * steep)
        pack = op(*first_row, plan=plan.name, backend="torch", cu_seqlens=bounds)
        torch.testing.assert_close(pack, packed, rtol=1e-9, atol=1e-10 * largest)
        if op.causal:
            first, state = op(*part(op, arguments, 0, cut), plan=plan.name, backend="torch", return_state=True)
            second = op(*part(op, arguments, cut, length), plan=plan.name, backend="torch", initial_state=state)
            joined = torch.cat((first, second), time)
            torch.testing.assert_close(joined, expected, rtol=1e-9, atol=1e-10 * largest)
            assert after is None or {key: x.shape for key, x in state.items()} == after
            after = {key: x.shape for key, x in state.items()}
