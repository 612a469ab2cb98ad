"""An op without a contraction: every command says what there is of it, or why there is nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import sma_compiler as sma
from sma_compiler.call_errors import RefusedPlan
from sma_compiler.cli.main import app

TEXT = "op gate(v, x: [time, value]):\n    return v * silu(x)\n"
SHAPE = ["--shape", "B=1,T=65,H=2,V=4"]

cli = CliRunner()


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "gate.sma"
    path.write_text(TEXT)
    return str(path)


def test_it_is_explained_and_called() -> None:
    op = sma.compile(TEXT)
    assert "no contraction" in str(op.explain())
    v, x = torch.randn(1, 5, 2, 4), torch.randn(1, 5, 4)
    assert torch.allclose(op(v, x), v * torch.nn.functional.silu(x)[:, :, None])
    with pytest.raises(RefusedPlan, match="the op has no contraction"):
        op(v, x, plan="chunked")


@pytest.mark.parametrize("command", ["explain", "verify", "bench"])
def test_what_there_is(file: str, command: str) -> None:
    done = cli.invoke(app, [command, file, *SHAPE])
    assert done.exit_code == 0, done.output
    found = json.loads(cli.invoke(app, [command, file, *SHAPE, "--json"]).stdout)
    if command == "verify":
        assert {(check["plan"], check["dtype"]) for check in found["checks"]} >= {
            ("auto", "float32"),
            ("auto", "bfloat16"),
        }
    if command == "bench":
        assert [row["plan"] for row in found["plans"]] == ["auto"]


@pytest.mark.parametrize(
    "command",
    [["emit"], ["inspect", "--stage", "tile"], ["draw", "-o", "x.svg"], ["draw", "-o", "x.svg", "--crossover"]],
    ids=" ".join,
)
def test_what_there_is_not(file: str, command: list[str]) -> None:
    done = cli.invoke(app, [command[0], file, *command[1:]])
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert "gate has no" in done.stderr
