# Mamba-3 (Lahoti et al. 2026): a trapezoidal step and a rotation that depends on the data; adt holds log gates
op mamba3(q, k, v, adt, dt, trap: [time, head], qb, kb: [head, key], angle: [time, head, mode], d: [head]):
    turn = cumsum(angle * dt)
    m = sigmoid(trap)
    now = (m * dt)[i] * (i == j)
    before = ((1 - m) * dt * exp(adt))[i] * (i - j == 1)
    L = decay(adt) @ (now + before)
    return attend(L, rope(q + qb, turn), rope(k + kb, turn), v) + d * v
