"""States across windows of other widths: what a state has forgotten is missed, never silently left out."""

from __future__ import annotations

import pytest
import torch

import sma_compiler as sma
from sma_compiler.call_errors import ForgottenPositions

OP = sma.library("sliding_window")
Q, K, V = torch.randn(3, 2, 12, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind()


def call(start: int, stop: int, w: int, state: sma.State | None = None) -> tuple[torch.Tensor, sma.State]:
    q, k, v = (x[:, start:stop] for x in (Q, K, V))
    found: tuple[torch.Tensor, sma.State] = OP(q, k, v, w=w, initial_state=state, return_state=True)
    return found


def test_a_wider_window_needs_positions_that_are_gone() -> None:
    _, state = call(0, 6, 2)
    with pytest.raises(
        ForgottenPositions, match=r"reads 4 earlier positions of 'attend0.cache', but the state keeps 1:"
    ):
        call(6, 12, 5, state)
    with pytest.raises(ForgottenPositions):
        OP.step(Q[:, 6], K[:, 6], V[:, 6], w=3, state=state)
    _, narrowed = call(6, 8, 2, call(0, 6, 5)[1])
    with pytest.raises(ForgottenPositions):
        call(8, 12, 5, narrowed)


def test_one_row_of_a_pack_lacks_positions() -> None:
    row = [x[:1] for x in (Q, K, V)]
    bounds = torch.tensor([0, 1, 12])
    _, state = OP(*row, w=2, cu_seqlens=bounds, return_state=True)
    OP(*row, w=2, cu_seqlens=bounds, initial_state=state)
    with pytest.raises(ForgottenPositions):
        OP(*row, w=3, cu_seqlens=bounds, initial_state=state)


def test_a_narrower_window_or_a_short_past_is_fine() -> None:
    whole = OP(Q, K, V, w=3)
    rest, _ = call(6, 12, 3, call(0, 6, 5)[1])
    torch.testing.assert_close(rest, whole[:, 6:])
    rest, _ = call(1, 12, 3, call(0, 1, 2)[1])  # one position is all there was
    torch.testing.assert_close(rest, whole[:, 1:])


def test_an_empty_state_of_no_width_takes_any() -> None:
    for capacity in (None, 8):
        state = OP.empty_state(2, capacity, dtype=torch.float64, head=2, key=4, value=4)
        found, _ = call(0, 12, 5, state)
        torch.testing.assert_close(found, OP(Q, K, V, w=5))
    state = OP.empty_state(2, 8, dtype=torch.float64, head=2, key=4, value=4)
    whole = OP(Q, K, V, w=5)
    for position in range(12):
        at = (x[:, position] for x in (Q, K, V))
        found, state = OP.step(*at, w=5, state=state, inplace=True)
        torch.testing.assert_close(found, whole[:, position])


def test_a_width_for_each_head() -> None:
    """A bound that is a tensor selects pairs; it is no band."""
    text = (
        "op f(q, k, v, w: int[head]):\n    return attend(window(w), q, k, v, normalize=softmax, scale=1 / sqrt(key))\n"
    )
    op, widths = sma.compile(text), torch.tensor([2, 5])
    whole, last = op(Q, K, V, widths, return_state=True)
    for head, width in enumerate(widths.tolist()):
        alone = OP(*(x[:, :, head : head + 1] for x in (Q, K, V)), w=width)
        torch.testing.assert_close(whole[:, :, head : head + 1], alone)
    _, state = op(*(x[:, :7] for x in (Q, K, V)), widths, return_state=True)
    for position in range(7, 12):
        found, state = op.step(*(x[:, position] for x in (Q, K, V)), widths, state=state)
        torch.testing.assert_close(found, whole[:, position])
    torch.testing.assert_close(dict(state), dict(last))


def test_an_integer_divided_by_zero_is_zero_everywhere() -> None:
    x, n = torch.tensor([[7, 7, -7]]), torch.tensor([[0, 2, 2]])
    op = sma.compile("op f(x: int[time], n: int[time]):\n    return 10 * (x // n) + x % n\n")
    assert op(x, n).tolist() == op.reference(x, n).tolist() == [[0, 31, -39]]
