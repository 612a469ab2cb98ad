"""The tuner: what wins, what is rejected, what later calls go by; on plans of torch, and on stand-ins for kernels."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from runtime import stand_in
from torch import Tensor
from typer.testing import CliRunner

import sma_compiler as sma
from sma_compiler import call_errors as errors
from sma_compiler.cli.main import app
from sma_compiler.kernel.choices import Choices, plan_text
from sma_compiler.plan.devices import H100
from sma_compiler.runtime import execute, kernels, records, self_check, tuned
from sma_compiler.runtime.kernels import Kernel
from sma_compiler.runtime.op import CompiledOp
from sma_compiler.tune import search, timers
from sma_compiler.tune import setting as settings
from sma_compiler.tune.report import Candidate
from sma_compiler.tune.setting import Setting, from_shape
from sma_compiler.verify.samples import default_sizes, samples

SHAPE = {"B": 1, "T": 40, "H": 2, "K": 4, "V": 4}
GLA = sma.library("simple_gla")


@pytest.fixture(autouse=True)
def _own_records(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SMA_CACHE_DIR", str(tmp_path / "cache"))
    tuned.forget()


def setting(op: CompiledOp, shape: Mapping[str, int] = SHAPE, *, training: bool = True) -> Setting:
    return from_shape(op.program, shape, torch.float32, torch.device("cpu"), training=training, seed=3)


class Clock:
    """Times that depend on what a run is called: seconds by a part of its name, else 1."""

    def __init__(self, **seconds: float) -> None:
        self.seconds = seconds
        self.current = ""

    def __call__(self, runs: Mapping[str, Callable[[], object]]) -> dict[str, float | Exception]:
        found: dict[str, float | Exception] = {}
        for name, run in runs.items():
            self.current = self.current if name in ("recorded", "backward") else name
            run()
            found[name] = next((x for part, x in self.seconds.items() if part in name), 1.0)
        return found


def plans_taken(monkeypatch: pytest.MonkeyPatch, op: CompiledOp, **call: object) -> set[str]:
    """The plans of the torch backend that a call takes."""
    taken: set[str] = set()
    run_op = execute.run_op

    def spy(op: object, plans: object, chosen: Mapping[object, str], *others: object, **named: object) -> object:
        taken.update(chosen.values())
        return run_op(op, plans, chosen, *others, **named)

    with monkeypatch.context() as patch:
        patch.setattr(execute, "run_op", spy)
        op(**call)
    return taken


def given(op: CompiledOp, time: int = 40) -> dict[str, Any]:
    return samples(op.ir, default_sizes(op.ir, batch=1, time=time, head=2, key=4, value=4))


def test_later_calls_of_the_shape_go_by_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    before = plans_taken(monkeypatch, GLA, **given(GLA))
    found = search.tune(setting(GLA), timer=Clock(recurrent=0.1))
    assert found.forward is not None
    assert found.training is not None
    assert (found.forward.backend, found.forward.plan) == ("torch", "recurrent")
    assert before != {"recurrent"}
    assert plans_taken(monkeypatch, GLA, **given(GLA)) == {"recurrent"}
    assert plans_taken(monkeypatch, GLA, **given(GLA, 33)) == {"recurrent"}  # up to the same power of two
    assert plans_taken(monkeypatch, GLA, **given(GLA, 65)) != {"recurrent"}
    assert plans_taken(monkeypatch, GLA, **given(GLA), plan="quadratic") == {"quadratic"}
    assert plans_taken(monkeypatch, GLA, **given(GLA), backend="torch") == {"recurrent"}
    again = sma.compile(GLA.ir.text)  # another op of the same meaning
    assert plans_taken(monkeypatch, again, **given(GLA)) == {"recurrent"}


def test_calls_with_gradients_have_a_record_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    search.tune(setting(GLA, training=False), timer=Clock(recurrent=0.1))
    leaves = {name: x.requires_grad_() for name, x in given(GLA).items()}
    assert plans_taken(monkeypatch, GLA, **leaves) != {"recurrent"}
    with torch.no_grad():
        assert plans_taken(monkeypatch, GLA, **leaves) == {"recurrent"}


def test_auto_never_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("measured")

    for module, name in (
        (timers, "by_clock"),
        (timers, "by_events"),
        (self_check, "check_pick"),
        (tuned, "check_pick"),
    ):
        monkeypatch.setattr(module, name, refuse)
    sma.library("rwkv4")(**given(sma.library("rwkv4")))
    assert not records.records_file().exists()


def test_a_wrong_plan_is_rejected_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    right = self_check.run_plan

    def wrong(program: object, plan: str, arguments: object) -> Tensor:
        y = right(program, plan, arguments)
        return y * 1.01 if plan == "recurrent" else y

    monkeypatch.setattr(self_check, "run_plan", wrong)
    found = search.tune(setting(GLA), timer=Clock(recurrent=0.1))
    (row,) = found.rejected
    assert (row.candidate.plan, row.forward) == ("recurrent", None)
    assert row.refused.startswith("wrong: FAIL simple_gla recurrent torch float32")
    assert "wrong: FAIL" in str(found)
    assert found.forward is not None
    assert found.forward.plan != "recurrent"


def test_a_plan_that_fails_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(runs: Mapping[str, Callable[[], object]]) -> dict[str, float | Exception]:
        return {name: MemoryError("no room") if "recurrent" in name else 1.0 for name in runs}

    found = search.tune(setting(GLA), timer=fails)
    assert [row.refused for row in found.rejected] == ["MemoryError: no room"]
    assert found.forward is not None


def stand_ins(monkeypatch: pytest.MonkeyPatch, mistake: str = "") -> tuple[CompiledOp, list[str]]:
    """The op of `stand_in`, its kernels emitted as ever but run in torch; texts with `mistake` in them are wrong.

    And the texts whose forward launcher was called, in order.
    """
    op = stand_in.use(monkeypatch)
    monkeypatch.undo()
    monkeypatch.setattr(stand_in.triton, "_unfit", lambda *_: None)
    monkeypatch.setattr(settings, "kernel_target", lambda _: "sm_90")
    monkeypatch.setattr(settings, "row_of", lambda _: H100)
    monkeypatch.setattr(search.secrets, "randbelow", lambda _: 1)  # the stand-in is no exact kernel
    called: list[str] = []

    def loaded(name: str, text: str) -> Kernel:
        module = stand_in._module()

        def forward(*args: Tensor, **named: object) -> Tensor:
            called.append(text)
            y = stand_in.gated(*args, **named)
            assert isinstance(y, Tensor)
            return y * 1.01 if mistake and mistake in text else y

        module.gated = forward
        return Kernel(name, module)

    monkeypatch.setattr(kernels, "_loaded", loaded)
    return op, called


def test_configurations_of_kernels_are_tried_and_later_calls_run_the_best(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    op, called = stand_ins(monkeypatch)
    monkeypatch.setenv("SMA_CACHE_DIR", str(tmp_path / "cache"))
    compiled: list[Candidate] = []
    best = "forward.scores=1"

    def compiler(_: Setting, wanted: Sequence[Candidate]) -> dict[Candidate, str]:
        compiled.extend(wanted)
        return {wanted[-1]: "does not compile: too large"}

    found = search.tune(setting(op), timer=Clock(**{best: 0.1}), compiler=compiler)
    assert len(found.rows) == 12
    assert {one.plan for one in compiled} >= {"chunked", "recurrent"}
    assert sum(bool(one.choices) for one in compiled) >= 6
    assert [row.refused for row in found.rejected] == ["does not compile: too large"]
    assert found.forward is not None
    assert (found.forward.backend, found.forward.plan) == ("triton", "chunked")
    assert best in found.forward.pick
    called.clear()
    with torch.no_grad():
        op(**given(op), backend="auto")
    assert called[0] == op_text(op, found.forward.choices)


def op_text(op: CompiledOp, choices: Choices) -> str:
    sizes = {"batch": 1, "time": 40, "head": 2, "key": 4, "value": 4, "group": 2}
    return op.program.kernels.emitted(plan_text("chunked", choices), sizes, "float32", "sm_90").text


def test_a_wrong_kernel_is_rejected_and_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    op, _ = stand_ins(monkeypatch, mistake="num_warps=8")
    monkeypatch.setenv("SMA_CACHE_DIR", str(tmp_path / "cache"))
    found = search.tune(setting(op), timer=Clock(**{"warps=8": 0.01}), compiler=lambda *_: {})
    wrong = [row for row in found.rows if "warps=8" in str(row.candidate)]
    assert wrong
    assert all(re.match(r"wrong: FAIL gated \w+ triton float32 output", row.refused) for row in wrong), wrong
    assert found.forward is not None
    assert found.training is not None
    assert "warps=8" not in found.forward.pick + found.training.pick


def test_the_best_forward_and_backward_go_together_once_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    op, _ = stand_ins(monkeypatch)
    monkeypatch.setenv("SMA_CACHE_DIR", str(tmp_path / "cache"))
    one = Candidate("triton", "chunked", Choices.of({"forward": {"warps": 8}, "dq": {"stages": 2}}))
    other = Candidate("triton", "chunked", Choices.of({"forward": {"warps": 2}, "dq": {"stages": 3}}))
    rows = [
        search.Row(one, forward=1.0, recorded=1.0, backward=5.0, error=0.1),
        search.Row(other, forward=2.0, recorded=2.0, backward=3.0, error=0.1),
    ]
    found = search.best_training(setting(op), rows, 0)
    assert found is not None
    assert found.choices == Choices.of({"forward": {"warps": 8}, "dq": {"stages": 3}})
    assert (found.forward, found.backward) == (1.0, 3.0)


def test_imported_records_are_verified_on_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    search.tune(setting(GLA, training=False), timer=Clock(recurrent=0.1))
    text = records.export_text(records.every())
    records.clear()
    records.import_text(text)
    tuned.forget()
    assert plans_taken(monkeypatch, GLA, **given(GLA)) == {"recurrent"}
    assert [record.verified for record in records.every()] == [True]


def test_imported_records_of_what_is_wrong_here_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    search.tune(setting(GLA, training=False), timer=Clock(recurrent=0.1))
    text = records.export_text(records.every())
    records.clear()
    records.import_text(text)
    tuned.forget()
    right = self_check.run_plan
    monkeypatch.setattr(self_check, "run_plan", lambda *given: 1.01 * right(*given))
    with pytest.warns(records.DamagedRecords, match=r"does not hold on cpu and is forgotten"):
        assert plans_taken(monkeypatch, GLA, **given(GLA)) != {"recurrent"}
    assert records.every() == []


def test_example_tensors_and_several_shapes() -> None:
    tensors = given(GLA)
    (found,) = GLA.tune(*tensors.values(), training=False)
    assert found.forward is not None
    assert found.forward.key.dtype == "float32"
    assert found.training is None
    both = GLA.tune([SHAPE, {**SHAPE, "T": 80}], dtype=torch.float32, device="cpu", training=False)
    assert [one.forward.sizes["time"] for one in both if one.forward] == [40, 80]


@pytest.mark.parametrize(
    ("call", "mistake"),
    [
        (lambda: GLA.tune(), errors.NothingToTune),
        (lambda: GLA.tune(SHAPE, limit=0), errors.NothingToTune),
        (lambda: GLA.tune(SHAPE, dtype=torch.int64), errors.NothingToTune),
        (lambda: GLA.tune({"B": 1}), errors.MissingSize),
        (lambda: GLA.tune({**SHAPE, "Z": 1}), errors.UnknownSize),
        (lambda: GLA.tune({**SHAPE, "T": 0}), errors.WrongSize),
        (lambda: GLA.tune(torch.zeros(1)), errors.MissingArgument),
    ],
)
def test_mistakes_are_told_before_any_work(call: Callable[[], object], mistake: type[Exception]) -> None:
    with pytest.raises(mistake):
        call()


def test_the_command_line(tmp_path: Path) -> None:
    run = CliRunner()
    shape = ["--shape", "B=1,T=40,H=2,K=4,V=4", "--dtype", "fp32", "--device", "cpu"]
    done = run.invoke(app, ["tune", "simple_gla", *shape, "--json"])
    assert done.exit_code == 0, done.stderr
    (found,) = json.loads(done.stdout)
    assert {row["plan"] for row in found["rows"]} >= {"quadratic", "chunked"}
    assert "forward + backward" in run.invoke(app, ["tune", "simple_gla", *shape]).stdout
    listed = json.loads(run.invoke(app, ["cache", "list", "--json"]).stdout)
    assert {record["op"] for record in listed} == {"simple_gla"}
    assert {record["key"]["training"] for record in listed} == {False, True}
    assert "simple_gla" in run.invoke(app, ["cache", "list", "--op", "simple_gla"]).stdout
    assert "no records" in run.invoke(app, ["cache", "list", "--op", "other"]).stdout
    shown = run.invoke(app, ["cache", "show", listed[0]["id"]])
    assert "key.device" in shown.stdout
    path = tmp_path / "records.json"
    assert run.invoke(app, ["cache", "export", "-o", str(path)]).exit_code == 0
    assert run.invoke(app, ["cache", "clear"]).exit_code == 2
    assert "2 records forgotten" in run.invoke(app, ["cache", "clear", "--all"]).stdout
    assert "2 records imported" in run.invoke(app, ["cache", "import", str(path)]).stdout
    path.write_text("{}")
    bad = run.invoke(app, ["cache", "import", str(path)])
    assert bad.exit_code == 2
    assert "nothing was imported" in bad.stderr
    assert run.invoke(app, ["cache", "show", "zz"]).exit_code == 2
