# Causal softmax attention (Vaswani et al. 2017, "Attention Is All You Need")
op attention(q, k, v):
    return attend(causal, q, k, v, normalize=softmax, scale=1 / sqrt(key))
