from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from sma_compiler.ir.nodes import Attend, Expr
from sma_compiler.oracle.values import Value, named
from sma_compiler.reference import mask_matrix
from sma_compiler.torch_plans.evaluate import Evaluator
from sma_compiler.torch_plans.named import Named
from sma_compiler.torch_plans.pairs import Line, Offsets, Pairs, Points, Run, Sums, bit_length, fresh_line
from tests.torch_plans.calls import bind_elementary, contractions, make_arguments, make_frame, make_op

MASKS = {
    "causal": "causal",
    "window": "window(w)",
    "prefix": "prefix(w)",
    "documents": "causal * documents(doc)",
    "same_document": "causal * (doc[i] == doc[j])",
    "returning": "(doc[i] == doc[j]) * 1",
    "decay": "decay(g)",
    "decay_per_key": "decay(gk)",
    "retention": "causal * exp(gs) ** (i - j)",
    "alibi": "alibi(s * s)",
    "open_both": "causal * exp(sum(g[t], j < t < i))",
    "closed_both": "causal * exp(sum(g[t], j <= t <= i))",
    "closed_start": "causal * exp(sum(g[t], j <= t < i))",
    "upward": "(i <= j) * exp(sum(g[t], i < t <= j))",
    "upward_open": "(i <= j) * exp(sum(g[t], i < t < j))",
    "static_path": "causal * exp(sum(gs, j < t <= i))",
    "position_path": "causal * exp(sum(g[t] * t / 9, j < t <= i))",
    "integer_path": "causal * sum(doc[t], j < t <= i)",
    "chain": "strict * s * g[j] * exp(sum(g[t], j < t <= i)) / (1 + g[i] * g[i])",
    "table": "c[i - j]",
    "table_two_sided": "c[i - j + 2] + c[2 - (i - j)]",
    "modes": "causal * sum(exp(gm * (i - j)) * cos(m * (i - j)), mode)",
    "semiseparable": "semiseparable(x, g, y)",
    "product": "decay(g) @ (c[i - j] * 1)",
    "chain_product": "strict @ decay(g) @ (strict + strict @ causal)",
    "transposed": "transpose(decay(g) @ strict)",
    "levels": "levels(lev)",
    "levels_transposed": "transpose(levels(lev))",
    "level_decay": "decay(g) * levels(lev)",
    "where": "where(i - j > 3, exp(g[i]), causal * 2)",
    "two_sided": "exp(gs * abs(i - j))",
    "modulus": "(i % w == j % w) * (i // w - j // w)",
    "selected_tensor": "causal * (on * exp(g))[j]",
}
PARAMETERS = {
    "doc": "int[time]",
    "on": "bool[time]",
    "x": "[time, head, key]",
    "y": "[time, head, key]",
    "g": "[time, head]",
    "gk": "[time, head, key]",
    "gs": "[head]",
    "gm": "[head, mode]",
    "s": "[head]",
    "m": "[head, mode]",
    "c": "[lag, head]",
    "lev": "[time, head, level]",
    "w": "int",
}


def setting(mask: str, **sizes: int) -> tuple[Expr, Evaluator, Line, Value]:
    """A mask, what evaluates it, its line, and its values by the reference."""
    used = [f", {name}: {kind}" for name, kind in PARAMETERS.items() if re.search(rf"\b{name}\b", mask)]
    op = make_op("q, k, v" + "".join(used), f"return attend({mask}, q, k, v)")
    arguments = make_arguments(op, w=5, **sizes)
    (node,) = (one for one in contractions(op) if isinstance(one, Attend))
    evaluator, frame = make_frame(op, arguments)
    bind_elementary(op, evaluator, frame)
    return node.mask, evaluator, fresh_line(frame), mask_matrix(op, node.mask, arguments)


def pairs_of(evaluator: Evaluator, line: Line, rows: Points, columns: Points) -> Pairs:
    return Pairs(evaluator, line, rows, columns, Sums(evaluator, line))


def same(found: Named, expected: Value) -> None:
    """Equal up to rounding, zeros exactly."""
    axes = expected.axes
    data = found.view(axes).expand(expected.data.shape).double()
    assert torch.equal(data == 0, expected.data == 0)
    torch.testing.assert_close(data, expected.data.double(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_every_pair(mask: str) -> None:
    expr, evaluator, line, expected = setting(mask)
    every = line.length
    same(pairs_of(evaluator, line, Run("i", 0, every), Run("j", 0, every)).mask(expr), expected)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_some_rows_and_columns(mask: str) -> None:
    expr, evaluator, line, expected = setting(mask)
    found = pairs_of(evaluator, line, Run("i", 9, 14), Run("j", 4, 12)).mask(expr)
    i, j = expected.axes.index("i"), expected.axes.index("j")
    same(found, Value(expected.data.narrow(i, 9, 5).narrow(j, 4, 8), expected.axes))


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_diagonals(mask: str) -> None:
    expr, evaluator, line, expected = setting(mask)
    every, lo, hi = line.length, -2, 3
    found = pairs_of(evaluator, line, Run("i", 0, every), Offsets("i", "j", 0, every, lo, hi)).mask(expr)
    rows = torch.arange(every)[:, None]
    columns = rows - hi + torch.arange(hi - lo + 1)
    inside = (columns >= 0) & (columns < every)
    rest = tuple(axis for axis in expected.axes if axis not in "ij")
    ordered = expected.aligned((*rest, "i", "j"))
    picked = torch.where(inside, ordered[..., rows, columns.clamp(0, every - 1)], 0)
    same(found, named(picked, (*rest, "i", "j")))


POSITIVE = [name for name in MASKS if name not in ("chain", "table", "table_two_sided", "modes", "semiseparable")]
POSITIVE = [
    name for name in POSITIVE if name not in ("product", "levels", "levels_transposed", "level_decay", "modulus")
]


@pytest.mark.parametrize("name", POSITIVE)
def test_logarithms(name: str) -> None:
    expr, evaluator, line, expected = setting(MASKS[name])
    every = line.length
    found = pairs_of(evaluator, line, Run("i", 0, every), Run("j", 0, every)).log_mask(expr)
    same(Named(found.data.exp(), found.axes), expected)


def test_logarithms_do_not_underflow() -> None:
    expr, evaluator, line, _ = setting("causal * (exp(-99 * (i - j)) + exp(-98 * (i - j))) * sigmoid(-200 + s * 0)")
    found = pairs_of(evaluator, line, Run("i", 0, line.length), Run("j", 0, line.length)).log_mask(expr)
    i, j = torch.arange(line.length)[:, None], torch.arange(line.length)
    expected = torch.logaddexp(-99.0 * (i - j), -98.0 * (i - j)) - 200
    expected = torch.where(i >= j, expected, -torch.inf)
    torch.testing.assert_close(found.view(("head", "i", "j"))[0], expected)


@pytest.mark.parametrize("ends", ["j < t <= i", "j <= t <= i", "j < t < i", "j <= t < i"])
def test_infinite_gates_cut(ends: str) -> None:
    op = make_op("q, k, v, g: [time, head]", f"return attend(causal * exp(sum(g[t], {ends})), q, k, v)")
    arguments = make_arguments(op)
    gates = arguments["g"]
    assert isinstance(gates, torch.Tensor)
    gates[:, [0, 4, 11, 12]] = -torch.inf
    gates[:, 17] = -1e3
    gates.requires_grad_()
    (node,) = contractions(op)
    evaluator, frame = make_frame(op, arguments)
    line = fresh_line(frame)
    found = pairs_of(evaluator, line, Run("i", 0, line.length), Run("j", 0, line.length)).mask(node.mask)
    same(Named(found.data.detach(), found.axes), mask_matrix(op, node.mask, arguments))
    found.data.sum().backward()
    assert gates.grad is not None
    assert gates.grad.isfinite().all()


def test_boolean_masks_stay_boolean_past_the_end_of_a_row() -> None:
    op = make_op("q, k, v, on: bool[time]", "return attend(causal * on[j], q, k, v)")
    arguments = make_arguments(op)
    (node,) = contractions(op)
    evaluator, frame = make_frame(op, arguments)
    line = fresh_line(replace(frame, lengths=torch.tensor([23, 4])))
    found = pairs_of(evaluator, line, Run("i", 0, 23), Run("j", 0, 23)).mask(node.mask)
    assert found.data.dtype == torch.bool
    assert not found.view(("batch", "i", "j"))[1, :, 4:].any()


def test_bit_length() -> None:
    x = torch.tensor([0, 1, 2, 3, 4, 7, 8, 2**40 - 1, 2**40])
    assert bit_length(x, 41).tolist() == [int(value).bit_length() for value in x.tolist()]
    assert bit_length(x, 3).tolist() == [min(int(value).bit_length(), 3) for value in x.tolist()]
