# A mask that decays in both directions, each with gates of its own: the compiler finds rank 1 on either side
op two_sided_decay(q, k, v, past, future: [time, head]):
    L = decay(past) + transpose(decay(future)) * (i < j)
    return attend(L, q, k, v, scale=1 / sqrt(key))
