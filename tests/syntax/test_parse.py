"""Text to tree and back."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given

from sma_compiler.errors import SpecError
from sma_compiler.source import Source
from sma_compiler.syntax import tree
from sma_compiler.syntax.locate import library_names, library_source, prelude_source
from sma_compiler.syntax.parse import lark_parser, parse
from sma_compiler.syntax.show import show, show_expr
from sma_compiler.syntax.tree import Call, Chain, Compare, Index, Logic, Name, Negative, Not, Number, Power
from tests.syntax.specs import expressions, files


def expression(text: str) -> tree.Expr:
    (item,) = parse(Source(f"def x = {text}\n")).items
    assert isinstance(item, tree.Define)
    return item.value


a, b, c = Name("a"), Name("b"), Name("c")

SHAPES = [
    ("a + b - c", Chain(a, (("+", b), ("-", c)))),
    ("a + (b - c)", Chain(a, (("+", Chain(b, (("-", c),))),))),
    ("a * b @ c", Chain(a, (("*", b), ("@", c)))),
    ("a + b * c", Chain(a, (("+", Chain(b, (("*", c),))),))),
    ("a // b % c", Chain(a, (("//", b), ("%", c)))),
    ("-a ** b", Negative(Power(a, b))),
    ("a ** -b ** c", Power(a, Negative(Power(b, c)))),
    ("-a * b", Chain(Negative(a), (("*", b),))),
    ("0 <= a - b < c", Compare(Number(0), (("<=", Chain(a, (("-", b),))), ("<", c)))),
    ("not a < b", Not(Compare(a, (("<", b),)))),
    ("not a and b or c", Logic("or", (Logic("and", (Not(a), b)), c))),
    ("a or b or c", Logic("or", (a, b, c))),
    ("a == b != c", Compare(a, (("==", b), ("!=", c)))),
    ("a[b][c]", Index(Index(a, b), c)),
    ("(a * b)[c]", Index(Chain(a, (("*", b),)), c)),
    ("a[b] ** c", Power(Index(a, b), c)),
    ("f(a, b,)", Call("f", (a, b), ())),
    ("f()", Call("f", (), ())),
    ("f(a, x=b or c)", Call("f", (a,), (tree.Option("x", Logic("or", (b, c))),))),
    ("f(\n  a,  # first\n\n  b\n)", Call("f", (a, b), ())),
    ("1e-6 + .5 + 2. + 10", Chain(Number(1e-6), (("+", Number(0.5)), ("+", Number(2.0)), ("+", Number(10))))),
    ("orange + notes", Chain(Name("orange"), (("+", Name("notes")),))),
]


@pytest.mark.parametrize(("text", "shape"), SHAPES, ids=[text for text, _ in SHAPES])
def test_precedence(text: str, shape: tree.Expr) -> None:
    assert expression(text) == shape
    assert expression(show_expr(shape)) == shape


def test_literals_keep_their_type() -> None:
    found = expression("f(1, 1.0, 1e0)")
    assert isinstance(found, Call)
    assert [type(arg.value) for arg in found.args if isinstance(arg, Number)] == [int, float, float]


def test_op() -> None:
    head = "op f(q, a, b: [time, head],\n     doc: int[time], w: int):\n"
    text = f"# not this\n\n# A mixer\n#\n#  twice\n{head}  # inner\n\n  x = a\n  return x\n"
    (op,) = parse(Source(text, "f.sma")).items
    assert isinstance(op, tree.Op)
    assert op.doc == "A mixer\n\n twice"
    assert [(param.name, param.kind, param.axes and [axis.name for axis in param.axes]) for param in op.params] == [
        ("q", None, None),
        ("a", None, None),
        ("b", None, ["time", "head"]),
        ("doc", "int", ["time"]),
        ("w", "int", None),
    ]
    assert op.body == (tree.Bind("x", a), tree.Return(Name("x")))
    assert (op.span.line, op.span.end_line, op.span.source.name) == (6, 11, "f.sma")


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment", "  # indented", "\r\n#\r\n"])
def test_nothing(text: str) -> None:
    assert parse(Source(text)) == tree.File(())


def test_line_ends_and_last_line() -> None:
    text = "op f(q):\n    x = (q +\n  q)\n    return x"
    assert parse(Source(text)) == parse(Source(text.replace("\n", "\r\n") + "\r\n"))


def test_spans_lie_where_the_text_is() -> None:
    source = Source("# doc\n\ndef y = alpha[i] * (beta + 3)\n\ndef z = gamma(delta,\n  eps=zeta)\n")
    for node in tree.walk(parse(source)):
        if isinstance(node, Name):
            assert node.span.text == node.id
        if isinstance(node, Call):
            assert node.fn_span.text == node.fn
            assert (node.span.line, node.span.end_line) == (5, 6)


@pytest.mark.parametrize("name", library_names())
def test_library_prints_back(name: str) -> None:
    file = parse(library_source(name))
    assert parse(Source(show(file))) == file
    (op,) = file.items
    assert isinstance(op, tree.Op)
    assert op.name == name
    assert op.doc


def test_prelude_prints_back() -> None:
    file = parse(prelude_source())
    assert parse(Source(show(file))) == file


@given(expressions)
def test_expressions_print_back(node: tree.Expr) -> None:
    assert expression(show_expr(node)) == node


@given(files)
def test_files_print_back(file: tree.File) -> None:
    assert parse(Source(show(file))) == file


def test_grammar_has_no_conflicts() -> None:
    lark_parser(strict=True)


@pytest.mark.parametrize(
    "text",
    [
        " + ".join(["x"] * 5000),
        " * ".join(["x"] * 5000),
        " == ".join(["x"] * 5000),
        " or ".join(["x"] * 5000),
        "f(" + ", ".join(["x"] * 5000) + ")",
        "(" * 64 + "x" + ")" * 64,
        "-" * 64 + "x",
        "not " * 64 + "x",
        "x ** " * 64 + "x",
        "x" + "[i]" * 64,
        "f(not -(a + b * c ** -" * 10 + "x" + "))" * 10,
        "x" * 60000,
    ],
    ids=lambda text: text[:12],
)
def test_long_and_deep(text: str) -> None:
    started = time.process_time()
    node = expression(text)
    assert expression(show_expr(node)) == node
    assert hash(node) == hash(expression(text))
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "text",
    [
        "(" * 60000,
        "-" * 60000 + "x",
        "x ** " * 13000 + "x",
        "[" * 30000 + "]" * 30000,
        "not " * 16000 + "x",
        ")" * 60000,
        "1 " * 30000,
        "x[i]" * 16000,
        "\n" * 60000 + "(",
        "(\n" * 30000,
        "#" * 60000,
        "\\\n" * 30000,
        "3\ndef (" * 8000,
    ],
    ids=lambda text: repr(text[:6]),
)
def test_beyond_the_limits(text: str) -> None:
    started = time.process_time()
    with pytest.raises(SpecError) as caught:
        expression(text)
    assert len(str(caught.value)) < 300_000
    assert time.process_time() - started < 5


def test_threads_share_the_parser() -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                assert expression("f(a[i],\n  (b), c)") == Call("f", (Index(a, Name("i")), b, c), ())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
