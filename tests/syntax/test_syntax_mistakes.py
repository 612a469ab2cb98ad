"""Mistakes in how a spec is written: class, place, message and hint of each. `$` marks the place."""

from __future__ import annotations

import pytest

from sma_compiler.errors import SpecError, SpecErrors
from sma_compiler.source import Source
from sma_compiler.syntax import mistakes
from sma_compiler.syntax.parse import parse

HEAD = "op f(q, k, v):\n"

CASES = [
    ("MissingColon", "op f(q, k, v)$\n    return q\n", "ends in `:`", "write `op f(...):`"),
    ("MissingColon", "op f(q) $-> q:\n    return q\n", "ends in `:`", "write `op f(...):`"),
    ("MissingBody", "op f(q)$:\n", "has no statements", "below `op f(...):`"),
    ("MissingBody", "# doc\nop f(q)$:\n    # only a comment\n", "has no statements", "return"),
    ("BodyOnHeaderLine", "op f(q): $return q\n", "a line of their own", "new line"),
    ("MissingParameters", "op f$:\n    return q\n", "parameters in parentheses", "write `op f(q, k, v):`"),
    ("MissingParameters", "op f $q, k:\n    return q\n", "parameters in parentheses", "write `op f(q, k, v):`"),
    ("MissingName", "op $(q):\n    return q\n", "a name has to follow `op`", "write `op name(q, k, v):`"),
    ("MissingName", "def $= 3\n", "a name has to follow `def`", "write `def name = expression`"),
    ("MissingName", "op f(q, $[time]):\n    return q\n", "has to follow `,`", "x: [time, head]"),
    ("KeywordAsName", "op $return(q):\n    return q\n", "`return` is a word of the language", "another name"),
    ("KeywordAsName", "op f(q, $or):\n    return q\n", "`or` is a word of the language", "another name"),
    ("KeywordAsName", HEAD + "    $def = 3\n    return q\n", "`def` is a word of the language", "another name"),
    ("KeywordAsName", HEAD + "    return q * $return\n", "`return` is a word of the language", "another name"),
    ("MissingReturnValue", HEAD + "    $return\n", "returns nothing", "return attend(L, q, k, v)"),
    ("MissingReturnValue", HEAD + "    $return  # later\n", "returns nothing", "return attend(L, q, k, v)"),
    ("MissingOperand", HEAD + "    return q +$\n", "missing after `+`", "write the expression"),
    ("MissingOperand", HEAD + "    return q *$ # more\n", "missing after `*`", "write the expression"),
    ("MissingOperand", HEAD + "    return q * $/ k\n", "missing after `*`", "write the expression"),
    ("MissingOperand", HEAD + "    return (q * $) * k\n", "missing after `*`", "write the expression"),
    ("MissingOperand", HEAD + "    return q[$]\n", "missing after `[`", "indexed by `i`, `j` or `t`"),
    ("MissingOperand", HEAD + "    return $+q\n", "missing after `return`", "no `+` before"),
    ("MissingOperand", HEAD + "    x =$\n    return q\n", "missing after `=`", "write the expression"),
    ("MissingOperand", HEAD + "    return 1 - $not q\n", "missing after `-`", "`(not x)`"),
    ("MissingOperand", HEAD + "    return f(q, $, k)\n", "missing after `,`", "write the expression"),
    ("MissingOperand", HEAD + "    return f($*q)\n", "missing after `(`", "`*args`"),
    ("MissingOperand", HEAD + "    return q and $and k\n", "missing after `and`", "write"),
    ("MissingOperator", HEAD + "    return q $k\n", "nothing joins `q` and `k`", "write an operator"),
    ("MissingOperator", HEAD + "    return 2$q\n", "nothing joins `2` and `q`", "write an operator"),
    ("MissingOperator", HEAD + "    return (q + k) $(v)\n", "nothing joins `)` and `(`", "write an operator"),
    (
        "MissingOperator",
        HEAD + "    return q $if q\n",
        "nothing joins `q` and `if`",
        "operator",
    ),
    ("SingleEquals", HEAD + "    x = y $= 3\n    return x\n", "gives a name to a value", "to compare write `==`"),
    ("SingleEquals", HEAD + "    return where(i - j $= 1, q, k)\n", "gives a name", "to compare write `==`"),
    ("NotAStatement", HEAD + "    $q\n    return q\n", "no statement", "`name = expression`"),
    ("NotAStatement", HEAD + "    $x += 1\n    return q\n", "no statement", "`name = expression`"),
    ("NotAStatement", HEAD + "    $attend(q, k)\n    return q\n", "no statement", "`name = expression`"),
    ("NotAStatement", HEAD + "    $for x in q:\n", "no statement", "`name = expression`"),
    ("BadAnnotation", "op f(q, x: $3):\n    return q\n", "no annotation", "doc: int[time]"),
    ("BadAnnotation", "op f(q, x: $(time)):\n    return q\n", "no annotation", "doc: int[time]"),
    ("BadSyntax", HEAD + "    return q[i$:j]\n", "`:` cannot stand here", "no slices"),
    ("BadSyntax", "op f(q, x: [time $head]):\n    return q\n", "`head` cannot stand here", "`,` or `]`"),
    ("BadSyntax", "op f(q $k):\n    return q\n", "`k` cannot stand here", "`)` or `,` or `:`"),
    ("BadSyntax", "op f(q$=3):\n    return q\n", "`=` cannot stand here", "`)` or `,` or `:`"),
    ("MissingDefinition", "def x$\n", "gives no value", "`def name = expression`"),
    ("MissingDefinition", "def x(a, b)$  # half\n", "gives no value", "`def name(x) = expression`"),
    ("BadSyntax", "def x $3\n", "`3` cannot stand here", "`(` or `=`"),
    ("OptionBeforeArgument", HEAD + "    return f(a=q, $k)\n", "before options", "before `a=`"),
    ("BadCharacter", HEAD + "    return q $≤ k\n", "`≤`", "write `<=`"),
    ("BadCharacter", HEAD + "    return q $^ 2\n", "`^`", "powers are written `**`"),
    ("BadCharacter", HEAD + "    return q $& k\n", "`&`", "write `and`"),
    ("BadCharacter", HEAD + "    return $γ * q\n", "`γ`", "ASCII"),
    ("BadCharacter", HEAD + "    return $٣ * q\n", "`٣`", "ASCII"),
    ("BadCharacter", HEAD + "    return $ſ * q\n", "`ſ`", "ASCII"),
    ("BadCharacter", HEAD + "    return q$.sum\n", "`.`", "no attributes"),
    ("BadCharacter", HEAD + "    return f(normalize=$'sum')\n", "`'`", "bare words"),
    ("BadCharacter", HEAD + "    return q $\\\n        + k\n", "`\\`", "inside brackets"),
    ("BadCharacter", HEAD + "    return q$\u00a0+ k\n", "U+00A0", "ASCII"),
    ("BadCharacter", HEAD + "    return $\ud800\n", "U+D800", "ASCII"),
    ("BadCharacter", "$\ufeff" + HEAD + "    return q\n", "U+FEFF", "byte order mark"),
    ("BadCharacter", HEAD + "    return q$\x0b\n", "U+000B", ""),
    ("TabCharacter", HEAD + "$\treturn q\n", "a tab", "by spaces"),
    ("TabCharacter", HEAD + "    return$\tq\n", "a tab", "by spaces"),
    ("BadIndentation", HEAD + "    x = q\n     $return x\n", "indented by 5 spaces, the lines before it by 4", "alike"),
    ("BadIndentation", HEAD + "    x = q\n  $return x\n", "indented by 2 spaces, the lines before it by 4", "alike"),
    ("UnexpectedIndent", "    $x = 3\nop f(q):\n    return q\n", "no `op` is open", "first column"),
    ("UnexpectedIndent", "def x = 3\n    $y = 4\n", "no `op` is open", "first column"),
    ("UnclosedBracket", "op f$(q, k:\n    return q\n", "`(` is never closed", "write `)`"),
    ("UnclosedBracket", HEAD + "    return q$[i\n", "`[` is never closed", "write `]`"),
    ("UnclosedBracket", HEAD + "    return $(q\n\ndef x = 3\n", "`(` is never closed", "write `)`"),
    ("UnmatchedBracket", HEAD + "    return q$) + k\n", "`)` closes no bracket", "remove it"),
    ("UnmatchedBracket", HEAD + "    return (q$] + k\n", "`]` closes the `(` of line 2, column 12", "write `)`"),
    ("NumberTooLarge", HEAD + "    return $1e999 * q\n", "`1e999` is too large", ""),
    ("NumberTooLarge", HEAD + "    return $9007199254740993 * q\n", "2**53", ""),
    ("NumberTooLarge", HEAD + f"    return ${'9' * 9000} * q\n", "too large", ""),
    ("NestedTooDeep", HEAD + f"    return {'(' * 64}$(q{')' * 65}\n", "more than 64 deep", "name parts"),
    ("NestedTooDeep", HEAD + f"    return ${'-' * 65}q\n", "more than 64 deep", "name parts"),
    ("NestedTooDeep", HEAD + f"    return ${'not ' * 65}q\n", "more than 64 deep", "name parts"),
    ("NestedTooDeep", HEAD + f"    return $q{' ** q' * 65}\n", "more than 64 deep", "name parts"),
    ("NestedTooDeep", HEAD + f"    return $q{'[i]' * 65}\n", "more than 64 deep", "name parts"),
    ("TextTooLong", "$" + HEAD + "    return q\n" + "#" * 65536, "65564 bytes; a spec may have 65536", ""),
]


def place(marked: str) -> tuple[str, int, int]:
    """The text without its mark, and the mark's line and column."""
    before, _, after = marked.partition("$")
    return before + after, before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


def found(text: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        parse(Source(text))
    assert len(caught.value.errors) == 1, caught.value
    return caught.value


@pytest.mark.parametrize(("name", "marked", "message", "hint"), CASES, ids=lambda value: str(value)[:24])
def test_mistake(name: str, marked: str, message: str, hint: str) -> None:
    text, line, column = place(marked)
    error = found(text)
    assert type(error).__name__ == name
    assert error.span is not None
    assert (error.span.line, error.span.column) == (line, column)
    assert message in error.message
    assert hint in error.hint
    assert bool(hint) == bool(error.hint)
    assert f"<spec>:{line}:{column}: {error.message}" in str(error)


@pytest.mark.parametrize("line", ["f(q):", "import torch", "return q", "x = 3", "@op", "0"])
def test_what_is_neither_op_nor_def(line: str) -> None:
    error = found(f"{line}\n")
    assert type(error) is mistakes.NotAnItem
    assert error.span is not None
    assert (error.span.line, error.span.column) == (1, 1)


def test_caret_under_the_place() -> None:
    error = found("op f(q, k, v):\n    return q $ k\n")
    assert str(error).split("\n") == [
        "<spec>:2:14: `$` does not belong to the language",
        "      return q $ k",
        "               ^",
    ]


def test_all_the_items_are_looked_at() -> None:
    text = "op f(q):\n    return q +\n\nop g(q):\n    return q\n\ndef x = (3\ndef y = 3 4\n"
    with pytest.raises(SpecErrors) as caught:
        parse(Source(text, "many.sma"))
    kinds = [type(error).__name__ for error in caught.value.errors]
    assert kinds == ["MissingOperand", "UnclosedBracket", "MissingOperator"]
    assert [error.span.line for error in caught.value.errors if error.span] == [2, 7, 8]
    assert str(caught.value).count("many.sma:") == 3


def test_every_class_is_tested() -> None:
    tested = {name for name, *_ in CASES} | {"NotAnItem", "Mistake"}
    assert {name for name, kind in vars(mistakes).items() if isinstance(kind, type)} == tested
