"""The cost model: near what was measured, sensible between, and told in tables, crossover points and pictures."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import sma_compiler as sma
from sma_compiler.cli.main import app
from sma_compiler.kernel.choices import Choices
from sma_compiler.plan.devices import CPU, GPU, H100, device_row
from sma_compiler.runtime import forecast as module
from sma_compiler.runtime import records, tuned
from sma_compiler.runtime.args import bind
from sma_compiler.runtime.forecast import Case, Forecast, auto_pick, crossovers, forecast, kernel_forecast, outlook
from sma_compiler.runtime.records import Pick
from sma_compiler.runtime.usage import keep, known
from sma_compiler.target.model import Shape, chunked, occupancy, roof
from sma_compiler.target.resources import Resources
from sma_compiler.tune.roofline import needs
from sma_compiler.tune.search import tune
from sma_compiler.tune.setting import from_shape, situation
from sma_compiler.tune.space import candidates, signatures, variations, varied

WIDE = {"batch": 8, "time": 4096, "head": 16, "key": 128, "value": 128}
PAIRS = {"batch": 4, "time": 8192, "head": 16, "key": 128, "value": 128}
MEASURED = [
    ("mamba2", "chunked", {**WIDE, "head": 80, "value": 64, "group": 1}, 0.6, 3.107),
    ("mamba2", "chunked", {**PAIRS, "head": 64, "key": 256, "value": 64, "group": 1}, 0.709, 4.559),
    ("mamba2", "chunked", {**WIDE, "batch": 1, "time": 131072, "head": 24, "value": 64, "group": 1}, 0.834, 4.374),
    ("mamba2", "chunked", {"batch": 2, "time": 2048, "head": 24, "key": 64, "value": 64, "group": 1}, 0.071, None),
    ("retention", "chunked", WIDE, 0.213, 1.472),
    ("retention", "chunked", {**WIDE, "time": 1024}, 0.062, 0.394),
    ("retention", "chunked", {**WIDE, "head": 8, "key": 256, "value": 512}, 0.889, 5.09),
    ("linear_attention", "chunked", WIDE, 0.205, 0.818),
    ("linear_attention_normalized", "chunked", WIDE, 0.37, 1.66),
    ("gla", "chunked", WIDE, 0.602, 2.455),
    ("gla", "chunked", {**WIDE, "head": 4, "key": 256, "value": 512}, 0.595, 2.575),
    ("rwkv6", "chunked", {**WIDE, "head": 32, "key": 64, "value": 64}, 0.402, 2.267),
    ("mamba1", "chunked", {"batch": 8, "time": 2048, "head": 5120, "key": 16}, 0.965, 3.624),
    ("delta_net", "chunked", WIDE, 0.533, 2.669),
    ("gated_delta_net", "chunked", {**WIDE, "batch": 4, "time": 2048}, 0.19, 1.32),
    ("kda", "chunked", {**WIDE, "batch": 4, "time": 1024}, 0.212, None),
    ("attention", "quadratic", PAIRS, 2.19, 8.98),
    ("sliding_window", "quadratic", {**PAIRS, "w": 1024}, 0.733, 2.9),
    ("document", "quadratic", PAIRS, 0.612, 2.377),
    ("alibi", "quadratic", PAIRS, 2.45, 9.537),
    ("retention", "quadratic", {**WIDE, "time": 1024}, 0.112, 0.5),
]
"""Milliseconds on an H100, 2026-11-22 and 23, bf16: forward, and with backward where the host does not decide it."""


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SMA_CACHE_DIR", str(tmp_path / "cache"))
    module._file.cache_clear()


def test_predictions_are_near_what_was_measured() -> None:
    ratios = []
    for name, plan, sizes, forward, both in MEASURED:
        found = kernel_forecast(sma.library(name).program, plan, sizes, "bfloat16", H100, "sm_90")
        ratios.append(1e3 * found.forward / forward)
        if both is not None:
            assert found.training is not None
            ratios.append(1e3 * found.training / both)
    spread = math.sqrt(sum(math.log(ratio) ** 2 for ratio in ratios) / len(ratios))
    assert spread < 0.25
    assert all(0.6 < ratio < 1.6 for ratio in ratios), ratios


@pytest.mark.parametrize("plan", ["chunked", "recurrent"])
def test_more_positions_take_longer(plan: str) -> None:
    sizes = WIDE
    program = sma.library("retention").program
    times = [
        kernel_forecast(program, plan, {**sizes, "time": time}, "bfloat16", H100, "sm_90").forward
        for time in (256, 1024, 4096)
    ]
    assert times == sorted(times)


def test_no_prediction_goes_below_the_roof() -> None:
    for name, plan, sizes, _, _ in MEASURED:
        if plan != "chunked":
            continue
        program = sma.library(name).program
        found = kernel_forecast(program, plan, sizes, "bfloat16", H100, "sm_90")
        shapes = module.shapes_of(program, sizes, "bfloat16").values()
        assert found.backward is not None
        assert sum(roof(shape, H100, backward=False)[0] for shape in shapes) < found.forward
        assert sum(roof(shape, H100, backward=True)[0] for shape in shapes) < found.backward


def test_quadratic_configurations_are_told_apart() -> None:
    program = sma.library("attention").program
    configs = program.kernels.emitted("quadratic", PAIRS, "bfloat16", "sm_90").configs

    def of(sizes: dict[str, int], name: str = "attention", **forward: int) -> float:
        shapes = module.shapes_of(sma.library(name).program, sizes, "bfloat16")
        parts = module.configured("quadratic", shapes, varied(configs, Choices.of({"forward": forward})), H100).parts
        assert parts is not None
        return parts.seconds(backward=False)

    usual = of(PAIRS)
    assert of(PAIRS, rows=32, columns=32, warps=4, stages=1) > 1.5 * usual  # small tiles wait more than they multiply
    assert of(PAIRS, rows=256, columns=256, warps=4) > 1.2 * usual  # large ones do not fit into registers
    short = {**PAIRS, "batch": 1, "time": 512, "head": 4}
    wide = of(short, rows=128, columns=128, warps=8)
    assert of(short) < wide  # more programs, where there are fewer than processors
    windowed = [of({**PAIRS, "w": w}, "sliding_window") for w in (256, 1024, 8192)]
    assert windowed == sorted(windowed)
    assert windowed[0] < 0.5 * windowed[2]


def test_devices_have_rows_and_unknown_ones_a_default() -> None:
    assert device_row("cuda", "NVIDIA H100 80GB HBM3") is H100
    assert device_row("cuda", "a GPU of tomorrow") is GPU
    assert device_row("cpu") is CPU
    assert all("20" in row.measured or row.measured.startswith("never") for row in (CPU, GPU, H100))


def picked(monkeypatch: pytest.MonkeyPatch, *, training: bool = False, **forward: float) -> str:
    """What auto takes of linear_attention where its plans are predicted to take so long, twice that with gradients."""
    found = [
        Forecast("torch" if plan == "globally" else "triton", plan, seconds, None if plan == "recurrent" else seconds)
        for plan, seconds in forward.items()
    ]
    monkeypatch.setattr(module, "forecast", lambda *_: found)
    program = sma.library("linear_attention").program
    return " ".join(auto_pick(Case(program, WIDE, {}, "bfloat16", H100, "sm_90"), training=training))


def test_auto_takes_the_usual_kernels_unless_others_are_much_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    assert picked(monkeypatch, chunked=1.1, quadratic=1.0, recurrent=1.0) == "triton chunked"
    assert picked(monkeypatch, chunked=1.3, quadratic=1.0, recurrent=2.0) == "triton quadratic"
    assert picked(monkeypatch, chunked=1.3, recurrent=1.0) == "triton recurrent"
    assert picked(monkeypatch, chunked=1.3, recurrent=1.0, training=True) == "triton chunked"
    assert picked(monkeypatch, chunked=1.3, globally=1.0) == "torch globally"
    assert picked(monkeypatch, quadratic=1.3, globally=1.0) == "torch auto"
    assert picked(monkeypatch, quadratic=1.0, globally=1.3) == "triton quadratic"


@pytest.mark.parametrize(
    ("sizes", "plan"),
    [
        ({"batch": 8, "time": 4096, "head": 5120, "key": 16}, "recurrent"),
        ({"batch": 1, "time": 131072, "head": 1536, "key": 16}, "chunked"),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_scans_have_parts_only_where_programs_are_few(sizes: dict[str, int], plan: str, training: bool) -> None:
    program = sma.library("mamba1").program
    case = Case(program, sizes, {}, "bfloat16", H100, "sm_90")
    assert auto_pick(case, training=training) == Pick("triton", plan)


def test_what_auto_takes_is_asked_once_and_kept_for_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(*_: object, training: bool) -> Pick:
        asked.append(training)
        return Pick("triton", "quadratic") if training else Pick("torch", "auto")

    monkeypatch.setattr(module, "auto_pick", answer)
    op = sma.library("linear_attention")
    x = [torch.zeros(1, 200, 2, 16, dtype=torch.bfloat16) for _ in range(3)]
    for time in (200, 255, 200):
        tuned.forget()
        given = bind(op.ir, [one[:, :1].expand(1, time, 2, 16) for one in x], {})
        assert tuned.foreseen(op.program, given, True) == Pick("triton", "quadratic")
    assert asked == [True]
    assert tuned.foreseen(op.program, given, False) == Pick("torch", "auto")
    wide = bind(op.ir, [one.double() for one in x], {})
    assert tuned.foreseen(op.program, wide, True) is None


@pytest.mark.parametrize("name", ["simple_gla", "s4d", "linear_attention_full"])
def test_crossover_points_are_where_the_fastest_plan_changes(name: str) -> None:
    program = sma.library(name).program
    sizes = {"batch": 1, "time": 64, "head": 2, "key": 16, "value": 16, "mode": 4}
    case = Case(program, sizes, {}, "float32", CPU)
    found = crossovers(case)
    assert all(one.plan != other.plan for one, other in pairwise(found))
    for one in found[1:]:
        assert forecast(case.at_length(one.time))[0].plan == one.plan
        before = forecast(case.at_length(one.time * 15 // 16 - 1))[0]
        assert before.plan != one.plan


def test_the_model_of_the_cpu_takes_what_auto_takes() -> None:
    op = sma.library("simple_gla")
    sizes = {"batch": 1, "time": 4096, "head": 4, "key": 32, "value": 32}
    first = outlook(Case(op.program, sizes, {}, "float32", CPU)).plans[0]
    assert set(op.program.choose("auto", sizes, {}).values()) == {first.plan}


def test_what_a_kernel_was_seen_to_need_counts_more_than_estimates() -> None:
    program, sizes = sma.library("retention").program, WIDE
    before = kernel_forecast(program, "chunked", sizes, "bfloat16", H100, "sm_90")
    text = program.kernels.emitted("chunked", sizes, "bfloat16", "sm_90").text
    assert known(text, "sm_90") == {}
    needed = Resources("retention_forward_kernel", 4, 255, 4096, 200000, {})
    keep(text, "sm_90", [needed])
    module._file.cache_clear()
    assert known(text, "sm_90") == {needed.kernel: needed}
    after = kernel_forecast(program, "chunked", sizes, "bfloat16", H100, "sm_90")
    assert after.forward > 1.2 * before.forward
    assert after.parts is not None
    assert after.parts.forward[-1].occupancy == 1


def test_occupancy_follows_registers_and_shared_memory() -> None:
    shape = Shape(8, 4096, 16, 128, 128, 16, "bfloat16", gated=True, varying=False, normalised=False)
    configs = sma.library("retention").program.kernels.emitted("chunked", WIDE, "bfloat16", "sm_90").configs
    config = configs["forward"]

    def room(registers: int, shared: int) -> int:
        used = {"forward": Resources("", 4, registers, 0, shared, {})}
        return occupancy("forward", config, 128, 64, shape, H100, used)[0]

    assert [room(255, 1), room(128, 1), room(128, 100_000), room(64, 1)] == [2, 4, 2, 8]
    assert chunked(shape, {"forward": config}, H100, {}).backward == ()


def test_candidates_are_few_and_the_defaults_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from sma_compiler.tune import setting as settings

    monkeypatch.setattr(settings, "kernel_target", lambda _: "sm_90")
    monkeypatch.setattr(settings, "row_of", lambda _: H100)
    op = sma.library("retention")
    shape = {"B": 2, "T": 256, "H": 4, "K": 64, "V": 64}
    given = from_shape(op.program, shape, torch.bfloat16, torch.device("cpu"), training=True, seed=0)
    found = candidates(given.situation, 12)
    assert len(found) == 12
    assert {(one.backend, one.plan) for one in found if not one.choices} >= {("triton", "chunked")}
    tried = [one for one in found if one.choices.only(backward=True) and one.choices.only(backward=False)]
    assert len(tried) >= 4


def test_every_variation_can_be_emitted() -> None:
    program = sma.library("simple_gla").program
    sizes = {"batch": 1, "time": 32768, "head": 4, "key": 64, "value": 128, "group": 4}
    usual = program.kernels.emitted("chunked", sizes, "bfloat16", "sm_90")
    found = list(variations(usual.configs, sizes, "bfloat16", "sm_90"))
    assert len(set(found)) == len(found) > 50
    texts = {usual.text}
    for choices in (found[0], found[len(found) // 2], found[-1]):
        texts.add(program.kernels.emitted(f"chunked:{choices}", sizes, "bfloat16", "sm_90").text)
    assert len(texts) == 4
    assert all(n >= 64 for choices in found for _, field, n in choices.numbers if field == "outer")
    assert Choices() not in found


def test_resources_say_how_far_from_the_roof_kernels_are() -> None:
    pytest.importorskip("triton")
    op = sma.library("linear_attention")
    sizes = {"batch": 2, "time": 256, "head": 4, "key": 32, "value": 32}
    found = needs(op.program, op.emitted("chunked", sizes, "bfloat16", "sm_90"), sizes, "bfloat16", "sm_90")
    assert {need.resources.kernel for need in found.kernels} >= {"linear_attention_forward_kernel"}
    assert all(0 < need.occupancy <= 1 for need in found.kernels)
    assert all(one.roof < one.predicted and one.measured is None for one in found.passes)
    assert [one.what for one in found.passes] == ["forward", "backward"]
    text = str(found)
    for mark in ("registers a thread", "bytes spilled", "shared memory", "occupancy", "wgmma", "of the roof"):
        assert mark in text
    assert known(op.source("chunked", sizes), "sm_90")


def test_a_record_adds_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from dataclasses import replace

    op = sma.library("linear_attention")
    shape = {"B": 1, "T": 64, "H": 2, "K": 16, "V": 16}
    tuned = tune(from_shape(op.program, shape, torch.float32, torch.device("cpu"), training=False, seed=0), limit=1)
    assert tuned.forward is not None
    key = replace(tuned.forward.key, device=H100.name, dtype="bfloat16")
    records.save(replace(tuned.forward, key=key, forward=0.125))
    sizes = dict(tuned.forward.sizes)
    found = needs(op.program, op.emitted("chunked", sizes, "bfloat16", "sm_90"), sizes, "bfloat16", "sm_90")
    assert found.passes[0].measured == 0.125
    assert "measured 125 ms" in str(found)


def test_crossovers_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run = CliRunner()
    out = tmp_path / "crossover.svg"
    shape = ["--shape", "B=1,T=256,H=2,K=16,V=16", "--device", "cpu", "-o", str(out), "--crossover"]
    done = run.invoke(app, ["draw", "simple_gla", *shape])
    assert done.exit_code == 0, done.stderr
    assert "<svg" in out.read_text()


TWICE = """\
op twice(q, k, v, g: [time, head]):
    u = attend(decay(g), k, k, v)
    return attend(causal, q, k, u) + u
"""
"""An op of two contractions: its kernels are those of two stages."""


def test_an_op_of_several_contractions_takes_as_long_as_its_stages() -> None:
    program = sma.compile(TWICE).program
    whole = kernel_forecast(program, "chunked", WIDE, "bfloat16", H100, "sm_90")
    assert whole.parts is not None
    assert whole.backward is not None
    assert {part.role.partition("_")[0] for part in whole.parts.forward} == {"attend0", "attend1"}
    gated = kernel_forecast(sma.library("simple_gla").program, "chunked", WIDE, "bfloat16", H100, "sm_90")
    plain = kernel_forecast(sma.library("linear_attention").program, "chunked", WIDE, "bfloat16", H100, "sm_90")
    assert whole.forward == pytest.approx(gated.forward + plain.forward, rel=0.02)
    assert gated.backward is not None
    assert plain.backward is not None
    assert whole.backward == pytest.approx(gated.backward + plain.backward, rel=0.02)
    assert auto_pick(Case(program, WIDE, {}, "bfloat16", H100, "sm_90"), training=True) == Pick("triton", "chunked")


def test_configurations_of_several_contractions_are_chosen_together() -> None:
    at = situation(sma.compile(TWICE).program, WIDE, "bfloat16", H100, "sm_90", training=True)
    found = [one for one in candidates(at, 6) if one.choices]
    assert found
    for one in found:
        ahead, behind = signatures(at, one)
        assert "attend0.forward(" in ahead
        assert "attend1.forward(" in ahead
        assert "attend0.dq(" in behind
        assert "attend1.dq(" in behind


def test_what_the_torch_backend_takes_is_named() -> None:
    case = Case(sma.compile(TWICE).program, WIDE, {}, "bfloat16", CPU)
    assert "auto takes torch chunked, with gradients torch chunked" in str(outlook(case))
