"""Masks against their decompositions: the parts add up to the mask, and each is of the expected form."""

from __future__ import annotations

import pytest
import torch

from sma_compiler.ir.check import check_file
from sma_compiler.ir.graph import sort_axes
from sma_compiler.ir.nodes import Contraction, Op, postorder
from sma_compiler.mask.streams import analyse
from sma_compiler.plan.choose import plan
from sma_compiler.reference import mask_matrix
from sma_compiler.source import Source
from sma_compiler.syntax.locate import library_names, library_source
from sma_compiler.verify.samples import default_sizes, samples
from tests.mask.rebuild import mask_expression

# mask, parameters beside q, k and v, streams, near parts, lower rank, upper rank, causal, Toeplitz
MASKS = {
    "causal": ("causal", "", 1, 0, "1", "0", True, True),
    "decay": ("decay(g)", "g: [time, head]", 1, 0, "1", "0", True, False),
    "power": ("causal * m ** (i - j)", "m: [head]", 1, 0, "1", "0", True, True),
    "where": ("where(i >= j, exp(-m * (i - j)), 0)", "m: [head]", 1, 0, "1", "0", True, True),
    "wave": ("causal * cos(m * (i - j))", "m: [head]", 1, 0, "2", "0", True, True),
    "wave squared": ("causal * cos(m * (i - j)) ** 2", "m: [head]", 1, 0, "3", "0", True, True),
    "two waves": ("causal * (cos(m * (i - j)) + sin(m * (i - j)))", "m: [head]", 2, 0, "2", "0", True, True),
    "phase": ("causal * cos(m * (i - j) + 1)", "m: [head]", 2, 0, "2", "0", True, True),
    "jordan": ("causal * (i - j) * exp(-m * (i - j))", "m: [head]", 1, 0, "2", "0", True, True),
    "square": ("causal * (i - j) ** 2 * exp(-m * (i - j))", "m: [head]", 1, 0, "3", "0", True, True),
    "shifted": ("causal * (i - j + 2) * exp(-m * (i - j))", "m: [head]", 2, 0, "2", "0", True, True),
    "two decays": ("decay(g) + decay(h)", "g, h: [time, head]", 2, 0, "2", "0", True, False),
    "difference": ("decay(g) - decay(h)", "g, h: [time, head]", 2, 0, "2", "0", True, False),
    "window of a path": (
        "window(w) * exp(sum(g[t], j < t <= i))",
        "g: [time, head], w: int",
        0,
        1,
        "w - 1",
        "0",
        True,
        False,
    ),
    "documents": ("decay(g) * documents(d)", "g: [time, head], d: int[time]", 1, 0, "1", "0", True, False),
    "returning ids": (
        "decay(g) * (d[i] == d[j])",
        "g: [time, head], d: int[time]",
        0,
        1,
        "floor(time/2)",
        "0",
        True,
        False,
    ),
    "blocks": ("causal * (i // 4 == j // 4)", "", 1, 0, "1", "0", True, False),
    "modes": (
        "causal * sum(c * exp(-a * (i - j)) * cos(m * (i - j)), mode)",
        "c, a, m: [head, mode]",
        1,
        0,
        "2*mode",
        "0",
        True,
        True,
    ),
    "bonus": (
        "causal * where(i == j, u, exp(sum(g[t], j < t < i)))",
        "u: [head], g: [time, head]",
        1,
        1,
        "1",
        "0",
        True,
        False,
    ),
    "bonus, not causal": (
        "where(i == j, u, exp(sum(g[t], j < t < i)))",
        "u: [head], g: [time, head]",
        2,
        1,
        "1",
        "1",
        False,
        False,
    ),
    "both ways": ("transpose(decay(g)) + decay(h)", "g, h: [time, head]", 2, 0, "1", "1", False, False),
    "distance": ("exp(-m * abs(i - j))", "m: [head]", 2, 0, "1", "1", False, True),
    "product with a band": ("decay(g) @ band(0, 1)", "g: [time, head]", 2, 0, "1", "0", True, False),
    "product with a wide band": ("decay(g) @ band(0, 3)", "g: [time, head]", 4, 0, "3", "0", True, False),
    "product of decays": ("decay(g) @ decay(h)", "g, h: [time, head]", 0, 1, "2", "0", True, False),
    "prefix": ("prefix(n)", "n: int", 2, 0, "1", "1", False, False),
    "full": ("full", "", 1, 0, "1", "1", False, True),
    "full and more": ("full + decay(g)", "g: [time, head]", 3, 0, "2", "1", False, False),
    "table": ("c[i - j]", "c: [lag, head]", 0, 1, "Min(lag - 1, floor(time/2))", "0", True, True),
    "levels": ("decay(g) * levels(x)", "g: [time, head], x: [time, head, level]", 0, 1, "level - 1", "0", True, False),
    "semiseparable": (
        "semiseparable(c, g, b)",
        "c, b: [time, head, key], g: [time, head]",
        1,
        0,
        "key",
        "0",
        True,
        False,
    ),
    "late": ("(i - j >= 3) * exp(-m * (i - j))", "m: [head]", 1, 0, "3", "0", True, True),
    "closed path": ("causal * exp(sum(g[t], j <= t <= i))", "g: [time, head]", 1, 0, "1", "0", True, False),
    "rows": ("causal * (x[i] > 0) * y[j]", "x, y: [time, head]", 1, 0, "1", "0", True, False),
    "sum of a row": (
        "causal * (1 - x[i]) * exp(-m * (i - j))",
        "x: [time, head], m: [head]",
        1,
        0,
        "1",
        "0",
        True,
        False,
    ),
    "square of a sum": ("(x[i] + y[j]) ** 2", "x, y: [time, head]", 3, 0, "3", "3", False, False),
    "high power": ("causal * (i - j + 1) ** 5", "", 6, 0, "6", "0", True, True),
    "mean": ("causal / (i + 1)", "", 1, 0, "1", "0", True, False),
    "apart": ("causal * exp(x[i] - x[j])", "x: [time, head]", 0, 1, "1", "0", True, False),
    "dilated": ("causal * ((i - j) % 3 == 0)", "", 0, 1, "floor(time/2)", "0", True, True),
    "maximum": ("causal * exp(-m * max(i - j - 4, 0))", "m: [head]", 1, 1, "4", "0", True, True),
    "from a distance on": ("causal * (i - j >= w)", "w: int", 0, 1, "Max(1, w)", "0", True, True),
    "sinks": ("causal * (window(w) or j < 2)", "w: int", 0, 2, "Max(1, w)", "0", True, False),
    "a window, then a decay": (
        "where(window(w), 1, decay(g))",
        "g: [time, head], w: int",
        0,
        2,
        "Max(1, w)",
        "0",
        True,
        False,
    ),
    "nested choice": (
        "causal * where(i - j < 3, 2, where(i - j < 5, m, exp(-m * (i - j))))",
        "m: [head]",
        1,
        2,
        "5",
        "0",
        True,
        True,
    ),
}


def op_of(mask: str, params: str) -> Op:
    listed = ", ".join(part for part in ("q, k, v", params) if part)
    (op,) = check_file(Source(f"op probe({listed}):\n    L = {mask}\n    return attend(L, q, k, v)\n"))
    return op


def contractions(op: Op) -> list[Contraction]:
    return [node for node in postorder((op.result,)) if isinstance(node, Contraction)]


def agree(op: Op, number: int = -1, **sizes: int) -> None:
    """Every mask of the op equals the sum of its parts, on random parameters."""
    graph = plan(op).graph
    mask = contractions(op)[number].mask
    arguments = samples(op, default_sizes(op, batch=1, head=2, key=3, value=2, mode=3, time=19, **sizes), torch.float64)
    rebuilt = mask_expression(graph, analyse(graph, mask).decomposition)
    whole, parts = mask_matrix(op, mask, arguments), mask_matrix(op, rebuilt, arguments)
    axes = sort_axes((*whole.axes, *parts.axes))
    expected, found = torch.broadcast_tensors(whole.aligned(axes).double(), parts.aligned(axes).double())
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", MASKS)
def test_parts_add_up_to_the_mask(name: str) -> None:
    agree(op_of(*MASKS[name][:2]))


@pytest.mark.parametrize("name", MASKS)
def test_form_and_facts(name: str) -> None:
    mask, params, streams, near, lower, upper, causal, toeplitz = MASKS[name]
    found = plan(op_of(mask, params))
    site = found.choices[-1].site
    assert len(site.decomposition.streams) == streams
    assert len(site.decomposition.near) == near
    assert (str(site.facts.lower_rank), str(site.facts.upper_rank)) == (lower, upper)
    assert site.facts.causal is causal
    assert site.facts.toeplitz is toeplitz


@pytest.mark.parametrize("name", library_names())
def test_library_masks_add_up(name: str) -> None:
    (op,) = check_file(library_source(name))
    for number in range(len(contractions(op))):
        agree(op, number)
