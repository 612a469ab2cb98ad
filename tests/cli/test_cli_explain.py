"""`sma explain`, `inspect`, `emit` and `tune`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sma_compiler.cli.main import app
from sma_compiler.cli.stages import KERNEL_STAGES, STAGES
from sma_compiler.syntax.locate import library_names

TWO = "op a(q, k, v):\n    return attend(causal, q, k, v)\n\nop b(v):\n    return decay(-0.5) @ v\n"

sma = CliRunner()


@pytest.fixture
def two(tmp_path: Path) -> str:
    path = tmp_path / "two.sma"
    path.write_text(TWO)
    return str(path)


@pytest.mark.parametrize("name", library_names())
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_of_every_library_spec(name: str, stage: str) -> None:
    done = sma.invoke(app, ["inspect", name, "--stage", stage])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.strip()
    assert json.loads(sma.invoke(app, ["inspect", name, "--stage", stage, "--json"]).stdout)


def test_inspect_tree_has_places() -> None:
    lines = sma.invoke(app, ["inspect", "sliding_window", "--stage", "tree"]).stdout.splitlines()
    assert any(line.startswith("2:") and "Op name='sliding_window'" in line for line in lines)
    assert any("Chain operators=/" in line for line in lines)
    data = json.loads(sma.invoke(app, ["inspect", "sliding_window", "--stage", "tree", "--json"]).stdout)
    assert data["items"][0]["name"] == "sliding_window"
    assert data["items"][0]["line"] == 2


def test_inspect_mask_shows_streams_and_bands() -> None:
    (mask,) = json.loads(sma.invoke(app, ["inspect", "mamba2", "--stage", "mask", "--json"]).stdout)
    (stream,) = mask["streams"]
    assert stream["side"] == "lower"
    assert len(stream["gates"]) == 1
    assert mask["lo"] == "0"
    (window,) = json.loads(sma.invoke(app, ["inspect", "sliding_window", "--stage", "mask", "--json"]).stdout)
    assert window["hi"] == "w - 1"


def test_inspect_facts_and_plan() -> None:
    (facts,) = json.loads(sma.invoke(app, ["inspect", "mamba2", "--stage", "facts", "--json"]).stdout)
    assert (facts["causal"], facts["gate"], facts["lower_rank"], facts["upper_rank"]) == (True, "scalar", 1, 0)
    assert facts["reasons"]["causal"]
    plans = json.loads(sma.invoke(app, ["inspect", "attention", "--stage", "plan", "--json"]).stdout)
    assert [plan["name"] for plan in plans["legal"]] == ["quadratic"]
    assert "softmax" in plans["refused"]["chunked"]


@pytest.mark.parametrize("stage", KERNEL_STAGES)
def test_kernel_stages(stage: str) -> None:
    if stage not in ("tile", "triton"):
        pytest.importorskip("triton")
    done = sma.invoke(app, ["inspect", "retention", "--stage", stage, "--shape", "B=2,T=256,H=4,K=32,V=32"])
    assert done.exit_code == 0, done.stderr
    assert "retention_forward_kernel" in done.stdout


def test_kernel_stages_of_what_has_no_kernel_are_refused_clearly() -> None:
    done = sma.invoke(app, ["inspect", "hydra", "--stage", "triton"])
    assert done.exit_code == 2
    assert "hydra has no Triton kernel" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_emit_writes_what_it_prints(tmp_path: Path) -> None:
    printed = sma.invoke(app, ["emit", "mamba2", "--shape", "B=8,T=4096,H=80,K=128,V=64", "--target", "sm_80"])
    assert printed.exit_code == 0, printed.stderr
    path = tmp_path / "mamba2.py"
    command = ["emit", "mamba2", "--shape", "B=8,T=4096,H=80,K=128,V=64", "--target", "sm_80", "-o", str(path)]
    assert sma.invoke(app, command).exit_code == 0
    assert path.read_text() == printed.stdout


def test_tuning_without_all_sizes_is_refused_clearly() -> None:
    done = sma.invoke(app, ["tune", "mamba2", "--shape", "T=64"])
    assert done.exit_code == 2
    assert "mamba2: the size 'batch' is missing" in done.stderr


def test_an_unknown_stage_lists_the_stages() -> None:
    done = sma.invoke(app, ["inspect", "mamba2", "--stage", "soup"])
    assert done.exit_code == 2
    assert all(stage in done.stderr for stage in (*STAGES, *KERNEL_STAGES))


def test_one_op_of_several(two: str) -> None:
    assert sma.invoke(app, ["inspect", two, "--stage", "facts", "--op", "b"]).exit_code == 0
    for command in (["inspect", two, "--stage", "facts"], ["inspect", two, "--stage", "facts", "--op", "c"]):
        done = sma.invoke(app, command)
        assert done.exit_code == 2
        assert "a, b" in done.stderr


def test_explain_takes_every_op_of_a_file(two: str) -> None:
    reports = json.loads(sma.invoke(app, ["explain", two, "--json"]).stdout)
    assert [report["op"] for report in reports] == ["a", "b"]
    assert reports[0]["at_shape"] is None
    text = sma.invoke(app, ["explain", two]).stdout
    assert text.index("a(") < text.index("b(")


def test_explain_says_why() -> None:
    text = sma.invoke(app, ["explain", "mamba2"]).stdout
    for word in ("causal", "lower_rank", "state", "chunked", "toeplitz"):
        assert word in text


def test_explain_at_a_shape() -> None:
    shape = ["--shape", "B=1,T=4096,H=8,K=64,V=64"]
    (report,) = json.loads(sma.invoke(app, ["explain", "mamba2", *shape, "--json"]).stdout)
    (at_shape,) = report["at_shape"]
    assert at_shape["auto"] == "chunked"
    assert at_shape["state_size"] == 64 * 64
    assert set(at_shape["seconds"]) == {"quadratic", "recurrent", "chunked"}
    (window,) = json.loads(sma.invoke(app, ["explain", "sliding_window", *shape, "--json"]).stdout)
    assert window["at_shape"][0]["lower_rank"] is None
    with_width = ["explain", "sliding_window", *shape, "--set", "w=128", "--json"]
    (window,) = json.loads(sma.invoke(app, with_width).stdout)
    assert window["at_shape"][0]["lower_rank"] == 127
    text = sma.invoke(app, ["explain", "mamba2", *shape]).stdout
    assert "auto takes chunked" in text
    assert "predicted on NVIDIA H100 80GB HBM3, bfloat16" in text
    assert "from T = 1 on " in text
    (cpu, h100) = report["predicted"]
    assert {(one["backend"], one["plan"]) for one in h100["plans"]} >= {("triton", "chunked"), ("torch", "quadratic")}
    assert all(one["backend"] == "torch" for one in cpu["plans"])
    assert h100["fastest"][-1]["plan"] == "chunked"
    unknown = sma.invoke(app, ["explain", "mamba2", *shape, "--device", "abacus"])
    assert (unknown.exit_code, "choose from cpu, h100, gpu" in unknown.stderr) == (2, True)
