"""Random inputs fit what each parameter is used for."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sma_compiler.ir.check import check_file
from sma_compiler.ir.nodes import Op
from sma_compiler.reference import Argument, evaluate
from sma_compiler.source import Source
from sma_compiler.verify.gate_sums import contractions, gate_sum
from sma_compiler.verify.samples import default_sizes, samples

LIBRARY = sorted((Path(__file__).parents[2] / "grammar" / "library").glob("*.sma"), key=lambda path: path.stem)
SIZES = {"batch": 1, "time": 70, "head": 2, "key": 4, "value": 3, "mode": 2}


def spec(text: str) -> Op:
    (op,) = check_file(Source(text))
    return op


def drawn(text: str, **sizes: int) -> dict[str, Tensor]:
    op = spec(text)
    found = samples(op, default_sizes(op, **(SIZES | sizes)), torch.float32, seed=3)
    return {name: x if isinstance(x, Tensor) else torch.tensor(x) for name, x in found.items()}


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_library_inputs_keep_outputs_in_scale(path: Path) -> None:
    op = spec(path.read_text(encoding="utf-8"))
    y = evaluate(op, samples(op, default_sizes(op, **SIZES), seed=1))
    assert 1e-2 < float(y.square().mean().sqrt()) < 1e2


@pytest.mark.parametrize(
    "mask",
    [
        "causal * exp(-x * (i - j))",
        "causal * exp(x * (j - i))",
        "causal * exp((i - j) * x / 2)",
        "exp(-x * abs(i - j))",
        "causal * x ** (i - j)",
        "(i <= j) * x ** (j - i)",
        "(i <= j) * exp(x * (i - j))",
        "decay(x)",
        "decay(log(x))",
        "decay(-softplus(x) * y)",
        "decay(x * y)",
        "(i <= j) * exp(sum(x[t] - y[t], i <= t < j))",
        "strict * where(i - j == 1, x, exp(y * (i - j - 1)))",
        "causal * exp(sum(min(x[t], y[t]), j < t <= i))",
    ],
)
def test_masks_never_grow(mask: str) -> None:
    axes = "head" if "i - j" in mask or "j - i" in mask else "time, head"
    used = [f"{name}: [{axes}]" for name in "xy" if re.search(rf"\b{name}\b", mask)]
    op = spec(f"op f(v, {', '.join(used)}):\n    return ({mask}) @ v\n")
    arguments = samples(op, default_sizes(op, **SIZES), torch.float64)
    ones: dict[str, Argument] = arguments | {"v": torch.ones(1, 70, 2, 3)}
    assert float(evaluate(op, ones).abs().max()) <= 70 + 1e-9


def test_vectors_of_a_solve_have_unit_length() -> None:
    text = "op f(v, k, beta: [time, head]):\n    return solve(strict, beta * k, k, v)\n"
    found = drawn(text)
    torch.testing.assert_close(found["k"].norm(dim=-1), torch.ones(1, 70, 2))
    assert float(found["beta"].min()) > 0
    assert float(found["beta"].max()) < 1


def test_ids_come_in_runs_and_some_return() -> None:
    doc = drawn("op f(v, doc: int[time]):\n    return (causal * (doc[i] == doc[j])) @ v\n", batch=8)["doc"]
    runs = [x.unique_consecutive().tolist() for x in doc]
    assert all(1 < len(run) < 30 for run in runs)
    assert any(len(run) > len(set(run)) for run in runs)


def test_numbers_booleans_and_tables() -> None:
    text = (
        "op f(v, w: int, s: real, on: bool[time], c: [lag, head]):\n"
        "    return (window(w) * c[i - j] * exp(-s * (i - j)) * on[j]) @ v\n"
    )
    found = drawn(text, lag=40)
    assert 1 <= int(found["w"]) <= 70
    assert float(found["s"]) > 0
    assert found["on"].dtype is torch.bool
    assert bool(found["on"].any())
    assert float(found["c"][-10:].square().mean()) < float(found["c"][:10].square().mean()) / 10


def test_a_group_is_the_head_size_of_keys_and_values() -> None:
    found = drawn("op f(q, k, v, g: [time, head]):\n    return attend(decay(g), q, k, v)\n", head=4, group=2)
    assert [found[name].shape[2] for name in ("q", "k", "v", "g")] == [4, 2, 2, 4]


def test_gates_stay_wide_beside_narrow_values() -> None:
    op = spec("op f(q, k, v, g: [time, head]):\n    return attend(decay(g), q, k, v)\n")
    found = samples(op, default_sizes(op, **SIZES), torch.bfloat16)
    dtypes = [x.dtype for x in found.values() if isinstance(x, Tensor)]
    assert dtypes == [torch.bfloat16] * 3 + [torch.float32]


def test_a_seed_gives_the_same_inputs_again_and_another_one_others() -> None:
    op = spec(LIBRARY[0].read_text(encoding="utf-8"))
    sizes = default_sizes(op, **SIZES)
    first, again, other = (samples(op, sizes, seed=seed)["q"] for seed in (1, 1, 2))
    assert isinstance(first, Tensor)
    assert isinstance(again, Tensor)
    assert isinstance(other, Tensor)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_gate_sum_is_the_steepest_window() -> None:
    op = spec("op f(v: [time], g: [time], s: real):\n    return (decay(g) * exp(-s * (i - j))) @ v\n")
    g = torch.zeros(1, 200)
    g[0, 100:110] = -3
    g[0, 150] = -torch.inf
    arguments: dict[str, Argument] = {"v": g, "g": g, "s": 0.5}
    assert gate_sum(op, arguments) == pytest.approx(30 + 32)


def test_shifts_and_sums_need_no_plan() -> None:
    op = spec((LIBRARY[0].parent / "hydra.sma").read_text(encoding="utf-8"))
    assert [type(node).__name__ for node in contractions(op)] == ["Attend", "Attend"]
