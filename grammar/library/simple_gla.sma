# Gated linear attention with one gate for each head; g holds log gates (Yang et al. 2024, GLA; Sun et al. 2024, YOCO)
op simple_gla(q, k, v, g: [time, head]):
    return attend(decay(g), q, k, v, scale=1 / sqrt(key))
