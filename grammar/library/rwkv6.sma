# RWKV-6 (Peng et al. 2024, "Eagle and Finch"); w holds log gates for each channel, u is the bonus of i == j
op rwkv6(q, k, v, w: [time, head, key], u: [head, key]):
    L = causal * where(i == j, u, exp(sum(w[t], j < t < i)))
    return attend(L, q, k, v)
