# RWKV-7 (Peng et al. 2025, "Goose"): w holds log gates, a and b are the generalised delta rule's vectors
op rwkv7(q, k, v, w, a, b: [time, head, key]):
    before = strict * exp(sum(w[t], j < t < i))
    u = solve(before, -a, b, attend(before, a, k, v))
    return attend(decay(w), q, k, v) + attend(decay(w), q, b, u)
