# HGRN2 (Qin et al. 2024): the key is what the forget gate exp(g) leaves
op hgrn2(q, v, g: [time, head, key]):
    return attend(decay(g), q, 1 - exp(g), v)
