# Causal linear attention without a feature map (Katharopoulos et al. 2020, "Transformers are RNNs")
op linear_attention(q, k, v):
    return attend(causal, q, k, v, scale=1 / sqrt(key))
