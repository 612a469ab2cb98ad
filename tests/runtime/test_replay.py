"""Calls of a form that was seen before are replayed: with the tensors that are given, at any address."""

from __future__ import annotations

import ctypes
import inspect
import types
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sma_compiler.runtime import replay, tape
from sma_compiler.runtime.replay import Replays, Tap, form

Run = Callable[..., Any]


class Scale:
    """Stands for a Triton kernel: out = factor * x, by address, once it is compiled."""

    signature = inspect.signature(lambda out, x, N, factor, BLOCK: None)

    def __init__(self) -> None:
        self.bound = 0

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]:
        def launch(out: Tensor, x: Tensor, n: int, factor: float, BLOCK: int, num_warps: int = 4) -> object:
            self.bound += 1
            _scale(out.data_ptr(), x.data_ptr(), n, factor)
            return Compiled()

        return launch


class Compiled:
    def __getitem__(self, grid: tuple[int, int, int]) -> Callable[..., None]:
        assert len(grid) == 3

        def launch(out: int, x: int, n: int, factor: float, block: int, *, stream: object) -> None:
            _scale(out, x, n, factor)

        return launch


def _scale(out: int, x: int, n: int, factor: float) -> None:
    source, target = ((ctypes.c_float * n).from_address(address) for address in (x, out))
    for i in range(n):
        target[i] = factor * source[i]


def scaled(kernel: Tap, x: Tensor, factor: float) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    kernel[(1,)](out, x, x.numel(), factor, BLOCK=16, num_warps=1)
    return out


def again(replays: Replays, run: Run, *tensors: Tensor, key: object = None) -> object:
    return replays.call((key, *(form(x) for x in tensors)), tensors, lambda: run(*tensors))


def test_the_third_call_plays_what_the_second_did() -> None:
    kernel, replays = Scale(), Replays()
    tap = Tap(kernel)

    def run(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        first = scaled(tap, x[1], 2.0)
        return scaled(tap, scaled(tap, first, 0.5), 3.0), scaled(tap, y.reshape(-1), 1.0) + first[:1]

    for number in range(5):
        x, y = torch.randn(2, 4), torch.randn(3, 2)
        whole, sums = again(replays, run, x, y)
        torch.testing.assert_close(whole, 3 * x[1])
        torch.testing.assert_close(sums, y.reshape(-1) + 2 * x[1, :1])
        assert kernel.bound == 4 * min(number + 1, 2)
    (found,) = replays._tapes.values()
    assert found is not None
    names = [type(step).__name__ for step in found.steps]
    assert names.count("Launch") == 4
    assert names.count("Operation") == 2  # first[:1] and the sum; x[1] and y.reshape(-1) are addresses


def test_small_temporaries_share_memory() -> None:
    tap, replays = Tap(Scale()), Replays()

    def run(x: Tensor) -> tuple[Tensor]:
        for _ in range(3):
            x = scaled(tap, x, 2.0)
        return (x,)

    for _ in range(4):
        x = torch.randn(5)
        torch.testing.assert_close(again(replays, run, x)[0], 8 * x)
    (found,) = replays._tapes.values()
    assert found is not None
    assert [type(step).__name__ for step in found.steps] == ["Allocation", "Launch", "Launch", "Allocation", "Launch"]


def test_tensors_are_let_go_behind_their_last_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape, "SMALL", 0)
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def empty(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        alive.append(sum(x() is not None for x in made))
        found = torch.zeros(shape, dtype=dtype)
        assert found.stride() == strides
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(tape, "_empty", lambda _: empty)
    tap, replays = Tap(Scale()), Replays()

    def run(x: Tensor) -> Tensor:
        for _ in range(4):
            x = scaled(tap, x, 2.0)
        return x[:2] + 1

    for _ in range(3):
        x = torch.ones(4)
        assert again(replays, run, x).tolist() == [17.0, 17.0]
    assert alive == [0, 1, 1, 1]


def test_operations_with_several_results_are_made_again() -> None:
    tap, replays = Tap(Scale()), Replays()

    def run(x: Tensor) -> tuple[Tensor, ...]:
        first, _, last = scaled(tap, x, 2.0).split(2)
        (whole,) = last.split(2)
        return first + 1, whole.to(torch.float64), whole.sum((0,), dtype=torch.float64)

    for _ in range(4):
        x = torch.randn(6)
        first, last, total = again(replays, run, x)
        torch.testing.assert_close(first, 2 * x[:2] + 1)
        torch.testing.assert_close(last, 2 * x[4:].double())
        torch.testing.assert_close(total, 2 * x[4:].double().sum())


class CudaLauncher:
    """Stands for what Triton 3.6 puts around a driver's launcher."""

    global_scratch_size = profile_scratch_size = 0
    launch_cooperative_grid = launch_pdl = False

    def __init__(self) -> None:
        self.grids: list[tuple[object, ...]] = []

    def launch(self, *args: object) -> None:
        grid, (stream, function, cooperative, pdl, *rest), values = args[:3], args[3:13], args[13:]
        assert (stream, function, cooperative, pdl) == (None, 7, False, False)
        assert rest == [None, None, (4, 1, 0), None, None, None]
        self.grids.append(grid)
        _scale(*values[:4])


class Bare(Compiled):
    """A compiled kernel with a launcher that is known."""

    function = 7
    packed_metadata = (4, 1, 0)

    def __init__(self) -> None:
        self.run = CudaLauncher()


class BareScale(Scale):
    def __init__(self, compiled: Bare) -> None:
        super().__init__()
        self.compiled = compiled

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]:
        launch = super().__getitem__(grid)
        return lambda *args, **keywords: (launch(*args, **keywords), self.compiled)[1]


def test_a_known_launcher_is_called_at_once_unless_somebody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = types.SimpleNamespace(launch_enter_hook=types.SimpleNamespace(calls=[]), launch_exit_hook=None)
    monkeypatch.setattr(tape, "_options", lambda: runtime)
    monkeypatch.setattr(tape, "triton_version", lambda: "3.6.0")
    compiled = Bare()
    tap, replays = Tap(BareScale(compiled)), Replays()
    for number in range(5):
        runtime.launch_exit_hook = print if number == 4 else None
        x = torch.randn(3)
        torch.testing.assert_close(again(replays, lambda x: scaled(tap, x, 2.0), x), 2 * x)
    assert compiled.run.grids == [(1, 1, 1)] * 2
    monkeypatch.setattr(tape, "triton_version", lambda: "3.9.0")
    assert not tape.Launch(tap.kernel, compiled, (1,), [1, 2, 3, 4.0, 5], {}, {}).bare


def test_other_forms_are_other_calls() -> None:
    kernel, replays = Scale(), Replays()

    def run(x: Tensor) -> Tensor:
        return scaled(Tap(kernel), x.contiguous(), 2.0)

    x = torch.randn(4, 4)
    for count, other in enumerate((x, x.T, x[:2], torch.randn(17)[1:].view(4, 4)), 1):
        for _ in range(4):
            torch.testing.assert_close(again(replays, run, other), 2 * other)
        assert kernel.bound == 2 * count


def test_keys_tell_calls_apart() -> None:
    tap, replays, x = Tap(Scale()), Replays(), torch.randn(3)
    for _ in range(3):
        for factor in (2.0, 3.0):
            found = again(replays, lambda x, factor=factor: scaled(tap, x, factor), x, key=factor)
            torch.testing.assert_close(found, factor * x)


def test_one_tensor_twice_is_another_call() -> None:
    tap, replays = Tap(Scale()), Replays()
    x, y = torch.randn(2, 3)
    for first, second in ((x, x), (x, y)) * 4:
        found = again(replays, lambda a, b: (scaled(tap, a, 2.0), scaled(tap, b, 3.0)), first, second)
        torch.testing.assert_close(found, (2 * first, 3 * second))


ELSEWHERE = torch.ones(3)


@pytest.mark.parametrize(
    "run",
    [
        lambda x: x * 2 if bool((x > 0).all()) else x,  # looks at values
        lambda x: x + ELSEWHERE,  # another call could find something else there
        lambda x: x + torch.rand(3),
        lambda x: (x.to("meta"), x)[1],
    ],
)
def test_what_a_tape_cannot_hold_is_done_in_full(run: Run) -> None:
    kernel, replays = Scale(), Replays()
    tap = Tap(kernel)
    for number in range(4):
        again(replays, lambda x: run(scaled(tap, x, 1.0)), torch.randn(3))
        assert kernel.bound == number + 1


def test_calls_without_kernels_are_done_in_full() -> None:
    replays = Replays()
    for _ in range(3):
        again(replays, lambda x: x + 1, torch.randn(3))
    assert list(replays._tapes.values()) == [None]


def test_results_in_place_are_the_tensors_that_are_given() -> None:
    tap, replays = Tap(Scale()), Replays()

    def run(x: Tensor, count: Tensor) -> dict[str, Tensor]:
        tap[(1,)](x, x, x.numel(), 2.0, BLOCK=16)
        return {"x": x, "count": count.add_(1)}

    for _ in range(4):
        x, count = torch.ones(3), torch.zeros(1)
        found = again(replays, run, x, count)
        assert found["x"] is x
        assert x.tolist() == [2.0] * 3
        assert found["count"].item() == count.item() == 1


def test_errors_leave_nothing_behind() -> None:
    tap, replays, x = Tap(Scale()), Replays(), torch.randn(3)

    def fails(x: Tensor) -> Tensor:
        scaled(tap, x, 1.0)
        raise ValueError("no")

    again(replays, lambda x: scaled(tap, x, 2.0), x)
    with pytest.raises(ValueError, match="no"):
        again(replays, fails, x)
    for _ in range(3):
        torch.testing.assert_close(again(replays, lambda x: scaled(tap, x, 2.0), x), 2 * x)


def test_forms_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "TAPES", 4)
    tap, replays = Tap(Scale()), Replays()
    for n in range(1, 20):
        again(replays, lambda x: scaled(tap, x, 2.0), torch.randn(n))
    assert len(replays._seen) <= 4


def test_nothing_is_replayed_while_torch_transforms() -> None:
    x = torch.randn(3)
    seen = []
    assert replay.plain((x, None))
    torch.func.vmap(lambda x: seen.append(replay.plain(())) or x)(x)
    with torch.autograd.forward_ad.dual_level():
        seen.append(replay.plain((x,)))
    with torch._subclasses.FakeTensorMode() as mode:
        seen.append(replay.plain((x,)))
    seen.append(replay.plain((mode.from_tensor(x),)))
    assert seen == [False] * 4
