"""Expressions that would lose digits as they are written."""

from __future__ import annotations

import pytest
import torch

from sma_compiler.interface import library


@pytest.mark.parametrize("plan", ["chunked", "recurrent", "quadratic"])
def test_one_less_an_exponential_keeps_its_digits(plan: str) -> None:
    torch.manual_seed(0)
    q, v = torch.randn(1, 70, 2, 16), torch.randn(1, 70, 2, 16)
    g = (-1e-4 * torch.rand(1, 70, 2, 16)).requires_grad_()
    op = library("hgrn2")
    found, exact = op(q, v, g, plan=plan, backend="torch"), op.reference(q, v, g.double())
    assert (found - exact).norm() < 1e-6 * exact.norm()
    (slope,) = torch.autograd.grad(found.sum(), g)
    (wanted,) = torch.autograd.grad(exact.sum(), g)
    assert (slope - wanted).norm() < 1e-6 * wanted.norm()


def test_a_gate_that_cuts_has_no_gradient_there() -> None:
    q, v = torch.randn(1, 9, 1, 4), torch.randn(1, 9, 1, 4)
    g = -torch.rand(1, 9, 1, 4)
    g[:, 5] = -torch.inf
    g.requires_grad_()
    (slope,) = torch.autograd.grad(library("hgrn2")(q, v, g, plan="chunked", backend="torch").sum(), g)
    assert torch.isfinite(slope).all()
    assert (slope[:, 5] == 0).all()
