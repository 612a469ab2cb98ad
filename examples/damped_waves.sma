# Retention whose decay oscillates: heads listen at a distance of one period. Rank 2, from an equation with a cosine
op damped_waves(q, k, v, m, w: [head]):
    L = where(i >= j, exp(-m * (i - j)) * cos(w * (i - j)), 0)
    return attend(L, q, k, v, scale=1 / sqrt(key))
