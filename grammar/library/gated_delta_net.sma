# Gated DeltaNet (Yang et al. 2025, "Gated Delta Networks"); g holds log gates
op gated_delta_net(q, k, v, g: [time, head], beta: [time, head]):
    u = solve(strict * decay(g), beta * k, k, beta * v)
    return attend(decay(g), q, k, u, scale=1 / sqrt(key))
