"""What checked specs mean."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from sma_compiler.ir.check import check_file
from sma_compiler.ir.nodes import (
    Apply,
    Attend,
    Const,
    Expr,
    Kind,
    MaskProduct,
    MaskTimes,
    Op,
    Param,
    PathSum,
    postorder,
)
from sma_compiler.ir.show import show_expr
from sma_compiler.source import Source
from sma_compiler.syntax.locate import library_names, library_source

Q, K, V = "q: time head key", "k: time head key", "v: time head value"
G, GK = "g: time head", "g: time head key"

LIBRARY = {
    "attention": [Q, K, V],
    "alibi": [Q, K, V, "slope: head"],
    "sliding_window": [Q, K, V, "w int"],
    "document": [Q, K, V, "doc int: time"],
    "prefix_lm": [Q, K, V, "n int"],
    "forgetting": [Q, K, V, "f: time head"],
    "linear_attention": [Q, K, V],
    "linear_attention_normalized": [Q, K, V],
    "linear_attention_full": [Q, K, V],
    "retention": [Q, K, V, "gamma: head"],
    "lightning": [Q, K, V, "s: head"],
    "simple_gla": [Q, K, V, G],
    "gla": [Q, K, V, GK],
    "hgrn2": [Q, V, GK],
    "mamba2": [Q, K, V, "dt: time head", "a: head", "bias: head", "d: head"],
    "mamba1": ["q: time key", "k: time key", "v: time head", "dt: time head", "a: head key", "d: head"],
    "rwkv4": ["k: time head", "v: time head", "w: head", "u: head"],
    "rwkv6": [Q, K, V, "w: time head key", "u: head key"],
    "mamba3": [
        *(Q, K, V, "adt: time head", "dt: time head", "trap: time head", "qb: head key", "kb: head key"),
        *("angle: time head mode", "d: head"),
    ],
    "hydra": [
        *(Q, K, V, "dt: time head", "q2: time head key", "k2: time head key", "dt2: time head", "a: head"),
        "d: time head",
    ],
    "s4d": ["v: time head", "a: head mode", "w: head mode", "cr: head mode", "ci: head mode", "d: head"],
    "h3": [Q, K, V, "s: lag head key", "c: head mode", "a: head mode", "w: head mode"],
    "hyena": [V, "x0: time head value", "x1: time head value", "c: lag head value", "b: head value"],
    "log_linear": [Q, K, V, G, "w: time head level"],
    "delta_net": [Q, K, V, "beta: time head"],
    "gated_delta_net": [Q, K, V, G, "beta: time head"],
    "kda": [Q, K, V, GK, "beta: time head"],
    "rwkv7": [Q, K, V, "w: time head key", "a: time head key", "b: time head key"],
}
"""Every op that ships and its parameters; a kind stands where it is not real, a number has no axes."""


def check(text: str) -> Op:
    (op,) = check_file(Source(text))
    return op


def result(params: str, *lines: str, defs: str = "") -> Expr:
    """What an op with these parameters and statements returns."""
    body = "".join(f"    {line}\n" for line in lines)
    return check(f"{defs}op f({params}):\n{body}").result


def text(params: str, *lines: str, defs: str = "") -> str:
    return show_expr(result(params, *lines, defs=defs))


def test_the_library_is_complete() -> None:
    assert set(library_names()) == set(LIBRARY)


@pytest.mark.parametrize("name", LIBRARY)
def test_library(name: str) -> None:
    (op,) = check_file(library_source(name))
    assert op.name == name
    assert op.doc
    assert op.text.startswith(f"op {name}(")
    found = []
    for param in op.params:
        kind = f" {param.kind.name.lower()}" if param.kind is not Kind.REAL else ""
        axes = f": {' '.join(axis for axis in param.dims if axis != 'batch')}" if param.dims else ""
        found.append(f"{param.name}{kind}{axes}")
        assert param.number == (not param.dims)
        assert ("batch" in param.dims) == ("time" in param.dims)
    assert found == LIBRARY[name]
    assert op.result.axes[:2] == ("batch", "time")
    assert "key" not in op.result.axes
    assert not op.result.positions


@pytest.mark.parametrize("name", LIBRARY)
def test_library_is_fast(name: str) -> None:
    source = library_source(name)
    best = 1.0
    for _ in range(5):
        started = time.process_time()
        check_file(source)
        best = min(best, time.process_time() - started)
    assert best < 0.010


@pytest.mark.parametrize("name", LIBRARY)
def test_results_print_as_specs(name: str) -> None:
    (op,) = check_file(library_source(name))
    shown = show_expr(op.result)
    header = op.text[: op.text.index("):") + 2]
    assert show_expr(check(f"{header}\n    return {shown}\n").result) == shown


RUN = "((i >= j) @ (doc != (i - j == 1) @ doc))"


@pytest.mark.parametrize(
    ("call", "meaning"),
    [
        ("causal", "i >= j"),
        ("strict", "i > j"),
        ("full", "i == i"),
        ("window(n)", "0 <= i - j < n"),
        ("band(0, n)", "0 <= i - j <= n"),
        ("prefix(n)", "i >= j or j < n"),
        ("decay(g)", "(i >= j) * exp(sum(g[t], j < t <= i))"),
        ("decay(a)", "(i >= j) * exp(sum(a, j < t <= i))"),
        ("decay(g * a)", "(i >= j) * exp(sum((g * a)[t], j < t <= i))"),
        ("retention(a)", "(i >= j) * a ** (i - j)"),
        ("alibi(a)", "(i >= j) * exp(-a * (i - j))"),
        ("toeplitz(c)", "c[i - j]"),
        ("semiseparable(q, g, k)", "sum(q[i] * ((i >= j) * exp(sum(g[t], j < t <= i))) * k[j], key)"),
        (
            "documents(doc)",
            "((i >= j) @ (doc != (i - j == 1) @ doc))[i] == ((i >= j) @ (doc != (i - j == 1) @ doc))[j]",
        ),
    ],
)
def test_prelude(call: str, meaning: str) -> None:
    params = "q, k, g: [time, head], a: [head], c: [lag, head], n: int, doc: int[time]"
    use = "0 * (q * k * g * a * n * doc * (c[i - j] @ g))"
    op = result(params, f"return ({call}) @ g + {use}")
    assert isinstance(op, Apply)
    used = op.args[0]
    assert isinstance(used, MaskTimes)
    assert show_expr(used.mask) == meaning


@pytest.mark.parametrize(
    ("call", "meaning"),
    [
        ("shift(k)", "(i - j == 1) @ k"),
        ("unshift(k)", "(j - i == 1) @ k"),
        ("cumsum(k)", "(i >= j) @ k"),
        ("l2norm(k)", "k / sqrt(sum(k * k, key) + 1e-06)"),
        ("rmsnorm(k)", "k / sqrt(mean(k * k, key) + 1e-05)"),
    ],
)
def test_prelude_tensors(call: str, meaning: str) -> None:
    assert text("k", f"return {call}") == meaning


def test_parameters_share_the_next_annotation() -> None:
    op = check(
        "op f(q, a, k, b: [batch, head], lo, hi: int, on: bool[time, head]):\n    return q * a * k * b * lo * hi * on\n"
    )
    assert [(p.name, p.kind, p.number, p.dims) for p in op.params] == [
        ("q", Kind.REAL, False, ("batch", "time", "head", "key")),
        ("a", Kind.REAL, False, ("batch", "head")),
        ("k", Kind.REAL, False, ("batch", "time", "head", "key")),
        ("b", Kind.REAL, False, ("batch", "head")),
        ("lo", Kind.INT, True, ()),
        ("hi", Kind.INT, True, ()),
        ("on", Kind.BOOL, False, ("batch", "time", "head")),
    ]


def test_dimensions_keep_the_declared_order_after_batch() -> None:
    op = check("op f(x: [key, time, batch, head]):\n    return x\n")
    assert op.params[0].dims == ("batch", "key", "time", "head")
    assert op.result.axes == ("batch", "time", "head", "key")


def test_equal_parts_are_one_object() -> None:
    op = result("q, k, v, g: [time, head]", "a = attend(decay(g), q, k, v)", "return a + attend(decay(g), q, k, v)")
    assert isinstance(op, Apply)
    assert op.args[0] is op.args[1]


def test_a_product_of_masks_is_applied_from_the_right() -> None:
    product = "band(0, 1) @ causal @ strict"
    assert text("v", f"return {product} @ v") == text("v", "return band(0, 1) @ (causal @ (strict @ v))")
    assert text("v", f"L = {product}", "return L @ v") == text("v", f"return {product} @ v")
    assert not any(isinstance(node, MaskProduct) for node in postorder((result("v", f"return {product} @ v"),)))


def test_transposes() -> None:
    assert text("v", "return transpose(causal) @ v") == "(j >= i) @ v"
    assert text("v, g: [time]", "return transpose(decay(g)) @ v") == "(j >= i) * exp(sum(g[t], i < t <= j)) @ v"
    assert text("v, w: [time, level]", "return transpose(levels(w)) @ v") == "transpose(levels(w)) @ v"
    assert text("v, w: [time, level]", "return transpose(transpose(levels(w))) @ v") == "levels(w) @ v"
    product = "0.5 * (band(0, 1) @ causal @ strict)"
    assert text("v", f"return transpose({product}) @ v") == "0.5 * ((j > i) @ ((j >= i) @ (0 <= j - i <= 1))) @ v"


def test_transposes_leave_contractions_inside_alone() -> None:
    shown = text("v", "return transpose(causal * (strict @ v)[i]) @ v")
    assert shown == "(j >= i) * ((i > j) @ v)[j] @ v"


def test_kinds() -> None:
    def kind(expression: str) -> Kind:
        op = result("v, doc: int[time], on: bool[time], n: int", f"return v + doc * on * n + ({expression})")
        assert isinstance(op, Apply)
        return op.args[1].kind

    assert kind("cumsum(doc)") is Kind.INT
    assert kind("cumsum(on)") is Kind.INT
    assert kind("cumsum(v)") is Kind.REAL
    assert kind("on * on") is Kind.BOOL
    assert kind("1 - on") is Kind.INT
    assert kind("doc // 2 % n") is Kind.INT
    assert kind("doc / 2") is Kind.REAL
    assert kind("doc == n") is Kind.BOOL
    assert kind("min(doc, n, 3)") is Kind.INT
    assert kind("where(on, doc, 1)") is Kind.INT


def test_path_ends() -> None:
    for path, expected in [
        ("j < t <= i", ("j", "i", False, True)),
        ("j <= t < i", ("j", "i", True, False)),
        ("i < t < j", ("i", "j", False, False)),
        ("i <= t <= j", ("i", "j", True, True)),
    ]:
        op = result("v, g: [time]", f"return exp(sum(g[t], {path})) @ v")
        (found,) = (node for node in postorder((op,)) if isinstance(node, PathSum))
        assert (found.start, found.end, found.start_closed, found.end_closed) == expected


def test_names_of_axes_are_sizes() -> None:
    assert text("q, k, v", "return attend(causal, q, k, v, scale=1 / sqrt(key))").endswith("scale=1 / sqrt(key))")
    assert text("x: [time, head, mode]", "return sum(x, mode) / (mode + head)") == "sum(x, mode) / (mode + head)"


def test_options() -> None:
    node = result("q, k, v, s: [head]", "return attend(causal, q, k, v, scale=s, activation=relu, normalize=max1)")
    assert isinstance(node, Attend)
    assert (node.normalize, node.activation) == ("max1", "relu")
    assert isinstance(node.scale, Param)
    plain = result("q, k, v", "return attend(causal, q, k, v)")
    assert isinstance(plain, Attend)
    assert (plain.normalize, plain.activation) == ("none", "none")
    assert isinstance(plain.scale, Const)


def test_a_name_may_stand_for_a_mask_or_a_number() -> None:
    assert text("v, n: int", "m = n + 1", "L = window(m)", "return L @ v") == "(0 <= i - j < n + 1) @ v"


def test_defs() -> None:
    defs = "def half = 1 / 2\ndef soft(x, g) = half * x * sigmoid(g)\ndef twice(x) = soft(soft(x, x), 3)\n"
    shown = "1 / 2 * (1 / 2 * q * sigmoid(q)) * sigmoid(3)"
    assert text("q", "return twice(q)", defs=defs) == shown


def test_arguments_of_a_def_mean_what_they_mean_outside() -> None:
    defs = "def inner(x) = x + 1\ndef outer(y) = inner(y * 2) * y\n"
    assert text("x: [time], y_: [time]", "z = x + y_", "return outer(z)", defs=defs) == "((x + y_) * 2 + 1) * (x + y_)"


def test_a_def_may_index_what_has_no_time() -> None:
    defs = "def gate(c, b) = sum(c[i] * b[j], key) * causal\n"
    assert text("v, c: [head, key], b: [time, key]", "return gate(c, b) @ v", defs=defs) == (
        "sum(c * b[j], key) * (i >= j) @ v"
    )


def test_defs_may_stand_below_ops() -> None:
    ops = check_file(
        Source("op f(q):\n    return twice(q)\n\ndef twice(x) = 2 * x\n\nop g(q):\n    return twice(q) + 1\n")
    )
    assert [(op.name, show_expr(op.result)) for op in ops] == [("f", "2 * q"), ("g", "2 * q + 1")]


def test_ops_have_a_namespace_of_their_own() -> None:
    ops = check_file(
        Source("op causal(q):\n    return q\n\nop sum(q):\n    return causal @ q\n\nop x(x: [time]):\n    return x\n")
    )
    assert [op.name for op in ops] == ["causal", "sum", "x"]


def test_docs_and_text() -> None:
    source = Source(
        "# Not this\n\n# One\n# Two\nop f(q,\n     k):\n    x = q  # why\n\n    return (x *\n        k)\n\n# tail\n"
    )
    (op,) = check_file(source)
    assert op.doc == "One\nTwo"
    assert op.text == "op f(q,\n     k):\n    x = q  # why\n\n    return (x *\n        k)"


def test_spans_of_expanded_nodes_are_where_the_def_is_used() -> None:
    node = result("q, k, v, g: [time, head]", "return attend(decay(g), q, k, v)")
    assert isinstance(node, Attend)
    assert (node.mask.span.line, node.mask.span.text) == (2, "decay(g)")


@pytest.mark.parametrize("sign", ["+", "*"])
def test_long_chains(sign: str) -> None:
    node = result("q", f"return {f' {sign} '.join(['q'] * 5000)}")
    depth = 0
    while isinstance(node, Apply):
        node, depth = node.args[0], depth + 1
    assert depth == 4999


def test_many_statements() -> None:
    lines = ["x0 = q"] + [f"x{n} = exp(x{n - 1})" for n in range(1, 2500)]
    node = result("q", *lines, "return x2499")
    assert sum(1 for _ in postorder((node,))) == 2500
    assert "..." in show_expr(node, limit=100)


def test_deep_defs() -> None:
    deep = "def d0(x) = x + 1\n" + "".join(f"def d{n}(x) = d{n - 1}(x) * 2\n" for n in range(1, 1500))
    assert sum(1 for _ in postorder((result("q", "return d1499(q)", defs=deep),))) == 1503


def test_the_parser_is_made_when_it_is_used() -> None:
    code = "import sys, sma_compiler.ir.check; print('lark' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False"]
