# Hyena (Poli et al. 2023), order 2: a long filter c between two gates; b is the filter's skip
op hyena(v, x0, x1: [time, head, value], c: [lag, head, value], b: [head, value]):
    u = x1 * v
    return x0 * (c[i - j] @ u + b * u)
