# Prefix language model (Raffel et al. 2020, T5): the first n positions are seen by all
op prefix_lm(q, k, v, n: int):
    return attend(prefix(n), q, k, v, normalize=softmax, scale=1 / sqrt(key))
