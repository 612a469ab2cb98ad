# Mamba-1, S6 (Gu & Dao 2023): a head for each channel, no value axis; a < 0
op mamba1(q: [time, key], k: [time, key], v: [time, head], dt: [time, head], a: [head, key], d: [head]):
    return attend(decay(dt * a), q, k, dt * v) + d * v
