from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sma_compiler.ir.graph import Graph
from sma_compiler.ir.nodes import Expr, Kind, ParamDecl
from sma_compiler.source import NOWHERE
from sma_compiler.torch_plans.evaluate import Evaluator, bind_params
from sma_compiler.torch_plans.frame import Frame
from sma_compiler.torch_plans.named import Named

B, T, H, K = 2, 5, 4, 6
SIZES = {"batch": B, "time": T, "head": H, "key": K, "mode": 3}


def evaluator(dtype: torch.dtype = torch.float32, **params: Named | float) -> Evaluator:
    return Evaluator(params, SIZES, dtype)


def real(g: Graph, name: str, *axes: str) -> Expr:
    return g.param(name, Kind.REAL, axes, not axes)


def data(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_axes_broadcast_by_name() -> None:
    g = Graph()
    x, a = data(B, T, H, K), data(H)
    product = g.apply("mul", real(g, "x", "batch", "time", "head", "key"), real(g, "a", "head"))
    found = evaluator(x=Named(x, ("batch", "time", "head", "key")), a=Named(a, ("head",))).tensor(product)
    assert found.axes == ("batch", "time", "head", "key")
    torch.testing.assert_close(found.data, x * a[:, None])


def test_heads_of_a_group_repeat() -> None:
    dims = ("batch", "time", "head")
    params = [ParamDecl(name, Kind.REAL, False, dims, NOWHERE) for name in ("x", "y", "z")]
    x, y, z = data(B, T, 4), data(B, T, 2), data(B, T, 1)
    found = bind_params(params, {"x": x, "y": y, "z": z})
    assert torch.equal(found["y"].data, y[:, :, [0, 0, 1, 1]])
    assert torch.equal(found["z"].data, z[:, :, [0, 0, 0, 0]])


def test_dimensions_in_any_declared_order() -> None:
    params = [ParamDecl("x", Kind.REAL, False, ("batch", "key", "time"), NOWHERE)]
    x = data(B, K, T)
    found = bind_params(params, {"x": x})["x"]
    assert found.axes == ("batch", "time", "key")
    assert torch.equal(found.data, x.transpose(1, 2))


@pytest.mark.parametrize("fn", ["sum", "mean", "softmax"])
def test_reductions(fn: str) -> None:
    g = Graph()
    x = data(H, K)
    found = evaluator(x=Named(x, ("head", "key"))).tensor(g.reduce(fn, real(g, "x", "head", "key"), "key"))
    torch.testing.assert_close(found.data, getattr(torch, fn)(x, dim=1))


def test_reduction_of_a_missing_axis_counts_its_size() -> None:
    g = Graph()
    a = data(H)
    found = evaluator(a=Named(a, ("head",))).tensor(g.reduce("sum", real(g, "a", "head"), "key"))
    torch.testing.assert_close(found.data, K * a)


def test_integers_and_booleans() -> None:
    g = Graph()
    x = torch.tensor([-7, -1, 0, 5, 8])
    named = {"x": Named(x, ("head",))}
    p = g.param("x", Kind.INT, ("head",), False)
    three = g.const(3)
    assert evaluator(**named).tensor(g.apply("floordiv", p, three)).data.tolist() == [-3, -1, 0, 1, 2]
    assert evaluator(**named).tensor(g.apply("mod", p, three)).data.tolist() == [2, 2, 0, 2, 2]
    added = g.apply("add", g.apply("gt", p, g.const(0)), g.apply("lt", p, g.const(7)))
    assert evaluator(**named).tensor(added).data.tolist() == [1, 1, 1, 2, 1]
    assert evaluator(**named).tensor(g.apply("div", p, three)).data.dtype == torch.float32


def test_phases_are_reduced_before_they_are_rounded() -> None:
    g = Graph()
    w, n = real(g, "w"), g.param("n", Kind.INT, ("head",), False)
    phase = g.apply("sin", g.apply("mul", w, n))
    count = torch.tensor([10**6, 10**7 + 1])
    found = evaluator(w=0.7390851, n=Named(count, ("head",))).tensor(phase)
    expected = [math.sin(0.7390851 * value) for value in count.tolist()]
    assert found.data.dtype == torch.float32
    torch.testing.assert_close(found.data, torch.tensor(expected), rtol=0, atol=1e-6)


def test_rope_turns_pairs_and_leaves_the_rest() -> None:
    g = Graph()
    x, angle = data(B, T, H, K), data(B, T, 2) * 1000
    names = ("batch", "time", "head", "key")
    turned = g.rope(real(g, "x", *names), real(g, "angle", "batch", "time", "mode"))
    found = evaluator(x=Named(x, names), angle=Named(angle, ("batch", "time", "mode"))).tensor(turned)
    pairs = torch.view_as_complex(x[..., :4].reshape(B, T, H, 2, 2).double())
    expected = torch.view_as_real(pairs * torch.polar(torch.ones(()).double(), angle.double())[:, :, None])
    torch.testing.assert_close(found.data[..., :4], expected.flatten(-2).float())
    assert torch.equal(found.data[..., 4:], x[..., 4:])


def test_lag_table_is_zero_outside() -> None:
    g = Graph()
    table, at = data(3, H), torch.tensor([-1, 0, 2, 3])
    looked = g.lag(real(g, "c", "lag", "head"), g.param("n", Kind.INT, ("mode",), False))
    found = evaluator(c=Named(table, ("lag", "head")), n=Named(at, ("mode",))).tensor(looked)
    assert found.axes == ("head", "mode")
    expected = torch.stack([torch.zeros(H), table[0], table[2], torch.zeros(H)], 1)
    assert torch.equal(found.data, expected)


def test_lag_table_at_an_index_per_head() -> None:
    g = Graph()
    table, at = data(3, H), torch.tensor([-1, 0, 2, 3])
    looked = g.lag(real(g, "c", "lag", "head"), g.param("n", Kind.INT, ("head",), False))
    found = evaluator(c=Named(table, ("lag", "head")), n=Named(at, ("head",))).tensor(looked)
    assert torch.equal(found.data, torch.stack([torch.zeros(()), table[0, 1], table[2, 2], torch.zeros(())]))


RISKY = {
    "log": lambda g, x, y: g.apply("log", x),
    "sqrt": lambda g, x, y: g.apply("sqrt", x),
    "divide": lambda g, x, y: g.apply("div", y, x),
    "overflow": lambda g, x, y: g.apply("exp", g.apply("div", y, x)),
    "product": lambda g, x, y: g.apply("mul", y, g.apply("log", x)),
    "power": lambda g, x, y: g.apply("pow", x, g.const(-1.5)),
    "sum": lambda g, x, y: g.reduce("sum", g.apply("mul", y, g.apply("log", x)), "mode"),
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", RISKY)
def test_what_is_selected_away_has_no_gradient(name: str, nested: bool) -> None:
    g = Graph()
    on = g.param("on", Kind.BOOL, ("head",), False)
    x, y = real(g, "x", "head"), real(g, "y", "head")
    inner = RISKY[name](g, x, y)
    chain = g.apply("mul", on, y) if nested else on
    product = g.apply("mul", chain, inner)
    held = torch.tensor([True, False])
    x_data = torch.tensor([2.0, 0.0], requires_grad=True)
    y_data = torch.tensor([3.0, 4.0], requires_grad=True)
    params = {"x": Named(x_data, ("head",)), "y": Named(y_data, ("head",)), "on": Named(held, ("head",))}
    found = evaluator(**params).tensor(product).data
    assert found[1] == 0
    assert found[0] != 0
    found.sum().backward()
    for grad in (x_data.grad, y_data.grad):
        assert grad is None or (grad[1] == 0 and grad.isfinite().all())
    assert x_data.grad is not None
    assert x_data.grad[0] != 0


def test_where_keeps_the_gradients_of_its_branches_apart() -> None:
    g = Graph()
    x = real(g, "x", "head")
    chosen = g.apply("where", g.apply("gt", x, g.const(0)), g.apply("log", x), g.apply("sqrt", g.apply("neg", x)))
    data = torch.tensor([2.0, -4.0], requires_grad=True)
    found = evaluator(x=Named(data, ("head",))).tensor(chosen).data
    torch.testing.assert_close(found.detach(), torch.tensor([math.log(2), 2.0]))
    found.sum().backward()
    assert data.grad is not None
    torch.testing.assert_close(data.grad, torch.tensor([0.5, -0.25]))


def test_factors_along_a_position() -> None:
    g = Graph()
    x = data(B, T)
    factor = g.apply("mul", g.at(real(g, "x", "batch", "time"), "j"), g.position("j"))
    found = evaluator(x=Named(x, ("batch", "time")))
    dtype, device = torch.float32, torch.device("cpu")
    frame = Frame(
        batch=B,
        length=T,
        start=torch.tensor([0, 7]),
        lengths=None,
        compute=dtype,
        operand=dtype,
        device=device,
        evaluate=found,
    )
    torch.testing.assert_close(frame.along(factor).data, x * (torch.arange(T) + torch.tensor([[0], [7]])))


def test_static_integers() -> None:
    g = Graph()
    w = g.param("w", Kind.INT, (), True)
    bound = g.apply("max", g.apply("sub", w, g.const(1)), g.apply("mul", g.size("key"), g.const(2)))
    assert evaluator(w=4).static_int(bound) == 2 * K
    for fn in ("floordiv", "mod"):
        assert evaluator(w=0).static_int(g.apply(fn, g.const(8), w)) == 0


def test_long_chains_do_not_recurse() -> None:
    g = Graph()
    total = x = real(g, "x", "head")
    for _ in range(3000):
        total = g.apply("add", total, x)
    found = evaluator(x=Named(torch.ones(H), ("head",))).tensor(total)
    assert found.data.tolist() == [3001.0] * H


def test_functional_transforms() -> None:
    g = Graph()
    x, on = real(g, "x", "head"), g.param("on", Kind.BOOL, ("head",), False)
    product = g.apply("mul", on, g.apply("log", x))
    held = Named(torch.tensor([True, False]), ("head",))

    def total(data: Tensor) -> Tensor:
        return Evaluator({"x": Named(data, ("head",)), "on": held}, SIZES, torch.float32).tensor(product).data.sum()

    assert torch.func.grad(total)(torch.tensor([2.0, 0.0])).tolist() == [0.5, 0.0]
    rows = torch.func.vmap(torch.func.grad(total))(torch.tensor([[2.0, 0.0], [4.0, 1.0]]))
    assert rows.tolist() == [[0.5, 0.0], [0.25, 0.0]]
