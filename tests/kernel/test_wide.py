"""Products of fp32 files in fp64: on an H100 alone, and all of them."""

from __future__ import annotations

import pytest
from kernel.specs import compiled

from sma_compiler.interface import library
from sma_compiler.kernel.build import E, call, dot, path
from sma_compiler.kernel.nodes import Do, Function, Name, Tile
from sma_compiler.kernel.wide import widened

WALKS = ("gla", "simple_gla")


def tile(name: str, dtype: str = "dot") -> E:
    return E(Name(Tile(dtype, ("C", "C")), name))


def test_products_and_what_they_are_added_to() -> None:
    a, b, c = tile("a"), tile("b"), tile("c", "fp32")
    made = [dot(a, b), dot(a, b, c), c - dot(a, -b), -dot(a, b) * 2.0]
    wide = call("wide_dot", a, b, path("PRECISION"), tile=c.tile)
    wanted = [wide, c + wide, c + wide, -wide * 2.0]
    before = Function("f", (), (), tuple(Do(x.node) for x in made), jit=True)
    assert [x.value for x in widened(before).body if isinstance(x, Do)] == [x.node for x in wanted]


@pytest.mark.parametrize(("dtype", "target", "wide"), [("float32", "sm_90", True), ("float32", "sm_80", False)])
def test_files_have_one_kind_of_product(dtype: str, target: str, *, wide: bool) -> None:
    text = compiled("simple_gla").source("chunked", {}, dtype, target)
    assert ("wide_dot(" in text) == wide
    assert text.count("tl.dot(") == 2 * wide or not wide


@pytest.mark.parametrize("name", WALKS)
@pytest.mark.parametrize(
    ("dtype", "target", "wide"), [("float32", "sm_90", 1), ("float32", "sm_80", 0), ("bfloat16", "sm_90", 0)]
)
def test_rows_of_sums_for_gates_are_products_in_fp64(name: str, dtype: str, target: str, wide: int) -> None:
    text = library(name).source("recurrent", {}, dtype, target)
    assert text.count("wide_row(b_") == wide
