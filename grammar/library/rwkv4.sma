# RWKV-4 (Peng et al. 2023): a row-normalised sum, a head for each channel; w <= 0 decays, u is the bonus of i == j
op rwkv4(k: [time, head], v: [time, head], w: [head], u: [head]):
    L = causal * where(i == j, exp(u), exp(w * (i - j - 1)))
    return attend(L, 1, k, v, normalize=softmax)
