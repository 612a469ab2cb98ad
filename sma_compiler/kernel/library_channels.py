"""Leaf helpers of emitted kernels for gates that differ by channel, each copied into a file that uses it."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def plus(t1, e1, t2, e2):
    """Joins runs of numbers, each as its sum and the sum without its last number: no difference is taken."""
    return t1 + t2, t1 + e2


@triton.jit
def plus_within(t1, e1, f1, t2, e2, f2):
    """`plus` of runs that do not pass the first number of a block, which has a flag of 1."""
    return tl.where(f2 > 0, t2, t1 + t2), tl.where(f2 > 0, e2, t1 + e2), f1 | f2


@triton.jit
def sums_of(keep, x, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """Sums of those rows of x that `keep` [C, C] holds, products of ones with x and with what rounding took."""
    ones = keep.to(DOT)
    first = x.to(DOT)
    rest = (x - first.to(tl.float32)).to(DOT)
    sums = tl.dot(ones, rest, input_precision=PRECISION)
    return tl.dot(ones, first, sums, input_precision=PRECISION)


@triton.jit
def sums_before(
    x,
    o_c,
    CLOSED: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The sum of rows from the first to every row, with it where CLOSED."""
    if tl.bfloat16 == DOT:
        keep = o_c[:, None] >= o_c[None, :] if CLOSED else o_c[:, None] > o_c[None, :]
        sums = sums_of(keep, x, DOT, PRECISION)
    elif CLOSED:
        sums = tl.cumsum(x, 0)
    else:
        _, sums = tl.associative_scan((x, tl.zeros_like(x)), 0, plus)
    return sums


@triton.jit
def sums_after(
    x,
    o_c,
    CLOSED: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The sum of rows from every row to the last, with it where CLOSED."""
    if tl.bfloat16 == DOT:
        keep = o_c[:, None] <= o_c[None, :] if CLOSED else o_c[:, None] < o_c[None, :]
        sums = sums_of(keep, x, DOT, PRECISION)
    elif CLOSED:
        sums = tl.cumsum(x, 0, reverse=True)
    else:
        _, sums = tl.associative_scan((x, tl.zeros_like(x)), 0, plus, reverse=True)
    return sums


@triton.jit
def farthest(sums):
    """What no sum of rows from the first on is larger than; below 64, powers of 2 stay far inside of bf16's range."""
    return tl.max(tl.abs(sums))


@triton.jit
def end_of_run(p, first, count, RUN: tl.constexpr, DOT: tl.constexpr):
    """Where RUN of `count` chunks end that begin with the first; right there if none of them reaches far, by p."""
    end = tl.minimum(first + RUN, count)
    if tl.bfloat16 == DOT:
        o_r = first + tl.arange(0, RUN)
        far = tl.max(tl.load(p + o_r, mask=o_r < count, other=0.0), 0)
        end = tl.where(far < 64.0, first, end)
    return end


@triton.jit
def from_start(
    g,
    o_c,
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Powers of 2 that decay late ends and restore early ends, both counted from the start of the chunk, [C, N]."""
    sums = sums_before(g, o_c, True, DOT, PRECISION)
    late = sums if QUERY else sums - g
    early = sums - g if KEY else sums
    return tl.exp2(late), tl.exp2(-early)


@triton.jit
def by_halves(g, o_c, size, QUERY: tl.constexpr, KEY: tl.constexpr):
    """Powers of 2 that decay from the start of each block of rows to late ends, and from early ends to its end."""
    none = tl.zeros_like(g)
    first = none.to(tl.int32) + (o_c % size == 0).to(tl.int32)[:, None]
    last = none.to(tl.int32) + (o_c % size == size - 1).to(tl.int32)[:, None]
    late, late_open, _ = tl.associative_scan((g, none, first), 0, plus_within)
    given = (g, none, last)
    early, early_open, _ = tl.associative_scan(given, 0, plus_within, reverse=True)
    late = late if QUERY else late_open
    early = early if KEY else early_open
    return tl.exp2(late), tl.exp2(early)


@triton.jit
def next_half(o_r, o_c, size):
    """Where rows lie in the later and columns in the earlier half of the same block of 2 * size positions."""
    return (o_c // size % 2 == 0) & (o_r // size == o_c // size + 1)


@triton.jit
def scores_by_halves(
    p,
    s,
    g,
    o_c,
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sum over n of p[r, n] s[c, n] times 2 ** (the sum of g[t, n] along the path from c to r); 0 unless r > c.

    QUERY, KEY: whether the path holds r, and c. Pairs by the smallest aligned block that holds them, decayed to and
    from its middle: no power is larger than 1 where gates are at most 0, and no difference of sums is taken.
    """
    a = tl.zeros([g.shape[0], g.shape[0]], dtype=tl.float32)
    size = 1
    while size < g.shape[0]:
        late, early = by_halves(g, o_c, size, QUERY, KEY)
        later = (p * late).to(DOT)
        sooner = tl.trans((s * early).to(DOT))
        product = tl.dot(later, sooner, input_precision=PRECISION)
        a = tl.where(next_half(o_c[:, None], o_c[None, :], size), product, a)
        size *= 2
    return a


@triton.jit
def weighed(
    weights,
    x,
    at_x,
    w,
    at_w,
    FINE: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Pairs' weights times x, decayed: the rows, and the sums of the pairs' weights times w.

    Whether summed by rows or by columns, pairs round alike: what two such sums share cancels. FINE: in tf32, as bf16
    rounds a weight by one error for all channels of a pair.
    """
    if FINE:
        other = (x * at_x).to(DOT).to(tl.float32)
        product = tl.dot(weights, other, input_precision="tf32")
    else:
        product = tl.dot(weights.to(DOT), (x * at_x).to(DOT), input_precision=PRECISION)
    return at_w * product, (w * at_w).to(DOT).to(tl.float32) * product


@triton.jit
def product_by_halves(
    a,
    x,
    w,
    y,
    z,
    g,
    o_c,
    BACKWARD: tl.constexpr,
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`channel_product`, pairs as in `scores_by_halves`."""
    fine: tl.constexpr = tl.bfloat16 == DOT
    size = 1
    while size < g.shape[0]:
        late, early = by_halves(g, o_c, size, QUERY, KEY)
        if BACKWARD:
            weights = tl.where(next_half(o_c[None, :], o_c[:, None], size), a, 0.0)
            more, sums = weighed(weights, x, late, w, early, fine, DOT, PRECISION)
        else:
            weights = tl.where(next_half(o_c[:, None], o_c[None, :], size), a, 0.0)
            more, sums = weighed(weights, x, early, w, late, fine, DOT, PRECISION)
        y += more
        z += sums
        size *= 2
    return y, z


@triton.jit
def channel_product(
    a,
    x,
    w,
    y,
    z,
    g,
    o_c,
    BACKWARD: tl.constexpr,
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """y plus the sum over c of a[r, c] x[c, n] times 2 ** (the sum of g[t, n] along the path between them), c < r.

    And z plus the same times w[r, n]. BACKWARD: c > r. QUERY, KEY: whether the path holds its late and its early end.
    One product in bf16, where no power leaves its range.
    """
    passed = sums_before(g, o_c, True, DOT, PRECISION)
    if tl.bfloat16 == DOT and farthest(passed) < 64.0:
        late, early = from_start(g, o_c, QUERY, KEY, DOT, PRECISION)
        if BACKWARD:
            weights = tl.where(o_c[:, None] < o_c[None, :], a, 0.0)
            more, sums = weighed(weights, x, late, w, early, False, DOT, PRECISION)
        else:
            weights = tl.where(o_c[:, None] > o_c[None, :], a, 0.0)
            more, sums = weighed(weights, x, early, w, late, False, DOT, PRECISION)
        y += more
        z += sums
    else:
        y, z = product_by_halves(
            a,
            x,
            w,
            y,
            z,
            g,
            o_c,
            BACKWARD,
            QUERY,
            KEY,
            DOT,
            PRECISION,
        )
    return y, z


@triton.jit
def nothing(shape: tl.constexpr):
    """-0.0, to which a sum is its other term and costs nothing; of the literal Triton makes 0.0."""
    return tl.full(shape, -2147483648, tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def at_position(x, c):
    """What position c of a tile has: a thread has all positions of a channel, and its registers are renamed."""
    o_c = tl.arange(0, x.shape[0])[:, None, None]
    return tl.sum(tl.where(o_c == c, x, nothing(x.shape)), 0)


@triton.jit
def kept_at(e, r, s, u, c):
    """e s + u at position c of a tile. r: what rounding took of e; then e s is not rounded before the sum."""
    e = at_position(e, c)
    return e * s + u if r is None else tl.fma(e, s, tl.fma(at_position(r, c), s, u))


@triton.jit
def carried(e, u, s, r):
    """s_t = e_t s_(t-1) + u_t after and before every position of a tile [C, K, V], from s [K, V]. r: see `kept_at`."""
    o_c = tl.arange(0, e.shape[0])[:, None, None]
    after, before = u, u
    for c in tl.static_range(e.shape[0]):
        before = tl.where(o_c == c, s[None, :, :], before)
        s = kept_at(e, r, s, at_position(u, c), c)
        after = tl.where(o_c == c, s[None, :, :], after)
    return after, before


@triton.jit
def carried_back(e, u, s, r):
    """The same from the end of the tile: s_t = e_t s_(t+1) + u_t."""
    o_c = tl.arange(0, e.shape[0])[:, None, None]
    after, before = u, u
    for i in tl.static_range(e.shape[0]):
        c = e.shape[0] - 1 - i
        before = tl.where(o_c == c, s[None, :, :], before)
        s = kept_at(e, r, s, at_position(u, c), c)
        after = tl.where(o_c == c, s[None, :, :], after)
    return after, before


@triton.jit
def given_back(e, w, s, r):
    """s_(t-1) = e_t (s_t + w_t) from the end of the tile, and the sums in brackets."""
    o_c = tl.arange(0, e.shape[0])[:, None, None]
    out, sums = w, w
    for i in tl.static_range(e.shape[0]):
        c = e.shape[0] - 1 - i
        more = at_position(w, c)
        found = s + more
        more = at_position(e, c) * more
        s = at_position(e, c) * found if r is None else kept_at(e, r, s, more, c)
        sums = tl.where(o_c == c, found[None, :, :], sums)
        out = tl.where(o_c == c, s[None, :, :], out)
    return out, sums


@triton.jit
def decayed_along(e, r, p):
    """p after the decays of all positions of a tile."""
    for c in tl.static_range(e.shape[0]):
        p = kept_at(e, r, p, nothing(p.shape), c)
    return p


@triton.jit
def handed_back(e, r, w, s, p, CLOSED: tl.constexpr):
    """What the positions of a tile hand to before a part, added to s, and p, the decay since the part's start.

    CLOSED: whether a position hands it over its own decay too.
    """
    for c in tl.static_range(e.shape[0]):
        if not CLOSED:
            s = s + p * at_position(w, c)
        p = kept_at(e, r, p, nothing(p.shape), c)
        if CLOSED:
            s = s + p * at_position(w, c)
    return s, p
