"""The accuracy contract passes an honest implementation and fails planted mutants of it."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sma_compiler.ir.check import check_file
from sma_compiler.ir.nodes import Op
from sma_compiler.reference import Argument
from sma_compiler.source import Source
from sma_compiler.verify.cases import LONG, Case, make_case, sampled_rows
from sma_compiler.verify.check import check_plan, compare_backends
from sma_compiler.verify.contract import Line, Title, within
from sma_compiler.verify.errors import measure

LIBRARY = Path(__file__).parents[2] / "grammar" / "library"
LENGTH = 100
SIZES = {"batch": 2, "time": LENGTH, "head": 2, "key": 8, "value": 8}


def library(name: str) -> Op:
    (op,) = check_file(Source((LIBRARY / f"{name}.sma").read_text(encoding="utf-8"), name))
    return op


@dataclass(frozen=True)
class Dense:
    """simple_gla and sliding_window written out in fp32, dots rounded to the inputs' dtype; each field is a mistake."""

    strict: bool = False
    no_decay: bool = False
    late_path: bool = False
    no_scale: bool = False
    wider: int = 0
    no_tail: bool = False
    heads_swapped: bool = False
    gate_detached: bool = False
    noise: float = 0.0
    not_a_number: bool = False

    def __call__(self, plan: str, arguments: Mapping[str, Argument]) -> Tensor | tuple[Tensor, Tensor]:
        y, lse = self.both(arguments)
        return y if lse is None else (y, lse)

    def output(self, plan: str, arguments: Mapping[str, Argument]) -> Tensor:
        return self.both(arguments)[0]

    def both(self, arguments: Mapping[str, Argument]) -> tuple[Tensor, Tensor | None]:
        q, k, v = (x for x in (arguments[name] for name in "qkv") if isinstance(x, Tensor))
        steps = torch.arange(q.shape[1])
        i, j = steps[:, None], steps[None, :]
        scores = torch.einsum("bihn,bjhn->bhij", q.float(), k.float())
        if not self.no_scale:
            scores = scores / math.sqrt(q.shape[-1])
        lse = None
        if "g" in arguments:
            weights = self._path(arguments["g"]) * scores * (i > j if self.strict else i >= j)
        else:
            window = arguments["w"]
            assert isinstance(window, int)
            near = (i - j < window + self.wider) & (i >= j)
            logits = scores.masked_fill(~near, -torch.inf)
            weights, lse = torch.softmax(logits, -1), torch.logsumexp(logits, -1).movedim(1, 2)
        y = torch.einsum("bhij,bjhv->bihv", weights.to(v.dtype).float(), v.float())
        if self.no_tail:
            y = torch.cat((y[:, :-3], 0 * y[:, -3:]), 1)
        if self.heads_swapped:
            y = y.flip(2)
        if self.noise:
            y = y * (1 + self.noise * torch.randn(y.shape, generator=torch.Generator().manual_seed(5)))
        if self.not_a_number:
            y = torch.where((i == 7)[:, 0].view(1, -1, 1, 1), torch.nan, y)
        return y.to(q.dtype), None if lse is None else lse * (1 + self.noise)

    def _path(self, g: Argument) -> Tensor:
        assert isinstance(g, Tensor)
        gate = g.detach() if self.gate_detached else g
        kept = gate.float().movedim(1, -1)[..., None, :].expand(-1, -1, LENGTH, -1)  # [B, H, i, t]
        kept = kept.tril(-1 if self.late_path else 0)
        sums = kept.flip(-1).cumsum(-1).flip(-1)
        if not self.late_path:
            sums = torch.nn.functional.pad(sums, (0, 1))[..., 1:]
        return torch.ones_like(sums) if self.no_decay else sums.exp()


def cases(name: str, dtype: torch.dtype) -> list[Case]:
    return [make_case(library(name), SIZES, dtype, seed) for seed in range(8)]


GLA = {dtype: cases("simple_gla", dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)}
WINDOW = cases("sliding_window", torch.float32)
DTYPES = pytest.mark.parametrize("dtype", GLA, ids=lambda dtype: str(dtype).removeprefix("torch."))


@DTYPES
def test_an_honest_implementation_passes(dtype: torch.dtype) -> None:
    report = check_plan(GLA[dtype], Dense(), "quadratic")
    assert report.ok, str(report)
    assert {check.what for check in report.checks} == {"output", "d q", "d k", "d v", "d g"}


def test_an_honest_softmax_passes() -> None:
    report = check_plan(WINDOW, Dense(), "quadratic")
    assert report.ok, str(report)
    assert {check.what for check in report.checks} == {"output", "lse", "d q", "d k", "d v"}
    assert "lse" in {check.what for check in check_plan(WINDOW, Dense(noise=1e-4), "quadratic").failures}


@DTYPES
@pytest.mark.parametrize(
    "mistake", ["strict", "no_decay", "late_path", "no_scale", "no_tail", "heads_swapped", "not_a_number"]
)
def test_mutants_of_the_output_fail(mistake: str, dtype: torch.dtype) -> None:
    report = check_plan(GLA[dtype], replace(Dense(), **{mistake: True}), "quadratic")
    assert "output" in {check.what for check in report.failures}


def test_a_window_off_by_one_fails() -> None:
    for wider in (1, -1):
        report = check_plan([case for case in WINDOW if case.arguments["w"] != 1], Dense(wider=wider), "quadratic")
        assert "output" in {check.what for check in report.failures}


@DTYPES
def test_a_missing_gradient_fails_and_the_output_does_not(dtype: torch.dtype) -> None:
    report = check_plan(GLA[dtype], Dense(gate_detached=True), "quadratic")
    assert {check.what for check in report.failures} == {"d g"}


def test_noise_just_above_the_bound_fails() -> None:
    assert check_plan(GLA[torch.float32], Dense(noise=1e-6), "quadratic").ok
    assert not check_plan(GLA[torch.float32], Dense(noise=1e-5), "quadratic").ok


def test_a_wrong_tail_is_not_averaged_away() -> None:
    """An error that the whole tensor hides shows in the block that has it."""
    found = GLA[torch.bfloat16]

    def run(plan: str, arguments: Mapping[str, Argument]) -> Tensor:
        y = Dense().output(plan, arguments)
        return torch.cat((y[:, :-2], y[:, -2:] * 1.03), 1)

    failures = [check for check in check_plan(found, run, "quadratic").failures if check.what == "output"]
    assert len(failures) == 1
    assert failures[0].where.endswith("positions 64..127")


def test_backends_are_compared() -> None:
    found = GLA[torch.bfloat16]
    assert compare_backends(found, Dense(), Dense(), "quadratic").ok
    noisy = compare_backends(found, Dense(noise=2.0**-6), Dense(), "quadratic")
    assert "output" in {check.what for check in noisy.failures}
    swapped = compare_backends(found, Dense(heads_swapped=True), Dense(), "quadratic")
    assert {check.norm for check in swapped.failures} == {"rms", "max"}


def test_a_result_of_another_shape_or_dtype_is_refused() -> None:
    case = GLA[torch.bfloat16][0]
    with pytest.raises(ValueError, match="gave"):
        case.errors(lambda plan, arguments: Dense().output(plan, arguments).float(), "quadratic")


def test_reports_are_data() -> None:
    report = check_plan(GLA[torch.float32][:1], Dense(strict=True), "quadratic")
    data = json.loads(report.to_json())
    assert data["ok"] is False
    assert len(data["checks"]) == len(report.checks)
    assert data["checks"][0]["plan"] == "quadratic"
    assert str(report).startswith("FAIL simple_gla quadratic torch float32 output, whole: rms ")
    assert report.worst is not None
    assert not report.worst.ok


def test_an_infinity_that_should_be_there_is_no_error() -> None:
    exact = torch.tensor([[-torch.inf, 1.0]], dtype=torch.float64)
    assert float(measure(exact.float(), exact, ("batch", "time")).error.sum()) == 0
    wrong = torch.tensor([[1.0, 1.0]])
    assert float(measure(wrong, exact, ("batch", "time")).error.sum()) == math.inf


def test_errors_of_an_fft_are_relative_to_the_row() -> None:
    exact = torch.ones(1, 128, 1, dtype=torch.float64)
    exact[:, 3] = 1000
    actual = exact + 1e-3
    plain = measure(actual, exact, ("batch", "time", "head"))
    relative = measure(actual, exact, ("batch", "time", "head"), by_row_maximum=True)
    assert float(plain.error_max.max()) == pytest.approx(1e-3)
    assert float(relative.error_max.max()) == pytest.approx(1e-6)


def test_long_sequences_are_sampled() -> None:
    rows = sampled_rows(LONG + 100, 0)
    assert len(rows) == 256
    assert rows[:64].tolist() == list(range(64))
    assert rows[-64:].tolist() == list(range(LONG + 36, LONG + 100))
    assert bool((rows.diff() > 0).all())


def test_positions_that_no_sampled_row_is_near_are_one_block() -> None:
    sampled = torch.cat((torch.arange(64), torch.tensor([130]), torch.arange(256, 320)))
    exact = torch.zeros(1, 320, 1, dtype=torch.float64)
    exact[0, sampled], exact[0, 127] = 1.0, 0.1
    places = ("batch", "time", "head")
    title, line = Title("op", "quadratic", "triton", "float32", "d f"), Line(0.0, 1e-3)
    for error, near, ok in ((1e-6, 200, True), (1e-2, 200, False), (1e-2, 130, False)):
        actual = exact.clone()
        actual[0, near] += error
        assert within(title, [measure(actual, exact, places, sampled=sampled)] * 8, line).ok == ok
        assert not within(title, [measure(actual, exact, places)] * 8, line).ok
    assert measure(exact, exact, places, sampled=sampled).count.tolist() == [[64, 0, 64, 0, 64, 128]]


def test_a_sampled_case_checks_rows_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sma_compiler.verify.cases.LONG", 400)
    sizes = SIZES | {"time": 420, "batch": 1, "head": 1, "key": 4, "value": 4}
    found = [make_case(library("linear_attention"), sizes, torch.float32, seed) for seed in range(8)]
    assert found[0].rows is not None

    def run(plan: str, arguments: Mapping[str, Argument]) -> Tensor:
        q, k, v = (x for x in (arguments[name] for name in "qkv") if isinstance(x, Tensor))
        return torch.einsum("bhij,bjhv->bihv", torch.einsum("bihn,bjhn->bhij", q, k).tril() / 2, v)

    assert check_plan(found, run, "quadratic").ok
    assert not check_plan(found, lambda plan, arguments: run(plan, arguments) * 1.001, "quadratic").ok
