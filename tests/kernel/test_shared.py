"""The gradients of heads that share q and k, in Triton's interpreter against the fp64 reference."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from kernel.specs import compiled
from kernel.test_recurrent import run

from sma_compiler.emit.source import emit
from sma_compiler.kernel import config

ROOT = Path(__file__).parents[2]
LIMITS = dict.fromkeys(("float32", "groups", "split", "chunks", "chunks-split", "divided"), 6e-6) | {"float16": 4e-3}
SIZES = {"batch": 8, "time": 4096, "head": 80, "key": 128, "value": 64}


@cache
def errors() -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads(run("interpret_shared"))
    return found


@pytest.mark.parametrize("name", ["mamba2", "simple_gla", "unit_keys", "feature_maps", "open_ends", "factors"])
def test_gradients_match_the_reference(name: str) -> None:
    pytest.importorskip("triton")
    found = {key.split()[1]: one for key, one in errors().items() if key.split()[0] == name}
    assert {"float32", "groups"} <= set(found)
    for case, gradients in found.items():
        assert max(gradients.values()) < LIMITS[case], (case, gradients)


@pytest.mark.parametrize("name", ["one head", "no pairs"])
def test_mutants_do_not(name: str) -> None:
    pytest.importorskip("triton")
    assert max(errors()[name].values()) > 1e-2


@pytest.mark.parametrize(
    ("name", "group", "dtype", "shared"),
    [
        ("mamba2", 1, "bfloat16", True),
        ("mamba2", 10, "float16", True),
        ("mamba2", 16, "bfloat16", False),
        ("mamba2", 1, "float32", False),
        ("two_streams", 1, "bfloat16", False),
        ("linear_attention_normalized", 1, "bfloat16", False),
    ],
)
def test_heads_share_where_there_are_enough(name: str, group: int, dtype: str, shared: bool) -> None:
    op = compiled(name)
    text = emit(op.ir, op.program.plans, "chunked", {**SIZES, "group": group}, dtype, "sm_90").text
    assert (f"def {name}_states_kernel" in text) == shared


def test_the_text_is_golden(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    op = compiled("mamba2")
    text = emit(op.ir, op.program.plans, "chunked", {**SIZES, "group": 1}, "bfloat16", "sm_90").text
    path = ROOT / "tests" / "golden" / "mamba2_shared.py.txt"
    if request.config.getoption("--update-golden"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
    (tmp_path / "emitted.py").write_text(text, encoding="utf-8")
    for command in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--isolated", "--no-cache", str(tmp_path)]
        done = subprocess.run(ruff, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_one_tensor_holds_the_states_of_both_directions() -> None:
    op = compiled("mamba2")
    text = emit(op.ir, op.program.plans, "chunked", {**SIZES, "group": 1}, "bfloat16", "sm_90").text
    assert text.count("(B, H, slots, K, V)") == 1


def test_configurations_fit() -> None:
    for value, outer in ((64, 128), (128, 64)):
        common = config.backward({**SIZES, "value": value}, "bfloat16", "sm_90")
        found = config.shared(common, {**SIZES, "value": value, "group": 1}, "bfloat16", "sm_90")
        assert found["dq"].outer == found["dk"].outer == outer


def test_few_chunks_have_several_programs_for_a_group() -> None:
    sizes = {"batch": 2, "time": 2048, "head": 24, "key": 64, "value": 64, "group": 1}
    for time, share in ((1024, 4), (2048, 2), (4096, 1)):
        common = config.backward({**sizes, "time": time}, "bfloat16", "sm_90")
        found = config.shared(common, {**sizes, "time": time}, "bfloat16", "sm_90")
        assert found["dq"].share == found["dk"].share == share
