# Mamba-2 (Dao & Gu 2024, "Transformers are SSMs"), the SSD layer; a < 0
op mamba2(q, k, v, dt: [time, head], a: [head], bias: [head], d: [head]):
    step = softplus(dt + bias)
    return attend(decay(step * a), q, k, step * v) + d * v
