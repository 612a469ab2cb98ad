"""Specs of the quadratic plan that between them use every part of its kernels, beside the library's."""

from __future__ import annotations

from sma_compiler.driver import compile_source
from sma_compiler.interface import library
from sma_compiler.runtime.op import CompiledOp
from sma_compiler.source import Source

SOFTMAX = ("attention", "alibi", "sliding_window", "document", "prefix_lm", "forgetting")
LINEAR = (
    "linear_attention",
    "linear_attention_normalized",
    "linear_attention_full",
    "retention",
    "lightning",
    "simple_gla",
    "mamba2",
    "log_linear",
)
LIBRARY = (*SOFTMAX, *LINEAR)

PAIR_SPECS = {
    "document_window": """
op document_window(q, k, v, doc: int[time], w: int):
    return attend((0 <= i - j < w) * documents(doc), q, k, v, normalize=softmax, scale=1 / sqrt(key))
""",
    "fading_window": """
op fading_window(q, k, v, f: [time, head], w: int):
    return attend(window(w) * decay(logsigmoid(f)), q, k, v, normalize=softmax, scale=1 / sqrt(key))
""",
    "both_ways": """
op both_ways(q, k, v, doc: int[time]):
    return attend(documents(doc), q, k, v, normalize=softmax, scale=1 / sqrt(key))
""",
    "prefix_in_document": """
op prefix_in_document(q, k, v, doc: int[time], n: int):
    return attend(documents(doc) * prefix(n), q, k, v, normalize=softmax, scale=1 / sqrt(key))
""",
    "far_band": """
op far_band(q, k, v):
    return attend(band(3, 9), q, k, v, normalize=softmax, scale=-0.3)
""",
    "sinks": """
op sinks(q, k, v, w: int):
    return attend((0 <= i - j < w) or (i >= j) * (j < 4), q, k, v, normalize=softmax)
""",
    "returning": """
op returning(q, k, v, doc: int[time], on: bool[time]):
    return attend(causal * (doc[i] == doc[j]) * on[j], q, k, v, normalize=softmax)
""",
    "two_sided": """
op two_sided(q, k, v, g: [time, head], h: [time, head]):
    L = where(i >= j, exp(sum(g[t], j < t <= i)), exp(sum(h[t], i < t <= j)))
    return attend(L, q, k, v, normalize=softmax, scale=1 / sqrt(key))
""",
    "bias": """
op bias(q, k, v, r: [time, head], c: [time, head], s: [head], g: [time], z: [time, head, value]):
    L = causal * exp(sum(g[t], j <= t < i) - s * sqrt(1 + i - j)) * sigmoid(r[i]) * exp(c[j] * s)
    return silu(z) * attend(L, l2norm(q), silu(k), v, normalize=softmax, scale=3) + v
""",
    "squared_relu": """
op squared_relu(q, k, v, s: [head], f: [time, head]):
    L = causal * exp(-s * (i - j)) * f[j] * (1 + f[i] * f[i])
    return attend(L, q, k, tanh(v), activation=gelu, normalize=max1, scale=1 / sqrt(key))
""",
    "open_path": """
op open_path(q, k, v, g: [time, head], d: [head]):
    return attend(strict * exp(sum(g[t], j < t < i)), sigmoid(q), sigmoid(k), v, normalize=sum) + d * v
""",
    "anticausal": """
op anticausal(q, k, v, g: [time, head], s: [head]):
    L = (i <= j) * exp(sum(g[t] - s, i <= t < j)) + 0.5 * (i < j) * exp(-s * (j - i))
    return attend(L, q, k, v)
""",
    "overlapping": """
op overlapping(q, k, v, g: [time, head]):
    return attend(decay(g) + 0.5 * (i - j == 1), q, k, v, normalize=softmax)
""",
    "relative": """
op relative(q, k, v, c: [lag, head], f: [time, head]):
    return attend(decay(logsigmoid(f)) * exp(c[i - j]), q, k, v, normalize=softmax, scale=1 / sqrt(key))
""",
    "taps": """
op taps(q, k, v, c: [head, lag], b: [lag], s: [head]):
    return attend(silu(c)[j - i] * exp(-s * (j - i)) * b[j - i] + 0.1 * (i == j), q, k, v)
""",
    "strided": """
op strided(q, k, v, n: int, s: [head]):
    near = i // 8 == j // 8
    return attend(causal * ((j - i) % n == 0 or near) * exp(-s * ((j - i) % 7)), q, k, v, normalize=softmax)
""",
    "level_bias": """
op level_bias(q, k, v, w: [time, head, level], g: [time, head]):
    return attend((i - j < 40) * decay(g) * exp(levels(w)), q, k, v, normalize=softmax)
""",
    "both_levels": """
op both_levels(q, k, v, w: [time, head, level], u: [time, head, level]):
    return attend(where(i >= j, levels(w), transpose(levels(u))), q, k, v)
""",
}


def compiled(name: str) -> CompiledOp:
    """An op of the library or of `PAIR_SPECS`."""
    return library(name) if name in LIBRARY else compile_source(Source(PAIR_SPECS[name], name))
