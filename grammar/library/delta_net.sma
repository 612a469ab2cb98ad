# DeltaNet (Schlag et al. 2021; in parallel: Yang et al. 2024, "Parallelizing Linear Transformers with the Delta Rule")
op delta_net(q, k, v, beta: [time, head]):
    u = solve(strict, beta * k, k, beta * v)
    return attend(causal, q, k, u, scale=1 / sqrt(key))
