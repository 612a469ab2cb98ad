# Kimi Delta Attention (Kimi Team 2025, "Kimi Linear"): Gated DeltaNet with a gate for each channel of the key
op kda(q, k, v, g: [time, head, key], beta: [time, head]):
    u = solve(strict * decay(g), beta * k, k, beta * v)
    return attend(decay(g), q, k, u, scale=1 / sqrt(key))
