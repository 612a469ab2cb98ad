# Sliding-window attention (Beltagy et al. 2020, "Longformer"): each position sees itself and the w - 1 before it
op sliding_window(q, k, v, w: int):
    return attend(window(w), q, k, v, normalize=softmax, scale=1 / sqrt(key))
