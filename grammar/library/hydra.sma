# Hydra (Hwang et al. 2024): a quasiseparable mixer, one state-space model in each direction and a diagonal
op hydra(q, k, v, dt: [time, head], q2: [time, head, key], k2: [time, head, key], dt2: [time, head], a: [head],
         d: [time, head]):
    back = (i <= j) * exp(sum(dt2[t] * a, i <= t < j))
    return shift(attend(decay(dt * a), q, k, dt * v)) + unshift(attend(back, q2, k2, dt2 * v)) + d * v
