"""`sma bench --suite auto`: shapes of every family, measurements that are kept, resumed and summed up truly."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import sma_compiler as sma
from sma_compiler.bench import auto
from sma_compiler.bench.auto import Beside, ForeignMeasurements, Found, Timed, read, run_rows, write
from sma_compiler.bench.auto_peers import peer_row, peer_times
from sma_compiler.bench.auto_plan import situation_at
from sma_compiler.bench.auto_rows import AUTO_ROWS, AutoRow
from sma_compiler.bench.peers import PEERS, Arguments, Peer, PeerMissing
from sma_compiler.bench.verdict import Rival, Summary, Verdict, judge, rival, summary, verdicts
from sma_compiler.cli.bench_auto import peers_text
from sma_compiler.cli.main import app
from sma_compiler.kernel.choices import Choices
from sma_compiler.plan.devices import CPU, H100
from sma_compiler.tune.report import Candidate
from sma_compiler.tune.setting import from_shape, situation
from sma_compiler.tune.space import signatures

ROOT = Path(__file__).parents[1]
SMALL = AutoRow("simple_gla", {"batch": 1, "time": 1024, "head": 8, "key": 32, "value": 32})
OTHER = AutoRow("attention", {"batch": 1, "time": 1024, "head": 8, "key": 32, "value": 32})


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SMA_CACHE_DIR", str(tmp_path / "cache"))


def test_the_shapes_are_of_every_family() -> None:
    assert len(AUTO_ROWS) >= 30
    assert len({row.name for row in AUTO_ROWS}) == len(AUTO_ROWS)
    assert {row.op for row in AUTO_ROWS} == set(sma.library())


@pytest.mark.parametrize("row", AUTO_ROWS, ids=lambda row: row.name)
def test_every_shape_can_be_had_on_a_cpu(row: AutoRow) -> None:
    setting = from_shape(
        sma.library(row.op).program, row.shape("cpu"), torch.float32, torch.device("cpu"), training=True, seed=0
    )
    sizes = row.shape("cuda")
    assert setting.sizes["time"] <= sizes["time"]
    if "group" in sizes:
        assert setting.sizes["group"] in (row.shape("cpu")["group"], setting.sizes["head"])
    given = sma.library(row.op).program, row.shape("cpu"), "float32", CPU, ""
    assert situation(*given, training=True).sizes == setting.sizes
    assert {"mamba2": 1}.get(row.op, setting.sizes.get("group")) == setting.sizes.get("group")


def fake(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Measurements that take no time; the names of the rows that were measured."""
    measured: list[str] = []

    def measure(row: AutoRow, device: torch.device, planned: list[Timed] | str) -> Found:
        measured.append(row.name)
        return Found(
            row.name,
            auto.device_name(device),
            torch.__version__,
            auto.triton_version(),
            "",
            () if isinstance(planned, str) else tuple(planned),
        )

    monkeypatch.setattr(auto, "measure_row", measure)
    return measured


def test_a_run_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path, told = tmp_path / "deep" / "auto.json", []
    measured = fake(monkeypatch)
    tick: Callable[[str], None] = told.append
    run_rows([SMALL], path, "cpu", None, tick)
    run_rows([SMALL, OTHER], path, "cpu", None, tick)
    assert measured == [SMALL.name, OTHER.name]
    assert told == [SMALL.name, SMALL.name, OTHER.name]
    assert set(read(path)) == {SMALL.name, OTHER.name}
    monkeypatch.setattr(auto, "triton_version", lambda: "of tomorrow")
    run_rows([SMALL, OTHER], path, "cpu", 0.0, tick)
    assert len(measured) == 2
    run_rows([SMALL, OTHER], path, "cpu", None, tick)
    assert len(measured) == 4


def test_failures_are_kept_and_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "auto.json"
    broken = AutoRow("simple_gla", {"batch": 1})
    found = run_rows([broken], path, "cpu", None, lambda _: None)
    assert "the size 'time' is missing" in found[broken.name].error
    measured = fake(monkeypatch)
    run_rows([broken], path, "cpu", None, lambda _: None)
    assert measured == [broken.name]


def test_the_summary_counts_every_measurement() -> None:
    one = Verdict("a", "x", 1.1, "y", 1.0, 3.2, "y", 2.0)
    other = Verdict("b", "x", 1.0, "x", 1.0)
    rows = [AutoRow("a", {}), AutoRow("b", {}), AutoRow("c", {})]
    assert summary(rows, [one, other]) == Summary(2 / 3, 1.6, 2, 1)
    assert not summary(rows, [one, other]).kept
    assert summary(rows, [other]).kept
    beside = replace(other, rival=Rival("p", 3.0, None, 1.0, 2.0))
    assert summary(rows, [one, beside]).least == 3.0


def test_a_verdict_knows_picks_by_their_configurations() -> None:
    row = AutoRow("retention", {"batch": 2, "time": 256, "head": 4, "key": 64, "value": 64})
    at = situation_at(row, H100.name)
    usual, more = (
        Candidate("triton", "chunked", Choices.of(numbers))
        for numbers in ({}, {"forward": {"warps": 8}, "dq": {"stages": 1}})
    )
    same = Choices.of({"forward": {"stages": 3, "warps": 4}, "backward": {"stages": 1}})
    assert signatures(at, usual) == signatures(at, Candidate("triton", "chunked", same))
    assert not set(signatures(at, usual)) & set(signatures(at, more))
    slow, fast = (
        Timed("triton", one.pick, *signatures(at, one), "", *times)
        for one, *times in ((Candidate("triton", "chunked", same), 1.5, 1.6, 3.0), (more, 1.0, 1.0, 4.0))
    )
    wrong = Timed("triton", "quadratic", "a", "b", "", 0.1, 0.1, 0.1, refused="wrong")
    found = Found(row.name, H100.name, "", "", "", (slow, fast, wrong))
    verdict = judge(row, found)
    assert (verdict.auto, verdict.forward, verdict.best_forward) == ("triton chunked", 1.5, 1.0)
    assert (verdict.training, verdict.best_training) == (4.6, 4.0)  # the forward of one, the gradients of the other
    assert "with the gradients of" in verdict.best_for_training
    for others, words in (((), "not measured"), ((replace(slow, pick="chunked", refused="no memory"),), "no memory")):
        assert judge(row, Found(row.name, H100.name, "", "", "", (fast, *others))).error.endswith(words)


def test_candidates_are_measured_again_where_their_kernels_changed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "auto.json"
    measured = fake(monkeypatch)
    run_rows([SMALL], path, "cpu", None, lambda _: None)
    (found,) = read(path).values()
    changed = replace(found, candidates=(replace(found.candidates[0], file="other"), *found.candidates[1:]))
    beside = {
        "peers": {"one": Beside(1.0, 2.0), "two": Beside(reason="missing")},
        "called": Beside(0.5, 1.5, date="now"),
    }
    write(path, {SMALL.name: replace(changed, **beside)})
    again = run_rows([SMALL], path, "cpu", None, lambda _: None)[SMALL.name]
    assert measured == 2 * [SMALL.name]
    assert sorted(map(str, again.candidates)) == sorted(map(str, found.candidates))
    assert {"peers": again.peers, "called": again.called} == beside


def test_peers_are_measured_where_they_have_the_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {row.name: peer_row(row) for row in AUTO_ROWS}
    own = rows["mamba2-B8-T4096-H80-K128-V64-G1"]
    assert own is not None
    assert (own.peers, own.sizes["group"]) == (("mamba_ssm",), 1)
    assert rows["rwkv4-B8-T2048-H2048"] is None
    assert sum(row is not None for row in rows.values()) >= 30
    assert {name for row in rows.values() if row for name in row.peers} <= set(PEERS)
    row = peer_row(AutoRow("retention", {"batch": 1, "time": 8, "head": 2, "key": 4, "value": 4}))
    assert row is not None
    call, given = row.op, row.inputs(row.sizes, "cpu")

    def times(runs: Mapping[str, Callable[[], object]]) -> dict[str, float | Exception]:
        return {name: float(run() is None) for name, run in runs.items()}

    def without_gradients(x: Arguments) -> torch.Tensor:
        if x["q"].requires_grad:
            raise RuntimeError("no gradients\nfor reasons")
        return call(**x)

    def missing() -> Peer:
        raise PeerMissing("no such package")

    for make, expected in (
        (lambda: Peer(lambda x: call(**x)), (1.0, 1.0, "")),
        (lambda: Peer(without_gradients), (1.0, None, "both: no gradients")),
        (missing, (None, None, "no such package")),
    ):
        monkeypatch.setitem(PEERS, row.peers[0], make)
        (found,) = peer_times(row, given, times).values()
        assert (found.forward, found.both, found.reason) == expected


def test_the_table_of_peers_tells_ratios_and_reasons() -> None:
    row, other = AutoRow("retention", {"time": 8}), AutoRow("rwkv4", {"time": 8})
    plain = Found(row.name, "a device", "1", "2", "", (Timed("triton", "chunked", forward=2e-3),))
    known = {"one": Beside(3e-3, None, "both: no gradients", "2030-01-02T03:04:05Z"), "two": Beside(reason="missing")}
    text = peers_text([row, other], {row.name: replace(plain, peers=known)})
    assert ["one,", "two", "3.000", "2.000", "1.50", "-", "-", "-"] in [line.split()[1:] for line in text.splitlines()]
    for words in (
        "a device, torch 1, Triton 2; peers 2030-01-02",
        "1 ratios, 0 below 1",
        "both: no gradients; missing",
    ):
        assert words in text
    assert text.endswith(f"no peer: {other.name}")
    called = replace(plain, peers=known, called=Beside(4e-3, 9e-3))
    assert rival(called).ratios == (0.75, None)
    assert "1 ratios, 1 below 1" in peers_text([row], {row.name: called})


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    for text in ("no json", "[]", '{"rows": [{"name": "a"}]}'):
        path.write_text(text)
        with pytest.raises(ForeignMeasurements, match="name another file"):
            read(path)
    write(path, {})
    assert read(path) == {}


def test_rows_are_measured_by_plans_of_torch_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "auto.json"
    arguments = ["bench", "--suite", "auto", "--rows", "mamba2-B16", "--out", str(out)]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    found = json.loads(done.stdout)
    (row,) = found["rows"]
    assert row["auto"].startswith("torch ")
    assert len(row["ratios"]) == 2
    assert all(ratio >= 1.0 for ratio in row["ratios"])
    assert found["worst"] == max(row["ratios"])
    assert len(read(out)) == 1
    again = CliRunner().invoke(app, [*arguments, "--report"])
    assert again.exit_code == done.exit_code
    assert "auto is within 15% of the best" in again.stdout
    assert not (tmp_path / "cache" / "tune").exists()  # nothing is kept for calls to go by
    assert CliRunner().invoke(app, ["bench", "--suite", "auto", "--rows", "nothing"]).exit_code == 2


def test_what_is_promised_holds_for_what_was_measured() -> None:
    found = read(ROOT / "sma_compiler" / "bench" / "measured" / "h100.json")
    seen = summary(AUTO_ROWS, verdicts(AUTO_ROWS, found))
    assert seen.kept
    assert seen.least is not None
    assert seen.least >= 1.0
