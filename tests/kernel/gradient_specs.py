"""Specs whose gradients between them use every part of the backward kernels, beside the library's."""

from __future__ import annotations

ONE_CONTRACTION = {
    "two_decays": """
op two_decays(q, k, v, g: [time, head], h: [time, head], c: [time, head]):
    return attend(c[i] * decay(g) + 0.5 * decay(h) * sigmoid(c[j]), q, k, v)
""",
    "open_ends": """
op open_ends(q, k, v, g: [time, head]):
    return attend(strict * exp(sum(g[t], j < t < i)), q, k, v)
""",
    "closed_ends": """
op closed_ends(q, k, v, g: [time, head], s: [head]):
    return attend(causal * exp(sum(g[t] - s, j <= t <= i)), q, k, v)
""",
    "early_closed": """
op early_closed(q, k, v, g: [time, head]):
    return attend(strict * exp(sum(g[t], j <= t < i)), q, k, v)
""",
    "feature_maps": """
op feature_maps(q, k, v, g: [time, head], w: [key], u: [head, value]):
    return attend(decay(logsigmoid(g)), softplus(w * q), silu(k) + 0.3, tanh(v) * u, scale=1 / key)
""",
    "outer_gate": """
op outer_gate(q, k, v, g: [time, head], z: [time, head, value], d: [head]):
    return attend(decay(g), q, k, v) * silu(z) + d * v
""",
    "unit_keys": """
op unit_keys(q, k, v, g: [time], beta: [time, head]):
    return attend(decay(g), l2norm(q), l2norm(k), sigmoid(beta) * v)
""",
    "at_least_one": """
op at_least_one(q, k, v, f: [time, head], n: real):
    return attend(decay(logsigmoid(f)), q, k, v, normalize=max1, scale=n)
""",
    "normalized_gate": """
op normalized_gate(q, k, v, g: [time, head], z: [time, head, value]):
    return silu(z) * attend(decay(g), elu(q) + 1, elu(k) + 1, v, normalize=sum)
""",
    "signed_factors": """
op signed_factors(q, k, v, r: [time, head], c: [time, head], gamma: [head]):
    return attend(retention(gamma) * r[i], q, c * k, v) + 2 * attend_free(v)

def attend_free(v) = v * v
""",
    "all_roles": """
op all_roles(q, v, g: [time, head], s: [head, key]):
    return attend(decay(g), q * s, exp(g) * q, v) + v * exp(g)
""",
    "no_gate": """
op no_gate(q, k, v, b: [time, head], w: [value]):
    return attend(causal * b[j], q, k, w * v, scale=1 / sqrt(key))
""",
}

STAGED = {
    "one_in_another": """
op one_in_another(q, k, v, q2: [time, head, key], k2: [time, head, key], g: [time, head], b: [time, head]):
    return attend(decay(g), q, k, b * attend(causal, q2, k2, v)) + v
""",
    "three_attends": """
op three_attends(q, k, v, k2: [time, head, key], g: [time, head]):
    return attend(decay(g), q, k, v) + attend(causal, k, k2, attend(causal, q, k2, v))
""",
}

GRADIENT_SPECS = {**ONE_CONTRACTION, **STAGED}
