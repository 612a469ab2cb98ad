"""`sma verify`: it passes on the library, and fails where a plan is wrong."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from typer.testing import CliRunner

from sma_compiler.cli import verify as command
from sma_compiler.cli.main import app
from sma_compiler.verify.cases import Case

SMALL = ["--shape", "T=65,K=4,V=4"]

sma = CliRunner()


def test_verify_passes_and_covers_every_plan_output_and_gradient() -> None:
    done = sma.invoke(app, ["verify", "retention", "--quick", "--json", *SMALL])
    assert done.exit_code == 0, done.stdout
    report = json.loads(done.stdout)
    assert report["ok"]
    assert {check["plan"] for check in report["checks"]} == {"quadratic", "recurrent", "chunked"}
    assert {check["what"] for check in report["checks"]} == {"output", "d q", "d k", "d v", "d gamma"}
    assert {check["dtype"] for check in report["checks"]} == {"float32"}


def test_verify_prints_a_table_and_a_verdict() -> None:
    done = sma.invoke(app, ["verify", "sliding_window", "--quick", "--dtype", "bf16", *SMALL])
    assert done.exit_code == 0, done.stdout
    assert "bfloat16" in done.stdout
    assert "checks are within their bounds" in done.stdout


def test_verify_fails_where_a_result_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    right = command.make_case

    def shifted(*arguments: object, **settings: object) -> Case:
        case = right(*arguments, **settings)
        output = case.exact["output"]
        wrong = torch.cat([output[:, :1] * 1.001, output[:, 1:]], 1)
        return dataclasses.replace(case, exact={**case.exact, "output": wrong})

    monkeypatch.setattr(command, "make_case", shifted)
    done = sma.invoke(app, ["verify", "attention", "--quick", *SMALL])
    assert done.exit_code == 1
    assert "FAIL" in done.stdout
    assert "failed" in done.stdout


def test_an_unknown_dtype_is_bad_usage() -> None:
    done = sma.invoke(app, ["verify", "attention", "--dtype", "int8"])
    assert done.exit_code == 2
    assert "bf16" in done.stderr
