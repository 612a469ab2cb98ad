# ALiBi (Press et al. 2022, "Train Short, Test Long"): a bias of -slope * (i - j) is a factor inside the softmax
op alibi(q, k, v, slope: [head]):
    L = causal * exp(-slope * (i - j))
    return attend(L, q, k, v, normalize=softmax, scale=1 / sqrt(key))
