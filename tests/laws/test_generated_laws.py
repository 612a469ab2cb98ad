"""Generated specs under every legal plan: the reference's output and gradients, and the two laws, in fp64.

`SMA_LAWS` multiplies the number of specs.
"""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import sma_compiler as sma
from sma_compiler.ir.nodes import Kind
from sma_compiler.runtime.op import Argument, CompiledOp
from sma_compiler.verify.samples import default_sizes, samples
from tests.laws import laws
from tests.laws.specs import spec_texts

MANY = int(os.environ.get("SMA_LAWS", "1"))
LARGEST = 1e5
"""Specs whose values grow beyond this are badly conditioned: in fp64 another order of sums shows."""


def drawn(data: st.DataObject, op: CompiledOp, batch: int) -> dict[str, Argument]:
    """Arguments of small random sizes; some with a batch of 1 or fewer heads."""
    turns = "rope" in op.ir.text
    sizes = {
        "batch": batch,
        "time": data.draw(st.sampled_from([1, 2, 3, 5, 15, 16, 17, 33, 65]), label="time"),
        "head": 2,
        "key": data.draw(st.sampled_from([2, 3, 4] if turns else [1, 3, 4]), label="key"),
        "value": data.draw(st.sampled_from([1, 3]), label="value"),
        "lag": data.draw(st.sampled_from([1, 3, 6, 70]), label="lag"),
        "level": data.draw(st.sampled_from([1, 3, 8]), label="level"),
        "mode": 1,
    }
    if data.draw(st.booleans(), label="groups"):
        sizes["group"] = 1
    found = samples(op.ir, default_sizes(op.ir, **sizes), torch.float64, data.draw(st.integers(0, 99), label="seed"))
    for decl in op.params:
        value = found[decl.name]
        if decl.number:
            found[decl.name] = data.draw(st.integers(1, 9), label=decl.name) if decl.kind is Kind.INT else 0.7
        elif isinstance(value, Tensor) and "batch" in decl.dims and data.draw(st.booleans(), label="a batch of 1"):
            found[decl.name] = value[:1]
    return found


def conditioned(op: CompiledOp, arguments: dict[str, Argument]) -> None:
    """Rejects arguments whose results are too large to compare."""
    exact = op.reference(**arguments).double()
    assume(bool(exact.isfinite().all()) and float(exact.abs().max()) < LARGEST)


def compiled(text: str) -> CompiledOp:
    """The op of a text that the checker accepts."""
    try:
        return sma.compile(text)
    except sma.SpecError:
        assume(False)
        raise


def examples(count: int) -> settings:
    """So many, however many of the generated texts are no specs."""
    slow = [HealthCheck.filter_too_much, HealthCheck.too_slow]
    return settings(max_examples=count * MANY, suppress_health_check=slow)


@examples(25)
@given(text=st.one_of(spec_texts(True), spec_texts(True), spec_texts(False)), data=st.data())
def test_every_plan_is_the_reference(text: str, data: st.DataObject) -> None:
    op = compiled(text)
    arguments = drawn(data, op, 2)
    conditioned(op, arguments)
    for plan in laws.plans_of(op):
        laws.check_plan(op, arguments, plan)


@examples(20)
@given(text=spec_texts(True), data=st.data())
def test_cut_and_joined(text: str, data: st.DataObject) -> None:
    op = compiled(text)
    assume(op.causal)
    arguments = drawn(data, op, 2)
    conditioned(op, arguments)
    length = laws.length_of(op, arguments)
    cuts = sorted(data.draw(st.lists(st.integers(0, length), min_size=1, max_size=3), label="cuts"))
    plans = data.draw(st.lists(st.sampled_from(laws.plans_of(op)), min_size=1, max_size=3), label="plans")
    laws.check_cuts(op, arguments, cuts, plans)


@examples(10)
@given(text=spec_texts(True), data=st.data())
def test_stepped(text: str, data: st.DataObject) -> None:
    op = compiled(text)
    assume(op.causal)
    arguments = drawn(data, op, 2)
    conditioned(op, arguments)
    length = laws.length_of(op, arguments)
    laws.check_steps(op, arguments, max(0, length - 4), data.draw(st.sampled_from(laws.plans_of(op)), label="plan"))
    if length < 6:
        laws.check_steps_in_place(op, arguments)


@examples(15)
@given(text=st.one_of(spec_texts(True), spec_texts(False)), data=st.data())
def test_packed(text: str, data: st.DataObject) -> None:
    op = compiled(text)
    arguments = drawn(data, op, 1)
    conditioned(op, arguments)
    length = laws.length_of(op, arguments)
    cuts = sorted(data.draw(st.lists(st.integers(0, length), min_size=1, max_size=4), label="cuts"))
    laws.check_pack(op, arguments, cuts, data.draw(st.sampled_from(laws.plans_of(op)), label="plan"))


PINNED = [
    "op f(q, k, v, g: [time, head]):\n"
    "    L = causal * where(i - j < 3, 0, decay(g))\n"
    "    return attend(L, q, k, v, normalize=max1)\n",
    "op f(k, v, gv: [time, head, value], doc: int[time], on: bool[time]):\n"
    "    return attend(decay(gv) * documents(doc) * on[j], 1, k, v, normalize=softmax)\n",
    "op f(q, k, v, beta: [time, head], g: [time, head]):\n"
    "    x = attend(decay(g), q, k, v)\n"
    "    u = solve(strict * window(4) * decay(g), beta * l2norm(k), l2norm(k), x)\n"
    "    return shift(attend(causal * sum(g[t], j < t <= i), q, 1, u))\n",
    "op f(q, k, v, ck: [lag, head, key], lev: [time, head, level]):\n"
    "    return attend(levels(lev) * window(9), q, ck[i - j] @ k, cumsum(v))\n",
    "op f(v, x: [time, head], h: [time, key]):\n    return attend(causal, 1, h, v * x, normalize=softmax)\n",
    "op f(v, on: bool[time], n: int):\n    return (window(n) * on[j]) @ on + cumsum(on) * v\n",
]
"""Of each kind one, whatever is generated."""


@pytest.mark.parametrize("text", PINNED)
def test_pinned_specs(text: str) -> None:
    op = sma.compile(text)
    sizes = {"batch": 1, "time": 37, "head": 2, "key": 4, "value": 3, "lag": 5, "level": 4}
    arguments = samples(op.ir, default_sizes(op.ir, **sizes), torch.float64)
    assert op.causal
    for plan in laws.plans_of(op):
        laws.check_plan(op, arguments, plan)
        laws.check_cuts(op, arguments, [0, 5, 21], [plan, "auto"])
        laws.check_steps(op, arguments, 33, plan)
        laws.check_pack(op, arguments, [1, 1, 20], plan)
    laws.check_steps_in_place(op, arguments)
