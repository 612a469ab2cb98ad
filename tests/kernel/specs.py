"""Specs of the scalar-gated linear family, beside the library's, that between them use every part of the kernels."""

from __future__ import annotations

from kernel.gradient_specs import GRADIENT_SPECS

from sma_compiler.driver import compile_source
from sma_compiler.interface import library
from sma_compiler.runtime.op import CompiledOp
from sma_compiler.source import Source

LIBRARY = ("linear_attention", "linear_attention_normalized", "retention", "lightning", "simple_gla", "mamba2")

SPECS = {
    "two_streams": """
op two_streams(q, k, v, g: [time, head], h: [time, head]):
    return attend(decay(g) + 0.5 * decay(h), q, k, v)
""",
    "factors": """
op factors(q, k, v, g: [time, head], c: [time, head]):
    L = decay(g) * c[i] * c[j]
    return silu(v) * attend(L, l2norm(q), silu(k), v, scale=2)
""",
    "strictly": """
op strictly(q, k, v, g: [time, head]):
    return attend(strict * exp(sum(g[t], j < t < i)), q, k, v)
""",
    "shared_gate": """
op shared_gate(q, k, v, g: [time], beta: [time, head], w: [value], n: real):
    L = decay(logsigmoid(g))
    x = where(v > 0, v, n * v)
    return attend(L, relu(q) + 1, sigmoid(beta) * k, w * tanh(v), normalize=max1, scale=n) + x
""",
    "anticausal": """
op anticausal(q, k, v, g: [time, head], s: [head]):
    L = (i < j) * exp(sum(g[t], i < t < j)) + 0.5 * (i <= j) * exp(-s * (j - i))
    return attend(L, q, k, v)
""",
    "anticausal_sums": """
op anticausal_sums(q, k, v, g: [time, head]):
    L = (i <= j) * exp(sum(g[t], i <= t < j)) * sigmoid(g[j])
    return attend(L, elu(q) + 1, elu(k) + 1, v, normalize=sum)
""",
    "names": """
op names(q, k, v, row: [time, head], y: [time, head], V: [head], T: real, factor: real):
    return attend(decay(logsigmoid(row)) * sigmoid(y[j]), q, k, v, scale=T / key) + factor * v * V * (T * factor)
""",
    "mixed": """
op mixed(q, k, v, g: [time, head], s: [head]):
    L = decay(g) * exp(-s * (i - j)) + 0.5 * retention(exp(-s))
    return attend(L, elu(q) + 1, elu(k) + 1, v, normalize=sum, scale=1 / key)
""",
}


def compiled(name: str) -> CompiledOp:
    """An op of the library, of `SPECS` or of `GRADIENT_SPECS`."""
    specs = {**SPECS, **GRADIENT_SPECS}
    return library(name) if name in LIBRARY else compile_source(Source(specs[name], name))
