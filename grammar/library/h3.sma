# H3 (Fu et al. 2023, "Hungry Hungry Hippos"): a short filter s on the keys, then a diagonal state-space model
op h3(q, k, v, s: [lag, head, key], c, a, w: [head, mode]):
    past = s[i - j] @ k
    L = causal * sum(c * exp(-a * (i - j)) * cos(w * (i - j)), mode)
    return attend(L, q, past, v)
