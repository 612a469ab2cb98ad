"""Gates that are open, shut, cut, steep or positive, mixed channel by channel; what a gate of -inf cuts off is gone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import sma_compiler as sma
from sma_compiler.runtime.op import Argument
from tests.laws import laws
from tests.laws.inputs import inputs

GATES = {
    "simple_gla": "g",
    "gla": "g",
    "hgrn2": "g",
    "rwkv6": "w",
    "rwkv7": "w",
    "mamba3": "adt",
    "log_linear": "g",
    "gated_delta_net": "g",
    "kda": "g",
}
"""The log gates of the specs that take them as they are."""
GATED = [(name, plan) for name in GATES for plan in laws.plans_of(sma.library(name))]
KINDS = {
    "open": (0.0,),
    "shut": (-1e3,),
    "cut": (-math.inf,),
    "steep": (-80.0,),
    "some cut": (-0.1, -0.2, -0.1, 0.0, -math.inf),
    "mixed": (0.0, -1e3, -math.inf, -80.0, -50.0, -0.1, -1e-3, 0.0),
    "positive": (0.1, -0.1, 0.2, 0.0, -0.2, 0.05, 0.1, -0.3),
}


SINGLE = 2e-5
"""Of the largest value, in fp32."""


def gated(name: str, kind: str, dtype: torch.dtype = torch.float64, time: int = 23) -> dict[str, Argument]:
    """Arguments whose gates are drawn from one kind, each channel on its own."""
    found = inputs(sma.library(name), dtype, time=time)
    gate = found[GATES[name]]
    assert isinstance(gate, Tensor)
    values = torch.tensor(KINDS[kind], dtype=dtype)
    drawn = torch.randint(0, len(values), gate.shape, generator=torch.Generator().manual_seed(3))
    return {**found, GATES[name]: values[drawn]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "plan"), GATED)
def test_gates(name: str, plan: str, kind: str) -> None:
    laws.check_plan(sma.library(name), gated(name, kind, time=70 if kind == "mixed" else 33), plan)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "positive"])
@pytest.mark.parametrize(("name", "plan"), GATED)
def test_gates_in_fp32(name: str, plan: str, kind: str) -> None:
    laws.check_plan(sma.library(name), gated(name, kind, torch.float32), plan, SINGLE)


@pytest.mark.parametrize("kind", ["mixed", "some cut"])
@pytest.mark.parametrize(("name", "plan"), GATED)
def test_gates_across_a_cut(name: str, plan: str, kind: str) -> None:
    laws.check_cuts(sma.library(name), gated(name, kind, time=40), [1, 20, 33], [plan, "auto"])


@pytest.mark.parametrize("at", [9, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "plan"), [pair for pair in GATED if pair[0] != "mamba3"])
def test_a_cut_is_exact(name: str, plan: str, dtype: torch.dtype, at: int) -> None:
    """Behind a gate of -inf in every channel nothing of what lies before is left, in results, states or gradients.

    (Of mamba3 the phases are left.)
    """
    op = sma.library(name)
    given = inputs(op, dtype, time=35)
    gate = given[GATES[name]].clone()
    # rwkv6 and rwkv7 pass the gates strictly between j and i: the row of the cut still sees all
    first = at + 1 if name in ("rwkv6", "rwkv7") else at
    gate[:, at] = -math.inf
    if name == "rwkv7":  # the write at a position reads the state before its own gate
        given["a"] = given["a"].clone()
        given["a"][:, at] = 0
    given[GATES[name]] = gate
    other = inputs(op, dtype, 1, time=35)
    changed = dict(given)
    for decl in laws.over_time(op):
        if decl.name != GATES[name]:
            changed[decl.name] = torch.cat([other[decl.name][:, :at], given[decl.name][:, at:]], 1)
    before, state = op(**given, plan=plan, return_state=True)
    after, other_state = op(**changed, plan=plan, return_state=True)
    assert torch.equal(before[:, first:], after[:, first:])
    for what in state:
        if ".cache." not in what:
            assert torch.equal(state[what], other_state[what]), what
    arguments, leaves = laws.with_leaves(given)
    result = op(**arguments, plan=plan)
    for which, grad in laws.gradients(result[:, first:], leaves, torch.ones_like(result[:, first:])).items():
        if which != GATES[name] and "time" in next(decl.dims for decl in op.params if decl.name == which):
            assert not grad[:, :at].any(), which
        assert bool(grad.isfinite().all()), which


@pytest.mark.parametrize("time", [32, 33, 100])
@pytest.mark.parametrize("name", ["simple_gla", "gla", "hgrn2", "rwkv6", "gated_delta_net", "kda"])
def test_states_behind_steep_gates_are_exact(name: str, time: int) -> None:
    """What a state keeps since a gate of -1e3 is no difference of sums that hold it, in chunks of any plan."""
    op = sma.library(name)
    given = inputs(op, torch.float32, time=time, key=16, value=16)
    values = torch.tensor([0, -1e3, -80, -0.1, -0.1, -0.05, 0, 0])
    gate = given[GATES[name]]
    given[GATES[name]] = values[torch.randint(0, 8, gate.shape, generator=torch.Generator().manual_seed(3))]
    wide = {key: x.double() if isinstance(x, Tensor) else x for key, x in given.items()}
    _, exact = op(**wide, plan="recurrent", return_state=True)
    for plan in laws.plans_of(op):
        _, state = op(**given, plan=plan, return_state=True)
        laws.assert_states_near(state, exact, f"{name} {plan}", 2e-6)


ARITHMETIC = [
    "decay(g * a) @ v",
    "transpose(decay(g * a)) @ v",
    "decay(g / a) @ v",
    "decay(log(exp(g) * a)) @ v",
    "decay(-softplus(-g * a)) @ v",
    "decay(where(g < -1, g * a, g)) @ v",
    "(decay(g * a) * (i - j)) @ v",
    "attend(strict * exp(sum(g[t] * a, j < t < i)), q, k, v)",
    "attend(decay(g * ak), q, k, v)",
    "attend(decay(g * a), q, k, v, activation=silu)",
    "attend(decay(g * a), q, k, v, normalize=softmax)",
    "attend(decay(g * a), 1, sum(k, key), v, normalize=softmax)",
    "attend(causal * exp(g[j] * a), 1, sum(k, key), v, normalize=softmax)",
    "attend(causal * exp(g[j] * a), q, k, v, normalize=softmax)",
    "attend(causal * exp(g[j] * a), q, k, v)",
    "solve(strict * decay(g * a), 0.3 * k, k, v)",
    "attend(decay(g * a), q, k, v) + attend(decay(g * a), k, q, v, normalize=sum)",
]


@pytest.mark.parametrize("result", ARITHMETIC)
def test_gates_of_minus_infinity_made_by_arithmetic(result: str) -> None:
    """Whatever a gate of -inf is made of has the gradient 0 there, and a finite one elsewhere."""
    op = sma.compile(f"op f(q, k, v, g: [time, head], a: [head], ak: [head, key]):\n    return {result}\n")
    given = inputs(op, time=40)
    given["g"] = -given["g"].abs().index_fill(1, torch.tensor([3, 20]), math.inf)
    given["a"], given["ak"] = given["a"].abs() + 0.1, given["ak"].abs() + 0.1
    for plan in laws.plans_of(op):
        laws.check_plan(op, given, plan)
        if op.causal:
            laws.check_cuts(op, given, [4, 20, 33], [plan, "auto"])
