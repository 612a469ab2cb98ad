# Forgetting Transformer (Lin et al. 2025): softmax attention with a forget gate, sigmoid(f), on the path from j to i
op forgetting(q, k, v, f: [time, head]):
    return attend(decay(logsigmoid(f)), q, k, v, normalize=softmax, scale=1 / sqrt(key))
