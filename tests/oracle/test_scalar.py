"""The reference against an interpreter of single numbers, on the library, on odd specs, and on random ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sma_compiler.errors import SpecError
from sma_compiler.ir.check import check_file
from sma_compiler.ir.nodes import Op
from sma_compiler.reference import Argument, evaluate
from sma_compiler.source import Source
from sma_compiler.verify.samples import default_sizes, samples
from tests.oracle.random_specs import MASKS, SIZES, spec_of
from tests.oracle.scalar import evaluate as evaluate_numbers

LIBRARY = sorted((Path(__file__).parents[2] / "grammar" / "library").glob("*.sma"), key=lambda path: path.stem)

ODD = {
    "a gate per key and value": "op f(q, k, v, g: [time, key, value]):\n    return attend(decay(g), q, k, v)\n",
    "several queries": (
        "op f(q, r: [time, key], k, v):\n    return attend(causal, q * r, k, v) + attend(full, r, k, v)\n"
    ),
    "keys of one number": "op f(q: [time], k: [time], v, g: [time, key]):\n    return attend(decay(g), q, k, v)\n",
    "only the mask": "op f(v, g: [time, key], b: [key]):\n    return attend(decay(g) * b, 1, 1, v)\n",
    "activation": "op f(q, k, v):\n    return attend(causal, q, k, v, activation=gelu, scale=1 / key, normalize=sum)\n",
    "max1": "op f(q, k, v, g: [time, head]):\n    return attend(decay(g), q, k, v, normalize=max1)\n",
    "scale": "op f(q, k, v, s: [head]):\n    return attend(band(-1, 2), q, k, v, scale=s, normalize=softmax)\n",
    "modes": "op f(v, a, b: [head, mode]):\n    return (causal * sum(a * cos(b * (i - j)), mode)) @ v\n",
    "mixed sums": "op f(q, k, v):\n    return attend(sum(q[i] * k[j], key) * causal, sum(q, key), 1, v)\n",
    "table": "op f(q, k, v, c: [lag, key]):\n    return attend(c[i - j] + c[j - i], q, k, v)\n",
    "levels": "op f(v, w: [time, level], g: [time]):\n    return (levels(w) * decay(g) - transpose(levels(w))) @ v\n",
    "solve twice": (
        "op f(k, v, g: [time, key]):\n    u = solve(strict * decay(g), k, k, v)\n"
        "    return solve(strict, sum(k, key), 1, u) + mean(k, key)\n"
    ),
    "solve per value": "op f(k, v, g: [time, value]):\n    return solve(strict * decay(g), k, k, v)\n",
    "products": "op f(v, g: [time], c: [lag]):\n    return (decay(g) @ c[i - j] @ transpose(decay(g))) @ v\n",
    "kinds": (
        "op f(x: int[time], on: bool[time], w: int, s: real):\n"
        "    return where(on or x > 2, x // 3 + x % w, cumsum(on * x)) * s ** 2 + (x - 1) ** 3 + abs(-x)\n"
    ),
    "functions": (
        "op f(x: [time], k):\n    y = sigmoid(x) + log2(exp(x)) + tanh(x) * silu(x) - elu(x) + relu(x) + sqrt(exp(x))\n"
        "    return softmax(k, key) * y + gelu(x) * min(x, 1) + max(x, 0) + log(softplus(x)) + logsigmoid(x) + sin(x)\n"
    ),
    "norms": "op f(q, k, v):\n    return attend(causal, l2norm(q), rmsnorm(k), v)\n",
    "batch": "op f(v, b: [batch], c: [batch, head]):\n    return (causal * exp(-abs(b) * (i - j))) @ v + c\n",
}


def compile_op(text: str) -> Op:
    (op,) = check_file(Source(text))
    return op


def compare(op: Op, arguments: dict[str, Argument]) -> None:
    expected = torch.tensor(evaluate_numbers(op, arguments), dtype=torch.float64)
    torch.testing.assert_close(evaluate(op, arguments).double(), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_library(path: Path) -> None:
    op = compile_op(path.read_text(encoding="utf-8"))
    compare(op, samples(op, default_sizes(op, **SIZES), torch.float64))


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_odd_specs(text: str) -> None:
    op = compile_op(text)
    sizes = default_sizes(op, **SIZES)
    compare(op, samples(op, sizes, torch.float64))
    grouped = samples(op, sizes | {"head": 4, "group": 2, "batch": 1}, torch.float64)
    compare(op, grouped)


@given(mask=MASKS, form=st.sampled_from(["({}) @ v", "attend({}, k, k, v)", "attend({}, 1, k, v, normalize=max1)"]))
@settings(max_examples=60)
def test_random_masks(mask: str, form: str) -> None:
    try:
        op = compile_op(spec_of(form.format(mask)))
    except SpecError:
        assume(False)
        return
    drawn = samples(op, default_sizes(op, **SIZES), torch.float64, seed=4)
    small = {
        name: x.clamp(-2, 2) if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in drawn.items()
    }
    expected = torch.tensor(evaluate_numbers(op, small), dtype=torch.float64)
    assume(bool(expected.isfinite().all()))
    largest = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(evaluate(op, small).double(), expected, rtol=1e-11, atol=1e-12 * largest)
