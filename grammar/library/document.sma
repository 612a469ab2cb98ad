# Causal attention inside documents packed into one row (Grattafiori et al. 2024, "The Llama 3 Herd of Models")
op document(q, k, v, doc: int[time]):
    return attend(causal * documents(doc), q, k, v, normalize=softmax, scale=1 / sqrt(key))
