"""Mistakes in a call: each is refused before any work, by its own class, and names the tensor and the spec's line."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import sma_compiler as sma
from sma_compiler import call_errors as errors
from sma_compiler.runtime import execute

B, T, H, K, V = 2, 6, 4, 8, 5
OP = sma.library("simple_gla")
WINDOW = sma.library("sliding_window")

Given = dict[str, Any]


def inputs() -> Given:
    q, k = torch.randn(2, B, T, H, K).unbind()
    return {"q": q, "k": k, "v": torch.randn(B, T, H, V), "g": -torch.rand(B, T, H)}


def row() -> Given:
    return {name: x[:1] for name, x in inputs().items()}


def state(batch: int = B, key: int = K, dtype: torch.dtype = torch.float32) -> sma.State:
    return OP.empty_state(batch, head=H, key=key, value=V, dtype=dtype)


@pytest.fixture(autouse=True)
def _no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("work was done")

    monkeypatch.setattr(execute, "run_op", work)


TENSORS: dict[str, tuple[str, Given, type[errors.ParameterError]]] = {
    "dimensions": ("g", {"g": torch.ones(B, T)}, errors.WrongDimensions),
    "key size": ("k", {"k": torch.ones(B, T, H, K + 1)}, errors.SizeConflict),
    "length": ("k", {"k": torch.ones(B, T + 1, H, K)}, errors.SizeConflict),
    "a length of 1": ("k", {"k": torch.ones(B, 1, H, K)}, errors.SizeConflict),
    "batch": ("v", {"v": torch.ones(B + 1, T, H, V)}, errors.SizeConflict),
    "heads": ("k", {"k": torch.ones(B, T, 3, K)}, errors.HeadSize),
    "no heads": ("k", {"k": torch.ones(B, T, 0, K)}, errors.EmptyAxis),
    "device": ("k", {"k": torch.ones(B, T, H, K, device="meta")}, errors.MixedDevices),
    "integers": ("q", {"q": torch.ones(B, T, H, K, dtype=torch.int64)}, errors.WrongElements),
    "complex": ("v", {"v": torch.ones(B, T, H, V, dtype=torch.complex64)}, errors.WrongElements),
    "eight bits": ("q", {"q": torch.ones(B, T, H, K).to(torch.float8_e4m3fn)}, errors.WrongElements),
    "sparse": ("g", {"g": torch.ones(B, T, H).to_sparse()}, errors.WrongElements),
    "a list": ("q", {"q": [1.0]}, errors.NotATensor),
    "nothing": ("q", {"q": None}, errors.NotATensor),
    "NaN in a gate": ("g", {"g": torch.full((B, T, H), math.nan)}, errors.NaNInGate),
}


@pytest.mark.parametrize("case", TENSORS)
@pytest.mark.parametrize("call", [OP, OP.reference], ids=["call", "reference"])
def test_tensors(case: str, call: Callable[..., Any]) -> None:
    name, wrong, kind = TENSORS[case]
    with pytest.raises(kind) as found:
        call(**{**inputs(), **wrong})
    assert isinstance(found.value, sma.CallError)
    message = str(found.value)
    assert f"'{name}'" in message
    assert message.startswith("simple_gla.sma:2:")
    assert "op simple_gla(q, k, v, g: [time, head]):" in message
    assert found.value.parameter == name


@pytest.mark.parametrize("missing", ["q", "k", "v", "g"])
def test_a_missing_tensor(missing: str) -> None:
    given = inputs()
    del given[missing]
    with pytest.raises(errors.MissingArgument, match=rf"simple_gla\.sma:2:\d+: simple_gla: argument '{missing}'"):
        OP(**given)


def test_names() -> None:
    given = inputs()
    with pytest.raises(errors.UnknownArgument, match=r"no parameter 'gate'\. It takes 'q', 'k', 'v', 'g'\."):
        OP(**given, gate=given["g"])
    with pytest.raises(errors.RepeatedArgument, match=r"'q' is given twice"):
        OP(given["q"], **given)
    with pytest.raises(errors.TooManyArguments, match=r"5 positional arguments for 4 parameters"):
        OP(*given.values(), given["g"])


@pytest.mark.parametrize("width", [2.5, True, None, "3", 2**63, torch.tensor(3)], ids=str)
def test_numbers(width: object) -> None:
    given = inputs()
    del given["g"]
    with pytest.raises(errors.WrongNumber, match=r"sliding_window\.sma:2:\d+: sliding_window: 'w' must be"):
        WINDOW(**given, w=width)


BOUNDS = {
    "falls": ([0, 4, 2, 6], "must not fall, but goes from 4 to 2 at entry 2"),
    "ends early": ([0, 3], "must end at 6"),
    "ends late": ([0, 7], "must end at 6"),
    "starts late": ([1, 6], "must start at 0"),
    "one entry": ([6], "must have shape"),
    "no entry": ([], "must have shape"),
}


@pytest.mark.parametrize("case", BOUNDS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_bounds(case: str, dtype: torch.dtype) -> None:
    values, message = BOUNDS[case]
    for call in (OP, OP.reference):
        with pytest.raises(errors.BadSequenceBounds, match=message):
            call(**row(), cu_seqlens=torch.tensor(values, dtype=dtype))


@pytest.mark.parametrize(
    "bounds", [[0, 6], torch.tensor([0.0, 6.0]), torch.tensor([[0, 6]]), torch.tensor([False, True])], ids=str
)
def test_bounds_of_another_form(bounds: object) -> None:
    with pytest.raises(errors.BadSequenceBounds, match=r"cu_seqlens must"):
        OP(**row(), cu_seqlens=bounds)


def test_a_pack_of_several_rows() -> None:
    with pytest.raises(errors.PackedBatch, match=r"every batch is 1, but that of 'q' is 2"):
        OP(**inputs(), cu_seqlens=torch.tensor([0, 6]))


def test_states() -> None:
    other = sma.library("gla").empty_state(B, head=H, key=K, value=V)
    with pytest.raises(errors.ForeignState, match=r"belongs to another op"):
        OP(**inputs(), initial_state=other)
    with pytest.raises(errors.NotAState, match=r"not dict"):
        OP(**inputs(), initial_state=dict(state()))
    with pytest.raises(errors.StateMismatch, match=r"shape of state tensor 'position' is \[1\]"):
        OP(**inputs(), initial_state=state(1))
    with pytest.raises(errors.StateMismatch, match=r"shape of state tensor 'attend0.S0'"):
        OP(**inputs(), initial_state=state(key=K + 1))
    with pytest.raises(errors.StateMismatch, match=r"dtype of state tensor 'attend0.S0'"):
        OP(**inputs(), initial_state=state(dtype=torch.float64))
    with pytest.raises(errors.StateMismatch, match=r"device of state tensor 'position' is meta"):
        OP(**inputs(), initial_state=state().to(torch.device("meta")))
    with pytest.raises(errors.StateMismatch, match=r"needs \[2\]"):
        OP(**row(), cu_seqlens=torch.tensor([0, 3, 6]), initial_state=state(3))


def test_options() -> None:
    given = inputs()
    with pytest.raises(errors.UnknownPlan, match=r"no plan 'chunk'; did you mean 'chunked'\?"):
        OP(**given, plan="chunk")
    with pytest.raises(errors.RefusedPlan, match=r"plan 'toeplitz' is not legal here: the mask is not Toeplitz"):
        OP(**given, plan="toeplitz")
    with pytest.raises(errors.UnknownBackend):
        OP(**given, backend="cuda")
    with pytest.raises(errors.UnknownPrecision):
        OP(**given, precision="fp8")
    with pytest.raises(errors.NoLogSumExp):
        OP(**given, return_lse=True)


def test_states_of_what_is_not_causal() -> None:
    op = sma.library("prefix_lm")
    given = inputs() | {"n": 2}
    del given["g"]
    with pytest.raises(errors.NoStates, match="some piece has i - j < 0"):
        op(**given, return_state=True)
    with pytest.raises(errors.NoStates):
        op.empty_state(head=H, key=K, value=V)
    with pytest.raises(errors.NoStates):
        op.step(**{name: x[:, 0] if name != "n" else x for name, x in given.items()})


def test_steps() -> None:
    with pytest.raises(errors.WrongDimensions, match=r"must have 3 dimensions \[batch, head, key\], but has 4"):
        OP.step(**inputs())
    with pytest.raises(errors.InPlaceNeedsState):
        OP.step(**{name: x[:, 0] for name, x in inputs().items()}, inplace=True)


MISTAKES: dict[str, Callable[[], object]] = {
    "an unknown name": lambda: OP(**inputs(), gate=1),
    "too many": lambda: OP(*inputs().values(), 1),
    "bounds": lambda: OP(**row(), cu_seqlens=torch.tensor([0, 7])),
    "a foreign state": lambda: OP(**inputs(), initial_state=WINDOW.empty_state(B, head=H, key=K, value=V, w=2)),
    "no state": lambda: OP(**inputs(), initial_state={}),
    "another state": lambda: OP(**inputs(), initial_state=state(1)),
    "an unknown plan": lambda: OP(**inputs(), plan="chunk"),
    "a refused plan": lambda: OP(**inputs(), plan="toeplitz"),
    "a backend": lambda: OP(**inputs(), backend="cuda"),
    "a precision": lambda: OP(**inputs(), precision="fp8"),
    "no softmax": lambda: OP(**inputs(), return_lse=True),
    "in place": lambda: OP.step(**{name: x[:, 0] for name, x in inputs().items()}, inplace=True),
    "an unknown size": lambda: OP.empty_state(heads=H, key=K, value=V),
    "a missing size": lambda: OP.empty_state(head=H, key=K),
    "a wrong size": lambda: OP.empty_state(head=0, key=K, value=V),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_message_begins_with_the_line_of_the_spec(mistake: str) -> None:
    with pytest.raises(sma.CallError, match=r"^simple_gla\.sma:2: simple_gla: "):
        MISTAKES[mistake]()


def test_empty_states() -> None:
    for capacity in (-1, 0, 2.5, True):
        with pytest.raises(errors.WrongCapacity, match=r"sliding_window\.sma:2: sliding_window: capacity, "):
            WINDOW.empty_state(head=H, key=K, value=V, capacity=capacity)
    for dtype in (torch.int32, torch.bool, torch.complex64):
        with pytest.raises(errors.WrongStateElements, match=r"bfloat16, float16, float32 or float64, not torch\."):
            state(dtype=dtype)


def test_a_mask_that_may_be_negative_under_softmax() -> None:
    text = "op f(q, k, v, z: [time]):\n    return attend(causal * z[j], q, k, v, normalize=softmax)\n"
    with pytest.raises(sma.SpecError, match=r"2:19: normalize=softmax needs a mask that is 0 or more"):
        sma.compile(text)
