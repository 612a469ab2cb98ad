"""Inferred ranks against numerical ranks of every off-diagonal block, and each other fact against dense values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sma_compiler.facts.facts import MaskFacts
from sma_compiler.facts.sizes import at
from sma_compiler.ir.check import check_file
from sma_compiler.ir.nodes import Attend, Contraction, Op, postorder
from sma_compiler.plan.choose import plan
from sma_compiler.reference import mask_matrix
from sma_compiler.source import Source
from sma_compiler.syntax.locate import library_names, library_source
from sma_compiler.verify.samples import default_sizes, samples
from tests.mask.test_streams import MASKS, op_of

SIZES = {"batch": 1, "time": 24, "head": 1, "key": 3, "value": 2, "mode": 3}


def dense(op: Op, node: Contraction, seed: int = 0, **given: int) -> tuple[Tensor, dict[str, int]]:
    """The mask on random parameters as [channels, T, T] in fp64, and the sizes and int parameters it was made with."""
    sizes = default_sizes(op, **SIZES)
    arguments = samples(op, sizes, torch.float64, seed) | given
    numbers = {name: value for name, value in arguments.items() if isinstance(value, int)}
    value = mask_matrix(op, node.mask, arguments)
    return value.data.double().reshape(-1, *value.data.shape[_position(value.axes) :][:2]), sizes | numbers


def _position(axes: tuple[str, ...]) -> int:
    assert axes[-2:] == ("i", "j"), axes
    return len(axes) - 2


def block_rank(mask: Tensor, upper: bool) -> int:
    """The largest numerical rank of the blocks below (above) the diagonal, over the channels."""
    mask = mask.transpose(1, 2) if upper else mask
    found = 0
    for cut in range(1, mask.shape[1]):
        values = torch.linalg.svdvals(mask[:, cut:, :cut])
        found = max(found, int((values > 1e-10 * values.amax(dim=1, keepdim=True).clamp(min=1e-30)).sum(dim=1).max()))
    return found


def contractions(op: Op) -> list[tuple[Contraction, MaskFacts]]:
    return [(choice.site.node, choice.site.facts) for choice in plan(op).choices]


def check_ranks(op: Op, tight: bool, seed: int = 0, **given: int) -> None:
    for node, facts in contractions(op):
        mask, sizes = dense(op, node, seed, **given)
        for upper, inferred in ((False, facts.lower_rank), (True, facts.upper_rank)):
            bound = at(inferred, **sizes)
            measured = block_rank(mask, upper)
            assert measured <= bound, (facts.contraction, upper, measured, str(inferred))
            assert not tight or measured == min(bound, mask.shape[1] // 2), (facts.contraction, measured, str(inferred))


@pytest.mark.parametrize("name", library_names())
def test_library_ranks_are_tight(name: str) -> None:
    (op,) = check_file(library_source(name))
    check_ranks(op, tight=name != "log_linear")


@pytest.mark.parametrize("name", MASKS)
def test_ranks_hold(name: str) -> None:
    check_ranks(op_of(*MASKS[name][:2]), tight=False, seed=1)


LATE = {
    "decay(g) * (i - j >= 3)": "3",
    "transpose(decay(g) * (i - j >= 3))": "0",
    "causal * (i - j >= 2)": "2",
    "causal * (i - j >= n)": "Max(1, n)",
    "causal * (i - j > 2 * n)": "Max(1, 2*n + 1)",
    "decay(g) * (i - j != 1)": "2",
    "decay(g) * (i - j != n)": "Max(1, n + 1)",
    "causal + window(n)": "Max(1, n)",
    "causal + 2 * band(-n, n)": "Max(1, n + 1)",
    "band(n, n + 2)": "n + 2",
    "(i - j >= n)": "Max(1, n)",
    "decay(g) @ (i - j == 3)": "3",
}
"""Masks whose parts start or end away from the diagonal: their lower ranks."""


@pytest.mark.parametrize("mask", LATE)
def test_ranks_of_what_starts_late_hold_at_any_number(mask: str) -> None:
    op = op_of(mask, "g: [time, head], n: int")
    ((_, facts),) = contractions(op)
    assert str(facts.lower_rank) == LATE[mask]
    for number in (-3, 0, 1, 4):
        check_ranks(op, tight=False, n=number)


def check_shape(op: Op) -> None:
    for node, facts in contractions(op):
        mask, _ = dense(op, node)
        scale = mask.abs().max()
        if facts.causal:
            assert not mask.triu(1).any()
        if facts.toeplitz:
            torch.testing.assert_close(mask[:, 1:, 1:], mask[:, :-1, :-1], rtol=1e-9, atol=float(1e-12 * scale))
        if facts.symmetric:
            torch.testing.assert_close(mask, mask.transpose(1, 2), rtol=1e-9, atol=float(1e-12 * scale))
        if facts.nonnegative:
            assert mask.min() >= 0
        if facts.gate == "none":
            assert bool(((mask == 0) | (mask == 1)).all())


@pytest.mark.parametrize("name", library_names())
def test_library_facts_hold(name: str) -> None:
    check_shape(check_file(library_source(name))[0])


@pytest.mark.parametrize("name", MASKS)
def test_facts_hold(name: str) -> None:
    check_shape(op_of(*MASKS[name][:2]))


ATOMS = {
    "causal": "",
    "strict": "",
    "full": "",
    "window(3)": "",
    "band(-2, 1)": "",
    "decay(g)": "g: [time, head]",
    "transpose(decay(g))": "g: [time, head]",
    "exp(sum(h[t], j < t < i))": "h: [time, head]",
    "exp(-m * (i - j)) * causal": "m: [head]",
    "cos(w * (i - j))": "w: [head]",
    "(i - j)": "",
    "x[i]": "x: [time, head]",
    "x[j]": "x: [time, head]",
    "(x[i] > 0)": "x: [time, head]",
    "documents(d)": "d: int[time]",
    "levels(z)": "z: [time, head, level]",
    "sum(c * exp(-a * (i - j)), mode) * causal": "c, a: [head, mode]",
}


@st.composite
def masks(draw: st.DrawFn) -> tuple[str, str]:
    """A random mask over a few atoms, with the parameters it needs."""

    def expression(depth: int) -> str:
        if depth == 0 or draw(st.booleans()):
            return draw(st.sampled_from(sorted(ATOMS)))
        left, right = expression(depth - 1), expression(depth - 1)
        form = draw(st.sampled_from(["({} * {})", "({} + {})", "({} - {})", "where(i - j > 1, {}, {})"]))
        return form.format(left, right)

    text = expression(2)
    used = {ATOMS[atom] for atom in ATOMS if atom in text} - {""}
    return text, ", ".join(sorted(used))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(masks())
def test_generated_masks(mask: tuple[str, str]) -> None:
    op = op_of(*mask)
    check_ranks(op, tight=False)
    check_shape(op)


def test_a_wrong_rank_is_found() -> None:
    """The check itself fails when a mask has more rank than it is said to have."""
    op = op_of("decay(g) + decay(h)", "g, h: [time, head]")
    mask, _ = dense(op, contractions(op)[0][0])
    assert block_rank(mask, upper=False) == 2


def test_size_expressions() -> None:
    op = op_of("window(w)", "w: int")
    ((_, facts),) = contractions(op)
    assert str(facts.lower_rank) == "w - 1"
    assert at(facts.lower_rank, w=5) == 4
    assert at(facts.lower_rank, w=0) == at(facts.state_size, w=0, key=3, value=2) == 0
    with pytest.raises(TypeError, match="needs w"):
        at(facts.lower_rank, key=3)


def test_every_fact_has_a_reason() -> None:
    (op,) = check_file(library_source("mamba2"))
    for _, facts in contractions(op):
        for name in ("causal", "toeplitz", "gate", "lower_rank", "upper_rank", "nonnegative", "state_size"):
            assert facts.reasons[name]
            assert name in str(facts)


def test_attend_with_score_free_of_i_is_linear() -> None:
    (op,) = check_file(library_source("rwkv4"))
    ((node, facts),) = contractions(op)
    assert isinstance(node, Attend)
    assert str(facts.state_size) == "3"


def test_all_nodes_are_counted() -> None:
    (op,) = check_file(Source("op f(v):\n    return cumsum(v)\n"))
    assert len(plan(op).facts.masks) == 1
    (op,) = check_file(Source("op f(q, k, v):\n    return attend(causal, q, k, cumsum(v))\n"))
    assert [facts.contraction for facts in plan(op).facts.masks] == ["attend0"]
    assert sum(isinstance(node, Contraction) for node in postorder((op.result,))) == 2


@pytest.mark.parametrize(
    ("result", "size"),
    [
        ("((i - j) * causal) @ doc", "time"),
        ("((i - j) * window(3)) @ doc", "2"),
        ("cumsum(doc)", "1"),
        ("((i // 2 == j // 2) * causal) @ doc", "time"),
    ],
)
def test_the_state_of_integers_is_what_a_cache_keeps(result: str, size: str) -> None:
    (op,) = check_file(Source(f"op f(doc: int[time]):\n    return {result}\n"))
    (facts,) = plan(op).facts.masks
    assert str(facts.state_size) == size
