# Lightning Attention-2 (Qin et al. 2024): retention with the decay exp(-s)
op lightning(q, k, v, s: [head]):
    L = causal * exp(-s * (i - j))
    return attend(L, q, k, v, scale=1 / sqrt(key))
