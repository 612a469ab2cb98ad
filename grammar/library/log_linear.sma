# Log-linear attention (Guo et al. 2025): a weight for each level of a Fenwick tree over the past
op log_linear(q, k, v, g: [time, head], w: [time, head, level]):
    return attend(decay(g) * levels(w), q, k, v, scale=1 / sqrt(key))
