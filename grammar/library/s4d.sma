# S4D (Gu et al. 2022): a long convolution whose filter is a sum of damped oscillations, one for each mode
op s4d(v: [time, head], a, w, cr, ci: [head, mode], d: [head]):
    turn = w * (i - j)
    L = causal * sum(2 * exp(-a * (i - j)) * (cr * cos(turn) - ci * sin(turn)), mode)
    return L @ v + d * v
