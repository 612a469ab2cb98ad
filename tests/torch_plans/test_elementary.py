from __future__ import annotations

import pytest
import torch

from sma_compiler.ir.graph import Graph
from sma_compiler.ir.nodes import MaskTimes, postorder
from sma_compiler.mask.elementary import Shift, Sum, elementary
from sma_compiler.reference import evaluate
from tests.torch_plans.calls import between, make_arguments, make_op, run

MASKS = {
    "i - j == 1": Shift(1),
    "j - i == 1": Shift(-1),
    "i == j": Shift(0),
    "i == j + 3": Shift(3),
    "2 <= i - j < 3": Shift(2),
    "(i >= j) * (i <= j)": Shift(0),
    "causal": Sum(0, False),
    "strict": Sum(1, False),
    "j < i": Sum(1, False),
    "i <= j": Sum(0, True),
    "i - j < 0": Sum(-1, True),
    "i - j >= 2": None,
    "full": None,
    "i >= 3": None,
    "i + j == 3": None,
    "2 * causal": None,
    "i - j != 1": None,
    "band(0, 1)": None,
    "strict * (i % 2 == 0)": None,
}


def times(mask: str, kind: str) -> MaskTimes:
    op = make_op(f"x: {kind}[time, head]", f"return ({mask}) @ x")
    (node,) = (node for node in postorder((op.result,)) if isinstance(node, MaskTimes))
    return node


@pytest.mark.parametrize("mask", MASKS)
def test_what_is_elementary(mask: str) -> None:
    node = times(mask, "real")
    assert elementary(Graph.of(node), node) == MASKS[mask]


ELEMENTARY = [mask for mask, what in MASKS.items() if what is not None]


@pytest.mark.parametrize("kind", ["real", "int", "bool"])
@pytest.mark.parametrize("mask", ELEMENTARY)
def test_against_the_reference(mask: str, kind: str) -> None:
    op = make_op(f"x: {kind}[time, head]", f"return ({mask}) @ x + 0 * x")
    for length in (0, 1, 2, 23):
        arguments = make_arguments(op, time=length)
        found, expected = run(op, arguments).result, evaluate(op, arguments)
        torch.testing.assert_close(found.to(expected.dtype), expected.to(found.dtype).to(expected.dtype))


@pytest.mark.parametrize("mask", ELEMENTARY)
def test_rows_of_different_lengths(mask: str) -> None:
    op = make_op("x: [time, head]", f"return ({mask}) @ x")
    arguments = make_arguments(op)
    found = run(op, arguments, lengths=torch.tensor([5, 0])).result
    expected = evaluate(op, between(op, arguments, 0, 5))
    torch.testing.assert_close(found[0, :5].double(), expected[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mask", ["i - j == 1", "i - j == 3", "causal", "strict"])
def test_states(mask: str) -> None:
    op = make_op("x: [time, head]", f"return ({mask}) @ x")
    arguments = make_arguments(op)
    whole = run(op, arguments).result
    first = run(op, between(op, arguments, 0, 9), lengths=torch.tensor([9, 2]), want_state=True)
    assert first.state is not None
    assert first.state["position"].tolist() == [9, 2]
    second = run(op, between(op, arguments, 9, 23), state=first.state)
    torch.testing.assert_close(second.result[0], whole[0, 9:])
    later = run(op, between(op, arguments, 2, 16), state=first.state)
    torch.testing.assert_close(later.result[1], whole[1, 2:16])


def test_phases_are_summed_in_fp64() -> None:
    op = make_op("x: [time]", "return cos(cumsum(x))")
    x = torch.full((1, 20000), 0.7390851)
    torch.testing.assert_close(run(op, {"x": x}).result.double(), evaluate(op, {"x": x}), rtol=0, atol=1e-6)


def test_infinite_sums_stay_infinite() -> None:
    op = make_op("x: [time]", "return strict @ x")
    x = torch.tensor([[1.0, -torch.inf, 2.0, 3.0]])
    assert run(op, {"x": x}).result.tolist() == [[0, 1, -torch.inf, -torch.inf]]
