"""Mutated and random specs: whatever the text, the answer is ops or a SpecError, soon.

`SMA_FUZZ` sets the number of mutated specs.
"""

from __future__ import annotations

import os
import random
import re
import time

from hypothesis import given

from sma_compiler.errors import SpecError
from sma_compiler.ir.check import check_file
from sma_compiler.ir.nodes import Op
from sma_compiler.ir.show import show_expr
from sma_compiler.source import Source
from sma_compiler.syntax import tree
from sma_compiler.syntax.locate import library_names, library_source, prelude_source
from sma_compiler.syntax.parse import parse
from sma_compiler.syntax.show import show
from tests.syntax.specs import files

COUNT = int(os.environ.get("SMA_FUZZ", "5000"))
SLOWEST_S = 5.0

TOKEN = re.compile(r"\n *|[A-Za-z_0-9.]+|<=|>=|==|!=|\*\*|//| +|[^\s]")
SPECS = [library_source(name).text for name in library_names()] + [prelude_source().text]
TOKENS = [
    *sorted({token for spec in SPECS for token in TOKEN.findall(spec)}),
    *("and", "or", "not", "transpose(", "levels(", "solve(", "rope(", "where(", "softmax(", "max(", "toeplitz("),
    *("9007199254740993", "1e308", "0", "-", "**", "//", "%", "!=", "mode", "level", "lag", "bool", "real", "int"),
    *("shift(x)", "[t]", "[i - j]", "(i - j)", "documents(", "prefix(", "semiseparable(", "normalize=max1"),
]
CHARACTERS = " \n\t\r\0()[]:,=<>!+-*/%@#.0123456789abcijtqkvx_\\\"'`{}\u00e9\u2028\u0663\ud800\U0001f600"


def mutated(rng: random.Random) -> str:
    """A spec with a few tokens, characters or lines changed, or put together from two."""
    spec = rng.choice(SPECS)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
        way = rng.randrange(4)
        parts = TOKEN.findall(spec) if way < 2 else list(spec) if way == 2 else spec.splitlines(keepends=True)
        if not parts:
            continue
        at, other = rng.randrange(len(parts)), rng.randrange(len(parts))
        change = rng.randrange(5)
        if change == 0:
            del parts[at]
        elif change == 1:
            parts.insert(at, parts[other])
        elif change == 2:
            parts[at], parts[other] = parts[other], parts[at]
        elif way == 3:
            parts.insert(at, rng.choice(rng.choice(SPECS).splitlines(keepends=True)))
        else:
            fresh = rng.choice(TOKENS if way < 2 else CHARACTERS)
            parts[at : at + (change == 3)] = [fresh]
        spec = "".join(parts)
    return spec


def survives(text: str) -> tuple[Op, ...]:
    """The ops of any text, none where it has mistakes; each mistake has a place and prints."""
    ops: tuple[Op, ...] = ()
    found: tuple[SpecError, ...] = ()
    started = time.process_time()
    try:
        ops = check_file(Source(text))
    except SpecError as error:
        found = error.errors
    assert time.process_time() - started < SLOWEST_S
    assert bool(ops) != bool(found)
    lines = text.split("\n")
    for each in found:
        assert each.span is not None
        assert 1 <= each.span.line <= len(lines)
        assert 1 <= each.span.column <= len(lines[each.span.line - 1]) + 1
    return ops


def test_mutated_specs() -> None:
    accepted = 0
    for seed in range(COUNT):
        text = mutated(random.Random(seed))
        try:
            for op in survives(text):
                accepted += 1
                shown = show_expr(op.result)
                header = op.text[: op.text.index("):") + 2] if "):\n" in op.text else ""
                if header and "..." not in shown and "#" not in header:
                    (again,) = check_file(Source(f"{header}\n    return {shown}\n"))
                    assert show_expr(again.result) == shown
        except Exception as error:
            raise AssertionError(f"seed {seed}: {text!r}") from error
    assert accepted > COUNT / 100


@given(files)
def test_random_specs(file: tree.File) -> None:
    survives(show(file))


def test_random_bytes() -> None:
    for seed in range(COUNT // 10):
        rng = random.Random(seed)
        text = "".join(rng.choice(CHARACTERS) for _ in range(rng.randrange(80)))
        survives(rng.choice(["", "op f(q):\n    return ", "def x = "]) + text)


def test_mutated_trees_print_back() -> None:
    for seed in range(COUNT // 5):
        try:
            file = parse(Source(mutated(random.Random(seed))))
        except SpecError:
            continue
        assert parse(Source(show(file))) == file
