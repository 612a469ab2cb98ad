"""Derived gradients against autograd, in fp64, and that they keep torch's conventions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sma_compiler.ir.graph import Graph, sort_axes
from sma_compiler.ir.nodes import Apply, Const, Expr, Kind, Param, Reduce, Size, postorder
from sma_compiler.kernel.derive import RULES, gradients
from sma_compiler.kernel.linear import FUNCTIONS
from sma_compiler.oracle.values import DTYPES, Value, apply, named, reduce, union
from sma_compiler.oracle.values import FUNCTIONS as REAL

SIZES = {"batch": 2, "time": 5, "head": 3, "key": 4, "value": 2}
AXES = ("batch", "time", "head", "key")
PLAIN: dict[str, Callable[..., Tensor]] = {
    **REAL,
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "neg": torch.neg,
    "abs": torch.abs,
    "min": torch.minimum,
    "max": torch.maximum,
}
"""The functions with the gradients that torch gives them."""
EXTREME = [0.0, -0.0, 1.0, -1.0, 1e-30, -1e-30, 30.0, -30.0, 700.0, -700.0, 1e30, -1e30]


def gelu_slope(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def value_of(root: Expr, leaves: Mapping[Expr, Value], plain: bool = False) -> Value:
    """An expression in fp64. plain: with torch's own gradients, that do not absorb zeros."""
    done = dict(leaves)
    for node in postorder((root,)):
        if node in done:
            continue
        match node:
            case Const(value=number):
                done[node] = Value(torch.tensor(number, dtype=DTYPES[node.kind]), ())
            case Size(axis=axis):
                done[node] = Value(torch.tensor(SIZES[axis]), ())
            case Reduce(fn=fn, x=x, axis=axis):
                done[node] = reduce(fn, done[x], axis)
            case Apply(fn="gelu_slope", args=(x,)):
                done[node] = done[x].map(gelu_slope)
            case Apply(fn=fn, args=args) if plain and fn in PLAIN:
                axes = union(done[arg] for arg in args)
                done[node] = Value(PLAIN[fn](*(done[arg].to(Kind.REAL).aligned(axes) for arg in args)), axes)
            case Apply(args=args):
                done[node] = apply(node, [done[arg] for arg in args])
    return done[root]


def compare(graph: Graph, result: Expr, leaves: Mapping[Param, Tensor], plain: bool = False) -> None:
    """The derived gradient of sum(result * c) against autograd's; NaN only where autograd has it."""
    given = {leaf: x.clone().requires_grad_() for leaf, x in leaves.items()}
    values = {leaf: named(x, leaf.axes) for leaf, x in given.items()}
    y = value_of(result, values, plain)
    cotangent = graph.param("dy", Kind.REAL, result.axes, False)
    dy = torch.linspace(-1, 2, y.data.numel(), dtype=torch.float64).reshape(y.data.shape)
    if not y.data.requires_grad:
        assert not gradients(graph, [(result, cotangent)], leaves)
        return
    expected = torch.autograd.grad(y.data, list(given.values()), dy, allow_unused=True, materialize_grads=True)
    fixed = {leaf: named(x, leaf.axes) for leaf, x in leaves.items()}
    found = gradients(graph, [(result, cotangent)], leaves)
    for leaf, want in zip(leaves, expected, strict=True):
        if leaf not in found:
            assert not want.any()
            continue
        got = value_of(found[leaf], {**fixed, cotangent: named(dy, result.axes)})
        assert set(got.axes) <= set(AXES)
        kept = sort_axes((*leaf.axes, *got.axes))
        whole = got.expanded({axis: SIZES[axis] for axis in kept}).data
        over = [n for n, axis in enumerate(kept) if axis not in leaf.axes]
        whole = whole.sum(over) if over else whole
        torch.testing.assert_close(whole, want, rtol=1e-12, atol=1e-12, equal_nan=True)


def tensor(graph: Graph, name: str, axes: tuple[str, ...]) -> Param:
    return graph.param(name, Kind.REAL, axes, False)


def draw(axes: tuple[str, ...], seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn([SIZES[axis] for axis in axes], dtype=torch.float64, generator=generator)


UNARY = ("neg", "abs", "exp", "log", "log2", "sqrt", "relu", "silu", "sigmoid", "logsigmoid", "softplus", "tanh", "elu")


def test_every_function_of_kernels_has_a_rule() -> None:
    assert set(RULES) == FUNCTIONS - {"lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not"}


@pytest.mark.parametrize("fn", [*UNARY, "gelu"])
@pytest.mark.parametrize("points", ["random", "extreme"])
def test_functions_of_one_argument(fn: str, points: str) -> None:
    graph = Graph()
    x = tensor(graph, "x", ("time", "key") if points == "random" else ("mode",))
    at = draw(x.axes, 1, 2.0) if points == "random" else torch.tensor(EXTREME, dtype=torch.float64)
    if fn in ("log", "log2", "sqrt"):
        at = at.abs()
    if points == "random":
        compare(graph, graph.apply(fn, x), {x: at}, plain=True)
        return
    dy = tensor(graph, "dy", ("mode",))
    (found,) = gradients(graph, [(graph.apply(fn, x), dy)], [x]).values()
    ones = torch.ones_like(at)
    got = value_of(found, {x: named(at, x.axes), dy: named(ones, x.axes)}).data
    leaf = at.clone().requires_grad_()
    (want,) = torch.autograd.grad(PLAIN[fn](leaf), leaf, ones)
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("fn", ["add", "sub", "mul", "div", "pow", "min", "max"])
def test_functions_of_two_arguments(fn: str) -> None:
    graph = Graph()
    a, b = tensor(graph, "a", ("time", "key")), tensor(graph, "b", ("head", "key"))
    left, right = draw(a.axes, 1), draw(b.axes, 2)
    if fn == "pow":
        left = left.abs()
    if fn in ("min", "max"):
        left, right = left.round(), right.round()
    compare(graph, graph.apply(fn, a, b), {a: left, b: right}, plain=True)


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 4, -1, -2])
def test_literal_exponents_take_any_base(exponent: int) -> None:
    graph = Graph()
    a = tensor(graph, "a", ("time", "key"))
    compare(graph, graph.apply("pow", a, graph.const(exponent)), {a: draw(a.axes, 1)}, plain=True)


def test_an_exponent_at_a_base_of_zero() -> None:
    graph = Graph()
    a, b = tensor(graph, "a", ("key",)), tensor(graph, "b", ("key",))
    base = torch.tensor([0.0, 0.0, 0.0, 2.0], dtype=torch.float64)
    exponent = torch.tensor([0.0, 2.0, 3.0, 0.0], dtype=torch.float64)
    compare(graph, graph.apply("pow", a, b), {a: base, b: exponent}, plain=True)


@pytest.mark.parametrize("fn", ["log", "sqrt", "div", "exp", "pow", "log2"])
def test_a_selection_hides_infinite_slopes(fn: str) -> None:
    graph = Graph()
    x = tensor(graph, "x", ("key",))
    hidden = {
        "div": lambda: graph.apply("div", graph.const(1.0), x),
        "pow": lambda: graph.apply("pow", x, graph.const(0.5)),
        "exp": lambda: graph.apply("exp", graph.apply("div", graph.const(800.0), x)),
    }
    inner = hidden[fn]() if fn in hidden else graph.apply(fn, x)
    at = torch.tensor([0.0, 2.0, 3.0, 5000.0], dtype=torch.float64)
    condition = graph.apply("gt", x, graph.const(1000.0))
    compare(graph, graph.apply("where", condition, inner, graph.const(2.0)), {x: at})
    compare(graph, graph.apply("mul", condition, inner), {x: at})


def test_a_cut_output_hides_infinite_slopes() -> None:
    graph = Graph()
    x, d = tensor(graph, "x", ("key",)), tensor(graph, "d", ("key",))
    log = graph.apply("log", x)
    (found,) = gradients(graph, [(log, d)], [x], cut=[log]).values()
    at = {x: torch.tensor([0.0, 2.0, 0.0, 1.0]), d: torch.tensor([0.0, 1.0, 0.0, 3.0])}
    got = value_of(found, {leaf: named(value.double(), leaf.axes) for leaf, value in at.items()})
    assert got.data.tolist() == [0.0, 0.5, 0.0, 3.0]


@pytest.mark.parametrize("fn", ["sum", "mean"])
def test_reductions(fn: str) -> None:
    graph = Graph()
    x, w = tensor(graph, "x", ("batch", "time", "head", "key")), tensor(graph, "w", ("key",))
    norm = graph.reduce(fn, graph.apply("mul", x, x), "key")
    result = graph.apply("mul", w, graph.apply("div", x, graph.apply("sqrt", norm)))
    compare(graph, result, {x: draw(x.axes, 1), w: draw(w.axes, 2)})


def test_positions_are_dropped() -> None:
    graph = Graph()
    c, d = tensor(graph, "c", ("batch", "time")), tensor(graph, "d", ("batch", "time"))
    (found,) = gradients(graph, [(graph.apply("exp", graph.at(c, "i")), d)], [c]).values()
    assert found is graph.apply("mul", d, graph.apply("exp", c))


def test_leaves_that_nothing_depends_on_are_left_out() -> None:
    graph = Graph()
    x, y, d = (tensor(graph, name, ("time",)) for name in "xyd")
    assert gradients(graph, [(graph.apply("where", graph.apply("gt", y, x), x, x), d)], [y]) == {}


def test_a_sum_hands_its_cotangent_to_every_index() -> None:
    graph = Graph()
    x, s = tensor(graph, "x", ("time", "key")), tensor(graph, "s", ("time",))
    inner = graph.apply("add", graph.apply("mul", x, x), graph.apply("exp", s))
    for fn in ("sum", "mean"):
        compare(graph, graph.reduce(fn, inner, "key"), {x: draw(x.axes, 1), s: draw(s.axes, 2)})


@st.composite
def expressions(draw_: st.DrawFn) -> tuple[Graph, Expr, dict[Param, int]]:
    """A random expression of a few tensors, finite at standard normal values."""
    graph = Graph()
    leaves = [tensor(graph, "x", ("batch", "time", "head", "key")), tensor(graph, "s", ("head",))]
    leaves += [tensor(graph, "g", ("batch", "time", "head")), tensor(graph, "w", ("key",))]
    pool: list[Expr] = [*leaves, graph.const(0.5)]
    for _ in range(draw_(st.integers(1, 8))):
        fn = draw_(st.sampled_from(["add", "sub", "mul", "min", "max", "where", "mask", "sum", "mean", *SAFE]))
        a, b = draw_(st.sampled_from(pool)), draw_(st.sampled_from(pool))
        condition = graph.apply("lt", a, b)
        if fn in ("sum", "mean"):
            if "key" not in a.axes:
                continue
            pool.append(graph.reduce(fn, a, "key"))
        elif fn == "where":
            pool.append(graph.apply("where", condition, draw_(st.sampled_from(pool)), b))
        elif fn == "mask":
            pool.append(graph.apply("mul", condition, a))
        elif fn in SAFE:
            pool.append(graph.apply(fn, a))
        else:
            pool.append(graph.apply(fn, a, b))
    return graph, pool[-1], {leaf: n for n, leaf in enumerate(leaves)}


SAFE = ("neg", "abs", "relu", "silu", "sigmoid", "logsigmoid", "softplus", "tanh", "elu", "gelu")


@settings(max_examples=60, deadline=None)
@given(expressions())
def test_random_expressions(case: tuple[Graph, Expr, dict[Param, int]]) -> None:
    graph, result, leaves = case
    if result.kind is Kind.REAL and any(leaf in postorder((result,)) for leaf in leaves):
        compare(graph, result, {leaf: draw(leaf.axes, seed) for leaf, seed in leaves.items()})
