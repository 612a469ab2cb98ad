"""Specs whose gates differ by channel, beside the library's: every end of a path, every axis, computed gates."""

from __future__ import annotations

from sma_compiler.driver import compile_source
from sma_compiler.interface import library
from sma_compiler.runtime.op import CompiledOp
from sma_compiler.source import Source

CHANNEL_LIBRARY = ("gla", "hgrn2", "rwkv6", "mamba1", "rwkv4")
CHANNEL_SPECS = {
    "values": """
op values(q, k, v, g: [time, head, value]):
    return silu(v) * attend(decay(g), q, k, sigmoid(v), scale=1 / sqrt(key))
""",
    "closed": """
op closed(q, k, v, g: [time, head, key], beta: [time, head]):
    L = causal * exp(sum(g[t], j <= t <= i)) * sigmoid(beta[i])
    return attend(L, l2norm(q), beta * k, v)
""",
    "late": """
op late(q, k, v, g: [time, head, value], d: [head]):
    return attend(causal * exp(sum(g[t], j <= t < i)), q, silu(k), v) + d * v
""",
    "steps": """
op steps(q, k, v, dt: [time, head], a: [head, key]):
    return attend(decay(softplus(dt) * a), q, k, dt * v)
""",
    "constant": """
op constant(q, k, v, s: [head, key], g: [time, head]):
    L = causal * exp(-s * (i - j)) * exp(sum(g[t], j < t <= i))
    return attend(L, q, k, v)
""",
    "bonus": """
op bonus(q, k, v, w: [time, head, value], u: [head, value]):
    return attend(causal * where(i == j, u, exp(sum(w[t], j < t < i))), q, k, v, scale=0.5)
""",
    "scan": """
op scan(q, k, v, dt: [time, head, value], bias: [head, value], a: [head, value, key], f: [time, head]):
    step = softplus(dt + bias)
    return silu(v) * attend(decay(step * -exp(a)) * decay(f), q, k, step * v, scale=1 / sqrt(key))
""",
    "strict_both": """
op strict_both(q, k, v, g: [time, head, key, value]):
    return attend(strict * exp(sum(g[t], j < t < i)), l2norm(q), k, v)
""",
    "closed_both": """
op closed_both(q, k, v, g: [time, head, key], h: [time, head, value]):
    return attend(causal * exp(sum(g[t], j <= t <= i)) * exp(sum(h[t], j <= t <= i)), q, k, v)
""",
    "late_both": """
op late_both(q, k, v, g: [time, head, key], h: [time, head, value]):
    return attend(causal * exp(sum(g[t], j <= t < i)) * exp(sum(h[t], j <= t < i)), q, k, v)
""",
    "columns": """
op columns(k: [time, head], v: [time, head], g: [time, head], s: [time, head]):
    return silu(v) * attend(decay(g) * exp(s[j]), 1, tanh(k), v, normalize=softmax, scale=0.5)
""",
    "both": """
op both(q, k, v, g: [time, head, key], h: [time, head, value], e: [head, value, key]):
    L = decay(g) * decay(h) * decay(-exp(e) * sigmoid(h))
    return attend(L, q, k, v)
""",
}


def compiled(name: str) -> CompiledOp:
    """An op of the library or of `CHANNEL_SPECS`."""
    return library(name) if name in CHANNEL_LIBRARY else compile_source(Source(CHANNEL_SPECS[name], name))
