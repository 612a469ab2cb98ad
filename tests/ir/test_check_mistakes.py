"""Mistakes in what a spec says: class, place, message and hint of each. `$` marks the place."""

from __future__ import annotations

import pickle

import pytest

from sma_compiler import mistakes
from sma_compiler.errors import SpecError
from sma_compiler.ir.check import check_file
from sma_compiler.source import Source

PARAMS = """op f(q, k, v, g: [time, head], gk: [time, head, key], a: [head], s: real, n: int, c: [lag, head],
     m: [time, head, mode], w: [time, head, level], on: bool[time], doc: int[time]):
"""
"""The header of every case that is only an expression or statements."""

EXPRESSIONS = [
    # tensors among positions
    ("TimeNotIndexed", "attend($g * causal, q, k, v)", "`g` has a time axis", "write `g[i]`, `g[j]`, or `g[t]`"),
    ("TimeNotIndexed", "attend(causal * $exp(g + a), q, k, v)", "`exp(g + a)` has a time axis", "`exp(g + a)[i]`"),
    ("TimeNotIndexed", "attend(causal * (i - j) * ($g - 1), q, k, v)", "`(g - 1)` has", "`(g - 1)[i]`"),
    ("TimeNotIndexed", "attend(0 <= i - j < $doc, q, k, v)", "`doc` has a time axis", "`doc[i]`"),
    ("TimeNotIndexed", "attend(where(i >= j, $g, 1), q, k, v)", "`g` has a time axis", "`g[i]`"),
    ("TimeNotIndexed", "attend(exp(sum($g, j < t <= i)), q, k, v)", "`g` has a time axis", "`g[t]` inside `sum`"),
    ("TimeNotIndexed", "rope($q, m[i])", "`q` has a time axis", "`q[i]`"),
    ("TimeNotIndexed", "$q * k * causal", "`(q * k)` has a time axis", "`(q * k)[i]`"),
    ("NothingToIndex", "attend($a[i] * causal, q, k, v)", "`a` has no time axis", "write `a` alone"),
    ("NothingToIndex", "attend($n[j] * causal, q, k, v)", "`n` has no time axis", "write `n` alone"),
    ("NothingToIndex", "$a[i - j] @ v", "`a` has no time axis", "write `a` alone"),
    ("MaskIndexed", "attend($causal[i], q, k, v)", "`causal` already is an expression of positions", "not masks"),
    ("MaskIndexed", "attend($g[i][j] * causal, q, k, v)", "`g[i]` already is", "not masks"),
    ("MaskIndexed", "attend($causal[i - j], q, k, v)", "`causal` already is", "not masks"),
    ("BadTimeIndex", "attend($g[i - 1] * causal, q, k, v)", "indexed by `i`, `j` or `t` alone", "`shift(x)[i]`"),
    ("BadTimeIndex", "attend($g[0] * causal, q, k, v)", "indexed by `i`, `j` or `t` alone", "`shift(x)[i]`"),
    ("BadLagIndex", "c[$i / j] @ v", "an integer expression of `i` and `j`", "write `c[i - j]`"),
    ("BadLagIndex", "c[$3] @ v", "an integer expression of `i` and `j`", "write `c[i - j]`"),
    ("BadLagIndex", "c[$i >= j] @ v", "an integer expression of `i` and `j`", "write `c[i - j]`"),
    ("BadLagIndex", "exp(sum(c[$t], j < t <= i)) @ v", "an integer expression of `i` and `j`", "write `c[i - j]`"),
    # paths
    ("PathPosition", "q[$t]", "only inside a path sum", "sum(g[t], j < t <= i)"),
    ("PathPosition", "attend(causal * ($t - j), q, k, v)", "only inside a path sum", "sum(g[t], j < t <= i)"),
    ("PathMentions", "attend(exp(sum(g[$i], j < t <= i)), q, k, v)", "not on `i` or `j`", "multiply outside"),
    ("PathMentions", "attend(exp(sum(g[t] * $j, j < t <= i)), q, k, v)", "not on `i` or `j`", "multiply outside"),
    ("PathMentions", "attend(exp(sum($causal, j < t <= i)), q, k, v)", "not on `i` or `j`", "multiply outside"),
    ("BadPath", "exp(sum(g[t], $j < t > i)) @ v", "no path", "`j < t <= i` or `i < t <= j`"),
    ("BadPath", "exp(sum(g[t], $i >= t > j)) @ v", "no path", "`j < t <= i` or `i < t <= j`"),
    ("BadPath", "exp(sum(g[t], $i < t <= i)) @ v", "no path", "`j < t <= i` or `i < t <= j`"),
    ("BadPath", "exp(sum(g[t], $j < t)) @ v", "no path", "`j < t <= i` or `i < t <= j`"),
    ("BadPath", "exp(sum(g[t], $j < t <= i + 1)) @ v", "no path", "`j < t <= i` or `i < t <= j`"),
    # reductions
    ("TimeReduced", "sum(q, $time)", "`sum` cannot run over `time`", "`cumsum(x)`"),
    ("TimeReduced", "softmax(q, $time)", "`softmax` cannot run over `time`", "normalize=softmax"),
    ("TimeReduced", "sum(g[j] * causal, $time) @ v", "`sum` cannot run over `time`", "`cumsum(x)`"),
    ("BatchReduced", "mean(q, $batch)", "`mean` cannot run over `batch`", "after the call"),
    ("NoSuchAxis", "sum(q, $value)", "`q` has no axis `value`: it has the axes batch, time, head, key", "leave `sum`"),
    ("NoSuchAxis", "q * sum(s, $key)", "`s` has no axis `key`: it has no axes", "leave `sum`"),
    ("AxisExpected", "sum(q, $ky)", "an axis, or a path", "did you mean `key`?"),
    ("AxisExpected", "mean(q, $3)", "the second argument of `mean` is an axis", "write `mean(x, key)`"),
    ("AxisExpected", "mean(g, $j < t <= i)", "the second argument of `mean` is an axis", "write `mean(x, key)`"),
    # contractions
    ("MaskNeeded", "attend($q, q, k, v)", "the first argument of `attend` has to be a mask", "write `full`"),
    ("MaskNeeded", "attend($1, q, k, v)", "is the same for every pair of positions", "write `full`"),
    ("MaskNeeded", "solve($a, q, k, v)", "the first argument of `solve`", "write `full`"),
    ("MaskNeeded", "$q @ v", "what stands before `@` has to be a mask", "write `full`"),
    ("MaskNeeded", "$a * 2 @ v", "`a * 2` is the same for every pair", "write `full`"),
    ("MaskNeeded", "transpose($q) @ v", "the argument of `transpose` has to be a mask", "write `full`"),
    ("MaskNeeded", "exp(sum(($t @ m)[t], j < t <= i)) @ v", "an expression of `t`", "inside a path sum only"),
    ("TensorNeeded", "attend(causal, $causal, k, v)", "the second argument of `attend`", "`L @ x`"),
    ("TensorNeeded", "attend(causal, q, k, $v[j])", "the fourth argument of `attend`", "`L @ x`"),
    ("TensorNeeded", "attend(causal, q, k, v, scale=$i - j)", "`scale` has to be a tensor", "`L @ x`"),
    ("TensorNeeded", "causal @ $a", "a tensor over time, and `a` is the same at every position", "a time axis"),
    ("TensorNeeded", "causal @ $1", "a tensor over time, and `1` is the same at every position", "a time axis"),
    ("OperandAxis", "attend(causal, q, k, v, scale=$g)", "`scale` cannot have the axis `time`", "multiply `q`"),
    (
        "OperandAxis",
        "attend(causal, q, k, $q)",
        "the fourth argument of `attend` cannot have the axis `key`",
        "`key` is",
    ),
    ("OperandAxis", "attend(causal, $v, k, v)", "cannot have the axis `value`", "multiply the result"),
    ("OperandAxis", "attend(causal, $m, k, v)", "cannot have the axis `mode`", "`sum(x, mode)`"),
    ("OperandAxis", "attend($causal * c, q, k, v)", "the mask of `attend` cannot have the axis `lag`", "`c[i - j]`"),
    (
        "OperandAxis",
        "solve($strict * w[i], q, k, v)",
        "the mask of `solve` cannot have the axis `level`",
        "`levels(w)`",
    ),
    ("OperandAxis", "solve(strict, q, k, $k)", "the fourth argument of `solve` cannot have the axis `key`", "`key` is"),
    ("MaskPerKey", "attend($decay(gk), q, k, v, normalize=softmax)", "`normalize=softmax` cannot", "each head"),
    ("MaskPerKey", "attend($decay(gk), q, k, v, activation=silu)", "`activation=silu` cannot", "each head"),
    (
        "ActivationWithSoftmax",
        "attend(causal, q, k, v, normalize=softmax, $activation=silu)",
        "`activation` and `normalize=softmax` exclude each other",
        "keep one",
    ),
    ("BadOptionValue", "attend(causal, q, k, v, normalize=$softmx)", "cannot be `softmx`", "mean `softmax`?"),
    ("BadOptionValue", "attend(causal, q, k, v, normalize=$1)", "cannot be `1`", "`none`, `sum`, `softmax`, `max1`"),
    ("BadOptionValue", "attend(causal, q, k, v, activation=$max)", "cannot be `max`", "`relu`"),
    ("UnknownOption", "attend(causal, q, k, v, $normalise=sum)", "no option `normalise`", "mean `normalize`?"),
    ("UnknownOption", "solve(strict, q, k, v, $scale=2)", "`solve` has no option `scale`", "no options"),
    ("UnknownOption", "exp(q, $i=j)", "no option `i`", "`==`"),
    ("RepeatedOption", "attend(causal, q, k, v, scale=1, $scale=2)", "`scale` is given twice", "keep one"),
    ("RopeNeedsAxis", "rope($v, m)", "the first argument of `rope` needs the axis `key`", "`mode` on angle"),
    ("RopeNeedsAxis", "rope(q, $g)", "the second argument of `rope` needs the axis `mode`", "`mode` on angle"),
    ("LevelsNeedsAxes", "attend(levels($g), q, k, v)", "`g` has the axes batch, time, head", "`levels(w)`"),
    ("LevelsNeedsAxes", "attend(levels($w[i]), q, k, v)", "`w[i]` has the axes batch, head, level", "`levels(w)`"),
    # numbers and truth values
    ("NotBoolean", "attend(causal and $a, q, k, v)", "`a` is a number", "compare it"),
    ("NotBoolean", "where($g, q, k)", "the condition of `where` has to be true or false", "compare it"),
    ("NotBoolean", "attend(not $i, q, k, v)", "`i` is a number", "compare it"),
    ("BooleanCompared", "attend($causal < 1, q, k, v)", "`causal` is true or false", "`and`, `or` and `not`"),
    ("BooleanCompared", "attend(0 < ($i > j), q, k, v)", "`i > j` is true or false", "`and`"),
    ("NotFinite", "q * ($1 / 0)", "`1 / 0` is not a finite number", ""),
    ("NotFinite", "q * $9 ** 9 ** 9", "`9 ** 9 ** 9` is not a finite number", ""),
    ("NotFinite", "q * $exp(1000)", "`exp(1000)` is not a finite number", ""),
    ("NotFinite", "q * $sqrt(-1)", "`sqrt(-1)` is not a finite number", ""),
    ("NotFinite", "q * $(-8) ** 0.5", "`(-8) ** 0.5` is", ""),
    ("AxisAsNumber", "q * $time", "the size of `time` is no number", "`head`, `key`, `value` and `mode`"),
    ("AxisAsNumber", "q / $lag", "the size of `lag` is no number", "`head`, `key`, `value` and `mode`"),
    # names
    ("UnknownName", "q * $qq", "`qq` has no meaning here", "did you mean `q`?"),
    ("UnknownName", "q * $zzzzzz", "`zzzzzz` has no meaning here", "declare it"),
    ("UnknownFunction", "$attnd(causal, q, k, v)", "no function `attnd`", "did you mean `attend`?"),
    ("UnknownFunction", "$eval(q)", "no function `eval`", ""),
    ("UnknownFunction", "$zzzzzz(q)", "no function `zzzzzz`", "def name(x)"),
    ("NotAFunction", "$q(3)", "`q` is a value", "write `q` alone"),
    ("NotAFunction", "$causal() @ v", "`causal` is a definition without parameters", "write `causal` alone"),
    ("FunctionNotCalled", "q * $exp", "`exp` is a function", "call it: `exp(x)`"),
    ("FunctionNotCalled", "attend($decay, q, k, v)", "`decay` is a function", "call it: `decay(g)`"),
    ("WrongArity", "$attend(q, k, v)", "takes 4 arguments, and is given 3", "`attend(L, q, k, v)`"),
    ("WrongArity", "$exp()", "takes 1 argument, and is given none", "`exp(x)`"),
    ("WrongArity", "$max(q)", "takes 2 or more arguments, and is given 1", "`max(x, y)`"),
    ("WrongArity", "attend($window(n, n), q, k, v)", "takes 1 argument, and is given 2", "`window(w)`"),
    ("WrongArity", "$sum(q)", "takes 2 arguments, and is given 1", "sum(g[t], j < t <= i)"),
    # results
    ("ResultNotTensor", "$causal", "`causal` is a mask", "`attend(L, q, k, v)`"),
    ("ResultNotTensor", "$a * 2", "is the same at every position", "over time"),
    ("ResultNotTensor", "$doc > 3", "`doc > 3` is true or false", "where"),
    # mistakes in a def's body are shown where it is used
    ("TimeNotIndexed", "attend($retention(g), q, k, v)", "in `retention(g)`: `gamma` has a time axis", "`gamma[i]`"),
    ("TensorNeeded", "$cumsum(a)", "in `cumsum(a)`: what stands after `@`", "a time axis"),
    ("NoSuchAxis", "$l2norm(v)", "in `l2norm(v)`: `x * x` has no axis `key`", "leave `sum`"),
    ("TensorNeeded", "attend($documents(a), q, k, v)", "in `documents(a)`: what stands after `@`", "a time axis"),
]

OPS = [
    ("NoOps", "$def x = 3\n", "the file has no op", "write `op name(q, k, v):`"),
    ("NoOps", "$", "the file has no op", "write `op name(q, k, v):`"),
    ("NoOps", "$# only a comment\n", "the file has no op", "write `op name(q, k, v):`"),
    ("NoReturn", "op $f(q):\n    x = q\n", "op `f` returns nothing", "`return ...`"),
    ("AfterReturn", "op f(q):\n    return q\n    $x = q\n    y = q\n", "nothing after `return`", "move it before"),
    ("AfterReturn", "op f(q):\n    return q\n    $return q\n", "nothing after `return`", "move it before"),
    ("DuplicateOp", "op f(q):\n    return q\nop $f(q):\n    return q\n", "the first is in line 1", "another name"),
    ("BoundTwice", "op f(q):\n    x = q\n    $x = q\n    return x\n", "a value in line 2", "bound once"),
    ("BoundTwice", "op f(q):\n    $q = q\n    return q\n", "a parameter in line 1", "bound once"),
    ("BoundTwice", "op f(q, $q):\n    return q\n", "a parameter in line 1", "bound once"),
    ("BoundTwice", "def x = 3\ndef $x = 4\nop f(q):\n    return q\n", "a definition in line 1", "bound once"),
    ("BoundTwice", "def x = 3\nop f(q):\n    $x = q\n    return x\n", "a definition in line 1", "bound once"),
    ("BoundTwice", "def x = 3\ndef y($x) = x\nop f(q):\n    return y(q)\n", "a definition in line 1", "bound once"),
    ("BoundTwice", "def x(a, $a) = a\nop f(q):\n    return q\n", "a parameter in line 1", "bound once"),
    ("ReservedName", "op f($t: [time]):\n    return t\n", "it is a position", "`t_`"),
    ("ReservedName", "op f(q):\n    $key = 3\n    return q\n", "it is an axis", "`key_`"),
    ("ReservedName", "op f(q):\n    $exp = q\n    return q\n", "it is a function", "`exp_`"),
    ("ReservedName", "op f(q):\n    $causal = q\n    return q\n", "a definition of the prelude", "`causal_`"),
    ("ReservedName", "op f($decay: [time]):\n    return decay\n", "a definition of the prelude", "`decay_`"),
    ("ReservedName", "def $causal = 3\nop f(q):\n    return q\n", "a definition of the prelude", "`causal_`"),
    ("ReservedName", "def $attend = 3\nop f(q):\n    return q\n", "it is a function", "`attend_`"),
    ("ReservedName", "def x($head) = 3\nop f(q):\n    return q\n", "it is an axis", "`head_`"),
    ("CallKeyword", "op f(q, $state: [head]):\n    return q * state\n", "a keyword of every op's call", "`state_`"),
    ("CallKeyword", "op f($cu_seqlens: [time]):\n    return cu_seqlens\n", "a keyword of every", "`cu_seqlens_`"),
    ("PythonKeyword", "op f($lambda: [time]):\n    return lambda\n", "a word of Python", "`lambda_`"),
    ("PythonKeyword", "op $class(q):\n    return q\n", "could not name the op", "`class_`"),
    ("MissingAnnotation", "op f($x):\n    return x\n", "`x` needs its axes", "`x: [time, head]`"),
    ("UnknownAxis", "op f(x: [time, $heads]):\n    return x\n", "no axis `heads`", "did you mean `head`?"),
    ("UnknownAxis", "op f(x: [$T]):\n    return x\n", "no axis `T`", "batch, time, head, key, value, mode, lag, level"),
    ("RepeatedAxis", "op f(x: [time, $time]):\n    return x\n", "axis `time` appears twice in `x`", "once"),
    ("UnknownKind", "op f(q, $x: float):\n    return q * x\n", "no kind `float`", "`int` or `real`"),
    ("UnknownKind", "op f(q, $x: bool):\n    return q * x\n", "no kind `bool`", "`int` or `real`"),
    ("UnknownKind", "op f($x: fp16[time]):\n    return x\n", "no kind `fp16`", "`int[axes]`"),
    ("UnknownKind", "op f(q, $x: head):\n    return q * x\n", "no kind `head`", "`x: [head]`"),
    ("NoSuchSize", "op f(v):\n    return v / $key\n", "no parameter has the axis `key`", "write the number"),
    ("DefinedLater", "def x = $x\nop f(q):\n    return q\n", "which is itself", "no recursion"),
    ("DefinedLater", "def x(a) = $x(a)\nop f(q):\n    return x(q)\n", "which is itself", "no recursion"),
    ("DefinedLater", "def x = $y\ndef y = 3\nop f(q):\n    return q * x\n", "comes later", "no recursion"),
    ("UnknownName", "def x = 2 * $zeta\nop f(q):\n    return q * x\n", "`zeta` has no meaning", "declare it"),
    ("UnknownFunction", "def x = $zeta(1)\nop f(q):\n    return q\n", "no function `zeta`", "def name(x)"),
    ("ResultAxis", "op f(x: [time, mode]):\n    return $x\n", "still has the axis `mode`", "`sum(x, mode)`"),
    ("TimeNotIndexed", "def x(a) = a * i\nop f(q):\n    return $x(q) @ q\n", "in `x(q)`: `a` has", "`a[i]`"),
    (
        "TimeNotIndexed",
        "def x(a) = a * i\ndef y(b) = 2 * x(b)\nop f(q):\n    return $y(q + 1) @ q\n",
        "in `y(q + 1)`: `a` has",
        "`a[i]`",
    ),
    (
        "TooManyNodes",
        "def a1(x) = x + x + x + x\n"
        + "".join(f"def a{n}(x) = a{n - 1}(a{n - 1}(x))\n" for n in range(2, 40))
        + "op f(q):\n    return $a39(q)\n",
        "more than 10000 operators and names",
        "",
    ),
]


def place(marked: str) -> tuple[str, int, int]:
    """The text without its mark, and the mark's line and column."""
    before, _, after = marked.partition("$")
    return before + after, before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


@pytest.mark.parametrize(
    ("name", "marked", "message", "hint"),
    [(name, f"{PARAMS}    return {body}\n", *rest) for name, body, *rest in EXPRESSIONS] + OPS,
    ids=[f"{case[0]}-{case[1]}" for case in EXPRESSIONS] + [f"{case[0]}-op{n}" for n, case in enumerate(OPS)],
)
def test_mistake(name: str, marked: str, message: str, hint: str) -> None:
    text, line, column = place(marked)
    with pytest.raises(SpecError) as caught:
        check_file(Source(text))
    (error,) = caught.value.errors
    assert type(error).__name__ == name, error
    assert error.span is not None
    assert (error.span.line, error.span.column) == (line, column)
    assert message in error.message
    assert hint in error.hint
    assert f"<spec>:{line}:{column}: {error.message}" in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)


def test_every_class_is_tested() -> None:
    kinds = {name for name, kind in vars(mistakes).items() if isinstance(kind, type) and issubclass(kind, SpecError)}
    assert kinds - {"SpecError", "Mistake"} == {case[0] for case in EXPRESSIONS + OPS}
    assert len({case[0] for case in EXPRESSIONS + OPS}) >= 40


def test_all_mistakes_at_once_in_the_order_of_the_text() -> None:
    text = """def half = 1 / zwei
op f(q, x):
    y = qq + x
    z = y * half
    return attend(q, q, k, z) + exp(1, 2)

op g(q):
    return q +

op f(q):
    return time * q
"""
    with pytest.raises(SpecError) as caught:
        check_file(Source(text, "bad.sma"))
    found = [(type(error).__name__, error.span.line) for error in caught.value.errors if error.span]
    assert found == [
        ("UnknownName", 1),
        ("MissingAnnotation", 2),
        ("UnknownName", 3),
        ("UnknownName", 5),
        ("WrongArity", 5),
        ("MissingOperand", 8),
        ("DuplicateOp", 10),
        ("AxisAsNumber", 11),
    ]
    assert str(caught.value).count("bad.sma:") == len(found)


def test_every_statement_is_looked_at() -> None:
    text = """op f(q, x: [time] = 3):
    a = q +
    b = (a * q
    c = a[i:j] *
    return b ** c x

op g(q, k):
    a = q q
    b = a * zeta
    c = (b,
         )
    d = b ** exp + c
    return d + k[t]

op h(q):
    return q *
"""
    with pytest.raises(SpecError) as caught:
        check_file(Source(text))
    found = [(type(error).__name__, error.span.line) for error in caught.value.errors if error.span]
    assert found == [
        ("BadSyntax", 1),
        ("MissingOperand", 2),
        ("UnclosedBracket", 3),
        ("MissingOperator", 5),
        ("MissingOperator", 8),
        ("UnknownName", 9),
        ("BadSyntax", 10),
        ("FunctionNotCalled", 12),
        ("PathPosition", 13),
        ("MissingOperand", 16),
    ]


def test_a_lost_statement_is_the_only_mistake() -> None:
    for line in ("retrun q", "return q +", "x = q +\n    return x", "return q r", "\treturn q", "\u00a0return q"):
        with pytest.raises(SpecError) as caught:
            check_file(Source(f"op f(q):\n    {line}\n"))
        assert len(caught.value.errors) == 1


def test_a_def_that_does_not_parse_is_known() -> None:
    with pytest.raises(SpecError) as caught:
        check_file(Source("def twice(x) = 2 *\ndef four(x) = twice(twice(x))\nop f(q):\n    return four(q)\n"))
    assert [type(error).__name__ for error in caught.value.errors] == ["MissingOperand"]


def test_an_unknown_name_is_told_once_for_each_place() -> None:
    with pytest.raises(SpecError) as caught:
        check_file(Source("op f(q):\n    return x + x * y\n"))
    places = [error.span.column for error in caught.value.errors if error.span]
    assert places == [12, 16, 20]


def test_a_mask_transposed_many_times_counts_as_often() -> None:
    lines = ["L0 = strict"] + [f"L{n} = transpose(L{n - 1}) * exp(i - j)" for n in range(1, 1200)]
    body = "".join(f"    {line}\n" for line in lines)
    with pytest.raises(SpecError) as caught:
        check_file(Source(f"op f(v):\n{body}    return L1199 @ v\n"))
    assert type(caught.value) is mistakes.TooManyNodes


def test_a_product_applied_many_times_counts_as_often() -> None:
    product, uses = " @ ".join(["causal"] * 300), " + ".join(["L @ v"] * 100)
    with pytest.raises(SpecError) as caught:
        check_file(Source(f"op f(v):\n    L = {product}\n    return {uses}\n"))
    assert type(caught.value) is mistakes.TooManyNodes


def test_at_most_a_hundred_mistakes() -> None:
    names = " + ".join(f"x{n}" for n in range(5000))
    with pytest.raises(SpecError) as caught:
        check_file(Source(f"op f(q):\n    return {names}\n"))
    assert len(caught.value.errors) == 100
