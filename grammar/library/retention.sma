# RetNet (Sun et al. 2023, "Retentive Network"): a constant decay for each head
op retention(q, k, v, gamma: [head]):
    L = causal * gamma ** (i - j)
    return attend(L, q, k, v, scale=1 / sqrt(key))
