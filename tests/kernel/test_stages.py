"""Ops of several contractions as chains of stages."""

from __future__ import annotations

import json
from functools import cache

import pytest
from kernel.interpret_stages import MUTANTS, RUNS
from kernel.test_recurrent import run

import sma_compiler as sma
from sma_compiler.ir.nodes import Attend, Contraction, postorder
from sma_compiler.ir.show import show_expr
from sma_compiler.kernel.errors import NoTritonKernel
from sma_compiler.kernel.stages import Stage, split

LIMITS = {"float32": 6e-6, "float16": 4e-3}
"""Relative errors: of fp32 sums over a few hundred products, and of fp16 operands."""


@cache
def errors() -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads(run("interpret_stages"))
    return found


@pytest.mark.parametrize(("name", "dtype"), RUNS)
def test_files_match_the_reference(name: str, dtype: str) -> None:
    pytest.importorskip("triton")
    found = errors()[f"{name} {dtype}"]
    assert max(found.values()) < LIMITS[dtype], found


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_do_not(name: str) -> None:
    pytest.importorskip("triton")
    assert max(errors()[name].values()) > 1e-2


def stages(op: sma.CompiledOp) -> tuple[Stage, ...]:
    return split(op.ir, op.program.plans)


def test_ops_of_one_attend_have_none() -> None:
    assert stages(sma.library("mamba2")) == ()


def test_what_a_stage_gives_is_a_parameter_of_later_ones() -> None:
    found = stages(sma.library("rwkv7"))
    assert [stage.site for stage in found] == ["attend0", "attend1", "solve0", "attend2"]
    assert [[decl.name for decl in stage.given] for stage in found] == [
        ["q", "k", "v", "w"],
        ["k", "v", "a", "w"],
        ["a", "b", "w", "attend1"],
        ["q", "w", "b", "attend0", "solve0"],
    ]
    assert found[-1].value is None
    for stage in found:
        contractions = [node for node in postorder((stage.op.result,)) if isinstance(node, Contraction)]
        assert len(contractions) == 1
        assert isinstance(contractions[0], Attend)


def test_a_solve_is_a_fixed_point() -> None:
    solve, _ = stages(sma.library("delta_net"))
    assert solve.right is not None
    assert solve.op.params[-1] is solve.value
    assert show_expr(solve.op.result).startswith(f"{show_expr(solve.right)} - attend(")


def test_values_have_names_of_their_own() -> None:
    spec = """
op f(q, attend0: [time, head, key], v):
    return attend(causal, q, attend0, attend(causal, q, q, v))
"""
    first, _ = stages(sma.compile(spec))
    assert first.value is not None
    assert first.value.name == "attend0_"


def test_an_expression_of_a_solve_has_no_stages() -> None:
    spec = """
op f(k, v):
    return 2 * solve(strict, k, k, v)
"""
    with pytest.raises(NoTritonKernel, match="a `solve` is the result itself"):
        stages(sma.compile(spec))


@pytest.mark.parametrize("plan", ["chunked", "recurrent", "quadratic"])
def test_beside_a_stage_without_states_there_are_none(plan: str) -> None:
    spec = """
op f(q, k, v):
    return attend(causal, q, k, attend(causal, k, k, v, normalize=softmax))
"""
    text = sma.compile(spec).source(plan)
    assert "\ndef f_backward(" in text
    assert "initial_state" not in text.partition("\ndef f(")[2]
    assert "_step(" not in text
    assert "_cached(" not in text
