# Gated linear attention (Yang et al. 2024), a gate for each channel of the key; g holds log gates
op gla(q, k, v, g: [time, head, key]):
    return attend(decay(g), q, k, v, scale=1 / sqrt(key))
