"""Benchmarks measure what they say: the einsum program is right, medians are medians, every report has its parts."""

from __future__ import annotations

import json
import time

import pytest
import torch
from typer.testing import CliRunner

from sma_compiler.bench import suite
from sma_compiler.bench.cases import CASES, leaves
from sma_compiler.bench.ssd_einsum import CHUNK, segment_sums, ssd
from sma_compiler.bench.timing import median_times
from sma_compiler.cli.main import app

SMALL = {"batch": 2, "time": 3 * CHUNK, "head": 2, "key": 8, "value": 4}

sma = CliRunner()


def test_the_einsum_program_is_the_recurrence() -> None:
    c, b, x, g = (leaf.detach().double() for leaf in leaves(SMALL))
    state = torch.zeros(2, 2, 8, 4, dtype=torch.float64)
    rows = []
    for t in range(SMALL["time"]):
        state = g[:, t].exp()[..., None, None] * state + b[:, t, :, :, None] * x[:, t, :, None, :]
        rows.append(torch.einsum("bhk,bhkv->bhv", c[:, t], state))
    torch.testing.assert_close(ssd(c, b, x, g), torch.stack(rows, 1))


def test_segment_sums() -> None:
    found = segment_sums(torch.tensor([1.0, 2.0, 3.0]))
    inf = torch.inf
    assert found.tolist() == [[0, -inf, -inf], [2, 0, -inf], [5, 3, 0]]


def test_both_programs_of_the_benchmark_agree() -> None:
    inputs = leaves(SMALL)
    one, other = (CASES[case](inputs) for case in ("chunked", "einsum"))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    cotangent = torch.randn_like(one)
    for mine, theirs in zip(*(torch.autograd.grad(y, inputs, cotangent) for y in (one, other)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


def test_median_times_takes_turns_and_leaves_the_first_round_out() -> None:
    calls: list[str] = []
    pauses = {"a": iter([0.2, 0.01, 0.01, 0.01]), "b": iter([0.0, 0.0, 0.05, 0.0])}

    def run(name: str) -> None:
        calls.append(name)
        time.sleep(next(pauses[name]))

    ticks: list[int] = []
    found = median_times({name: (lambda name=name: run(name)) for name in "ab"}, 3, lambda: ticks.append(1))
    assert calls == ["a", "b"] * 4
    assert len(ticks) == 8
    assert 0.01 <= found["a"] < 0.1
    assert found["b"] < 0.04


def test_plans_side_by_side() -> None:
    shape = ["--shape", "T=64,H=2,K=8,V=8", "--repeats", "1"]
    threads = ["--threads", str(torch.get_num_threads())]
    report = json.loads(sma.invoke(app, ["bench", "retention", *shape, *threads, "--json"]).stdout)
    assert report["threads"] == torch.get_num_threads()
    assert [row["plan"] for row in report["plans"]] == ["quadratic", "recurrent", "chunked"]
    assert all(row["both"] > 0 for row in report["plans"])
    assert report["sizes"]["time"] == 64
    text = sma.invoke(app, ["bench", "sliding_window", *shape, "--set", "w=8", "--plan", "quadratic"]).stdout
    assert "quadratic" in text
    assert "1.00" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--suite cpu"),
        (["--suite", "gpu"], "there are the suites cpu and auto"),
        (["attention", "--plan", "chunked"], "softmax"),
        (["attention", "--plan", "magic"], "magic"),
        (["attention", "--dtype", "int8"], "bf16"),
        (["sliding_window", "--set", "w=wide"], "w: int"),
    ],
)
def test_bad_usage(arguments: list[str], said: str) -> None:
    done = sma.invoke(app, ["bench", *arguments])
    assert done.exit_code == 2
    assert said in done.stderr


def test_the_suite_reports_all_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "SSD_SIZES", SMALL)
    monkeypatch.setattr(suite, "LENGTHS", (512,))
    ticks: list[str] = []
    found = suite.run_suite(1, ticks.append)
    assert len(ticks) == suite.suite_steps(1)
    assert [row.what for row in found.speed] == ["forward", "forward + backward"]
    assert all(row.ratio == pytest.approx(row.einsum / row.chunked) for row in found.speed)
    assert found.memory[0].length == 512
    assert found.memory[0].chunked > 1
    assert 0 < found.import_seconds < found.loaded_seconds < 5
    assert {row.spec for row in found.facts} >= {"mamba2", "attention"}
    assert json.loads(json.dumps(found.to_json()))["speed"][0]["what"] == "forward"
