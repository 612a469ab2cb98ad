"""The table beside other implementations: what it measures, what it says of a peer that is missing or fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from sma_compiler.bench import peers
from sma_compiler.bench.peer_inputs import DOCUMENTS
from sma_compiler.bench.peer_rows import ROWS, Goal, Row, shape_text
from sma_compiler.bench.peer_run import Result, Side, measure_decode, measure_host, measure_row, measure_step
from sma_compiler.bench.peers import PEERS, Arguments, Peer, PeerMissing
from sma_compiler.cli.bench_peers import tables, verdict
from sma_compiler.cli.main import app
from sma_compiler.ir.nodes import Kind

SMALL = {"batch": 1, "time": 48, "head": 2, "key": 8, "value": 4, "group": 1}
BY_NAME = {row.name: row for row in ROWS}

sma = CliRunner()


def no_peer() -> Peer:
    raise PeerMissing("absent cannot be imported: no module named absent")


def copy_of(row: Row, factor: float = 1.0) -> Callable[[], Peer]:
    """A peer that computes what the row's op does, times a factor."""
    call: Callable[..., Tensor] = row.op
    return lambda: Peer(lambda x: factor * call(**x))


def turned(row: Row) -> Callable[[], Peer]:
    """A peer that wants values and steps, and gives its result, with channels before positions."""
    call: Callable[..., Tensor] = row.op

    def turn(x: Arguments) -> Arguments:
        return {**x, "v": x["v"].transpose(1, 2).contiguous()}

    return lambda: Peer(lambda x: call(**turn(x)).transpose(1, 2), turn, lambda y: y.transpose(1, 2))


def failing() -> Peer:
    def run(_: Arguments) -> Tensor:
        raise RuntimeError("not on this Triton\nmore")

    return Peer(run)


def in_order(times: Iterator[float]) -> Callable[[Callable[[], object]], float]:
    def timer(run: Callable[[], object]) -> float:
        run()
        return next(times)

    return timer


@pytest.fixture
def row(monkeypatch: pytest.MonkeyPatch) -> Row:
    row = replace(BY_NAME["mamba2"], peers=("same", "half", "absent", "failing"))
    makers = {"same": copy_of(row), "half": copy_of(row, 0.5), "absent": no_peer, "failing": failing}
    for name, maker in makers.items():
        monkeypatch.setitem(PEERS, name, maker)
    return row


def test_the_smaller_median_of_two_turns_counts_and_the_fastest_peer(row: Row) -> None:
    # forward of sma, same and half; then forward + backward of the three; and once more. `failing` has no times.
    times = [4.0, 9.0, 8.0, 10.0, 30.0, 31.0, 2.0, 7.0, 9.0, 12.0, 25.0, 24.0]
    found = measure_row(row, "cpu", in_order(iter(times)), SMALL)
    same, half, absent, broken = found.peers
    assert (found.ours.forward, found.ours.both) == (2.0, 10.0)
    assert (same.forward, same.both, half.forward, half.both) == (7.0, 25.0, 8.0, 24.0)
    assert found.ratio("forward") == 3.5
    assert found.ratio("both") == 2.4
    assert found.best("both") == half
    assert absent.reason == "absent cannot be imported: no module named absent"
    assert broken.reason == "not on this Triton"
    assert broken.forward is None


def test_errors_are_those_against_fp64(row: Row) -> None:
    found = measure_row(row, "cpu", in_order(iter([1.0] * 12)), SMALL)
    same, half = found.peers[:2]
    for side in (found.ours, same):
        assert side.error is not None
        assert side.gradient is not None
        assert 1e-4 < side.error < 1e-2
        assert 1e-4 < side.gradient < 2e-2
    assert half.error == pytest.approx(0.5, rel=1e-2)
    assert half.gradient == pytest.approx(0.5, rel=2e-2)


def test_a_peer_may_have_a_layout_of_its_own(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEERS, "turned", turned(row))
    found = measure_row(replace(row, peers=("same",), beside=("turned",)), "cpu", in_order(iter([1.0] * 12)), SMALL)
    assert found.best("forward") == found.peers[0]
    (beside,) = found.beside
    assert beside.error is not None
    assert beside.gradient is not None
    assert beside.error < 1e-2
    assert beside.gradient < 2e-2


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_has_an_op_that_takes_its_inputs(row: Row) -> None:
    sizes = {**SMALL, "group": 1 if row.sizes["group"] == 1 else 2}
    arguments = row.inputs(sizes, "cpu")
    call: Callable[..., Tensor] = row.op
    y = call(**arguments, plan=row.plan)
    assert y.shape == arguments["v"].shape
    assert y.isfinite().all()
    assert set(arguments) == {decl.name for decl in row.op.params}
    assert set(row.trained(arguments)) == {decl.name for decl in row.op.params if decl.kind is Kind.REAL} - set(
        row.fixed
    )
    assert {*row.peers, *row.beside} <= set(PEERS)


def test_masks_are_as_the_rows_say() -> None:
    found = BY_NAME["documents"].inputs({**SMALL, "time": 500}, "cpu")["doc"]
    assert found.max() + 1 in (DOCUMENTS, DOCUMENTS - 1)
    assert (found.diff() >= 0).all()
    assert BY_NAME["window"].inputs(BY_NAME["window"].sizes | {"head": 1, "batch": 1}, "cpu")["w"] == 1024


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("name", ["attention", "window", "documents", "alibi"])
def test_flex_attention_computes_what_the_op_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.compile  # which an eager call uses, too, with other options
    eager = {"dynamic": False}
    monkeypatch.setattr(torch, "compile", lambda run, **options: run if options == eager else whole(run, **options))
    row = BY_NAME[name]
    arguments = row.inputs({"batch": 2, "time": 200, "head": 2, "key": 16, "value": 16, "group": 2}, "cpu")
    peer = PEERS[row.peers[0]]()
    with torch.no_grad():  # its gradients need a GPU
        y = peer.taken(peer.run(peer.given(arguments)))
    exact = row.op.reference(**arguments)
    assert 1e-4 < (y - exact).norm() / exact.norm() < 1e-2


def test_rows_are_those_of_the_goals() -> None:
    shapes = [row.shape for row in ROWS]
    assert shapes[0] == "B8 T4096 H80 K128 V64 G1"
    assert shapes[4] == "B8 T4096 H16 K128 V128"
    assert shape_text(SMALL) == "B1 T48 H2 K8 V4 G1"
    assert BY_NAME["mamba2-k256"].forward == Goal(1.6, 2.6)


def test_peers_that_are_not_installed_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(f"no {name}")))
    for maker in PEERS.values():
        with pytest.raises(PeerMissing, match="cannot be imported: no "):
            maker()


def test_a_step_is_measured_beside_a_copy_of_its_state() -> None:
    found = measure_step("cpu", in_order(iter([3.0, 4.0, 2.0, 5.0])), {**SMALL, "batch": 2})
    assert found.value == 0.5
    assert found.details == {"copy": 2.0, "step": 4.0}
    assert not found.less


def test_a_step_of_softmax_reads_a_full_cache() -> None:
    sizes = {"batch": 2, "time": 8, "head": 4, "key": 8, "value": 8, "group": 2}
    found = measure_decode("cpu", in_order(iter([3.0, 4.0, 2.0, 5.0])), sizes)
    assert found.reason == ""
    assert found.value == 0.5
    assert found.shape == "B2 T8 H4 K8 V8 G2"


def test_host_time_is_in_microseconds() -> None:
    found = measure_host("cpu", calls=5)
    assert found.value is not None
    assert 10 < found.value < 1e6
    assert found.less


def test_verdicts() -> None:
    assert [verdict(x, 2, 3) for x in (None, 1.9, 2.0, 3.5)] == ["not measured", "missed", "must", "aim"]
    assert [verdict(-x, -60, -30) for x in (61, 45, 30)] == ["missed", "must", "aim"]


def test_the_tables_print_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    goals = {"forward": Goal(2, 3), "both": Goal(1, 2)}
    ours = Side("sma", 1.5, 6.0, 100, 1e-3, 2e-3)
    rows = [Result("one", "B1 T2", ours, (Side("x", 3.6, reason="gradients refused"), Side("y", reason="none")), goals)]
    Console(width=160).print(tables(rows, []))
    text = capsys.readouterr().out
    assert "one, forward" in text
    assert "3.600 x" in text
    assert "2.40" in text
    assert "gradients refused" in text
    assert text.count("not measured") == 1


def test_the_command_measures_the_rows_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = sma.invoke(app, ["bench", "--peers", "--rows", "nothing"])
    assert result.exit_code != 0
    assert "there are mamba2, " in str(result.output) + str(result.exception)
    if not torch.cuda.is_available():
        assert "CUDA" in str((refused := sma.invoke(app, ["bench", "--peers"])).output) + str(refused.exception)
    side = Side("sma", 1.0, 2.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(
        "sma_compiler.cli.bench_peers.measure_row",
        lambda row, device: Result(row.name, device, side, (), {"forward": row.forward, "both": row.both}),
    )
    found = sma.invoke(app, ["bench", "--peers", "--rows", "linear", "--out", str(tmp_path / "o"), "--json"])
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    assert [row["name"] for row in report["rows"]] == ["linear"]
    assert report["device"]["name"] == "a GPU"
    assert json.loads((tmp_path / "o" / "peers.json").read_text()) == report
