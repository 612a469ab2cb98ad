# Softmax attention with ALiBi's distance penalty inside a sliding window of w positions
op local_alibi(q, k, v, slope: [head], w: int):
    L = (0 <= i - j < w) * exp(-slope * (i - j))
    return attend(L, q, k, v, normalize=softmax, scale=1 / sqrt(key))
