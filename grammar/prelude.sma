# Masks

def causal = i >= j
def strict = i > j
def full = i == i
def window(w) = 0 <= i - j < w
def band(lo, hi) = lo <= i - j <= hi
def prefix(n) = i >= j or j < n

# Decays. `g` holds log gates: 1-semiseparable where it has a time axis, constant where it has none.
def decay(g) = causal * exp(sum(g[t], j < t <= i))
def retention(gamma) = causal * gamma ** (i - j)
def alibi(slope) = causal * exp(-slope * (i - j))
def semiseparable(c, g, b) = sum(c[i] * decay(g) * b[j], key)

# A filter over `lag`
def toeplitz(c) = c[i - j]

# Tensors over time
def shift(x) = (i - j == 1) @ x
def unshift(x) = (j - i == 1) @ x
def cumsum(x) = causal @ x

# Runs of equal ids: an id that comes back starts a new run
def documents(id) = cumsum(id != shift(id))[i] == cumsum(id != shift(id))[j]

# Norms over `key`
def l2norm(x) = x / sqrt(sum(x * x, key) + 1e-6)
def rmsnorm(x) = x / sqrt(mean(x * x, key) + 1e-5)
