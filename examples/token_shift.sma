# Token shift (RWKV): each position blended with the one before it, by a learned weight per channel
op token_shift(x: [time, value], mix: [value]):
    return x + mix * (shift(x) - x)
