"""Legal plans of every library spec, as the design lists them, and reasons for the others."""

from __future__ import annotations

import pytest

from sma_compiler.errors import SpecError
from sma_compiler.ir.check import check_file
from sma_compiler.plan.choose import PLANS, plan
from sma_compiler.plan.cost import pick, seconds
from sma_compiler.plan.errors import MaskMayBeNegative, SolveNotStrict
from sma_compiler.source import Source
from sma_compiler.syntax.locate import library_names, library_source
from tests.mask.test_streams import op_of

QUADRATIC = {"quadratic"}
LINEAR = {"quadratic", "recurrent", "chunked"}
TABLE = {
    **dict.fromkeys(["attention", "alibi", "sliding_window", "document", "prefix_lm", "forgetting"], QUADRATIC),
    **dict.fromkeys(["linear_attention", "linear_attention_normalized", "retention", "lightning"], LINEAR),
    **dict.fromkeys(["simple_gla", "gla", "hgrn2", "mamba2", "mamba1", "rwkv4", "rwkv6", "mamba3"], LINEAR),
    **dict.fromkeys(["delta_net", "gated_delta_net", "kda", "rwkv7"], LINEAR),
    "linear_attention_full": {"quadratic", "global"},
    "hydra": {"quadratic", "chunked"},
    "s4d": LINEAR | {"toeplitz"},
    "h3": LINEAR | {"toeplitz"},
    "hyena": {"quadratic", "toeplitz"},
    "log_linear": QUADRATIC,
}


def test_the_table_is_the_library() -> None:
    assert set(TABLE) == set(library_names())


@pytest.mark.parametrize("name", TABLE)
def test_library_plans(name: str) -> None:
    plans = plan(check_file(library_source(name))[0])
    assert {legal.name for legal in plans.legal} == TABLE[name]
    assert set(plans.refused) == set(PLANS) - TABLE[name]
    assert all(plans.refused.values())
    assert all(legal.cost and legal.state for legal in plans.legal)


@pytest.mark.parametrize(
    ("mask", "params", "legal"),
    [
        ("window(w)", "w: int", LINEAR),
        ("window(4) * decay(g)", "g: [time, head]", LINEAR),
        ("decay(g) * documents(d)", "g: [time, head], d: int[time]", LINEAR),
        ("decay(g) * (d[i] == d[j])", "g: [time, head], d: int[time]", QUADRATIC),
        ("transpose(decay(g))", "g: [time, head]", LINEAR),
        ("transpose(decay(g)) + decay(g)", "g: [time, head]", {"quadratic", "chunked"}),
        ("levels(z)", "z: [time, head, level]", QUADRATIC),
        ("full", "", {"quadratic", "global"}),
    ],
)
def test_plans_follow_from_the_mask(mask: str, params: str, legal: set[str]) -> None:
    assert {found.name for found in plan(op_of(mask, params)).legal} == legal


@pytest.mark.parametrize("mask", ["1 - 2 * causal", "causal * cos(i - j)", "causal * x[i]"])
def test_softmax_needs_a_mask_that_is_not_negative(mask: str) -> None:
    attend = f"attend({mask}, q, k, v, normalize=softmax)"
    text = f"op f(q, k, v, x: [time, head]):\n    y = attend(causal * exp(x[i]), q, k, v)\n    return y + {attend}\n"
    with pytest.raises(MaskMayBeNegative) as caught:
        plan(check_file(Source(text))[0])
    assert caught.value.span is not None
    assert (caught.value.span.line, caught.value.span.column) == (3, 23)


def test_softmax_takes_what_intervals_prove() -> None:
    for mask in ("1 - causal", "causal * sigmoid(i - j)", "causal * (1 - sigmoid(j - i))", "causal * abs(i - 2 * j)"):
        text = f"op f(q, k, v):\n    return attend({mask}, q, k, v, normalize=softmax)\n"
        plan(check_file(Source(text))[0])


def test_solve_needs_a_strict_mask() -> None:
    text = "op f(q, k, v):\n    return solve(causal, q, k, v)\n"
    with pytest.raises(SolveNotStrict):
        plan(check_file(Source(text))[0])


def test_every_mask_is_looked_at_and_its_mistake_told_where_it_is_used() -> None:
    text = """op f(q, k, v, z: [time]):
    a = attend(causal * z[j], q, k, v, normalize=softmax)
    b = attend(causal, q, k, v) + attend(cos(i - j), q, k, v, normalize=softmax)
    return a + b + solve(causal, k, k, v)
"""
    with pytest.raises(SpecError) as caught:
        plan(check_file(Source(text))[0])
    places = [(type(error), error.span and (error.span.line, error.span.column)) for error in caught.value.errors]
    assert places == [(MaskMayBeNegative, (2, 16)), (MaskMayBeNegative, (3, 42)), (SolveNotStrict, (4, 20))]


def test_the_cheapest_plan_depends_on_the_length() -> None:
    choice = plan(check_file(library_source("retention"))[0]).choices[0]
    sizes = {"batch": 1, "head": 8, "key": 64, "value": 64}
    assert pick(choice, sizes | {"time": 65536}) == "chunked"
    assert pick(choice, sizes | {"time": 1}) != "chunked"
    assert pick(choice, sizes | {"time": 65536}, "recurrent") == "recurrent"
    costs = [seconds(choice, "quadratic", sizes | {"time": time}) for time in (128, 256, 512)]
    assert costs == sorted(costs)


@pytest.mark.parametrize(
    ("mask", "legal", "why"),
    [
        ("strict", LINEAR, ""),
        ("strict * decay(g)", LINEAR, ""),
        ("strict * exp(sum(c[t], j < t < i)) * documents(d)", LINEAR, ""),
        ("strict * window(4) * decay(g)", QUADRATIC, "a band in the mask of solve"),
        ("strict * (d[i] == d[j])", QUADRATIC, ""),
        ("decay(g) @ (i - j == 1)", {"quadratic", "recurrent"}, "feeds solve its own results late"),
    ],
)
def test_plans_of_solve(mask: str, legal: set[str], why: str) -> None:
    params = "k, v, g: [time, head], c: [time, head, key], d: int[time]"
    (choice,) = plan(check_file(Source(f"op f({params}):\n    return solve({mask}, 0.1 * k, k, v)\n"))[0]).choices
    assert set(choice.legal) == legal
    assert why in dict(choice.refused).get("chunked", "")
