# A gated state that a new document resets, and softmax inside the document beside it
op documents_with_memory(q, k, v, g: [time, head], doc: int[time]):
    same = documents(doc)
    remembered = attend(decay(g) * same, q, k, v, scale=1 / sqrt(key))
    looked_up = attend(causal * same, q, k, v, normalize=softmax, scale=1 / sqrt(key))
    return remembered + looked_up
