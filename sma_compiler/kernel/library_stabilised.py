"""Leaf helpers of emitted kernels for sums of exponentials that are kept in units of the largest one.

Sums are n and d, their unit is exp(m + r), r what rounding took of m; of nothing m is -1e30. EXACT: powers to rounding.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sma_compiler.kernel.library import exact_exp
from sma_compiler.kernel.library_channels import nothing


@triton.jit
def plus_rest(a, b):
    """a + b, and what rounding takes of it."""
    s = a + b
    c = s - a
    return s, (a - (s - c)) + (b - c)


@triton.jit
def weight_of(x, EXACT: tl.constexpr):
    """exp(x)."""
    return exact_exp(x) if EXACT else tl.exp(x)


@triton.jit
def sums_joined(n, d, m, r, g, n2, d2, m2, r2, EXACT: tl.constexpr):
    """Sums that g decays and further ones as one, their unit, and what both weigh in it: one of them 1."""
    s, rest = plus_rest(m, g)
    r += rest
    late = s < m2
    far = (s - m2) + (r - r2)
    less = weight_of(tl.where(late, far, -far), EXACT)
    old = tl.where(late, less, 1.0)
    new = tl.where(late, 1.0, less)
    n, d = n * old + n2 * new, d * old + d2 * new
    return n, d, tl.where(late, m2, s), tl.where(late, r2, r), old, new


@triton.jit
def row_of(x, r):
    """Row r of a tile [R, V]: a thread has all rows of a channel, and its registers are renamed."""
    o_r = tl.arange(0, x.shape[0])[:, None]
    return tl.sum(tl.where(o_r == r, x, nothing(x.shape)), 0)


@triton.jit
def state_rows(n, d, m, r):
    """Sums and the logarithm of their unit, [V], as the rows of a state [4, V]."""
    o_s = tl.arange(0, 4)[:, None]
    low = tl.where(o_s == 0, n[None, :], d[None, :])
    return tl.where(o_s < 2, low, tl.where(o_s == 2, m[None, :], r[None, :]))


@triton.jit
def sums_along(g, n, d, m, s, EXACT: tl.constexpr):
    """Sums and their unit before every position of a tile [C, V], what both weigh that it joins; the state behind.

    A position decays by g what it finds, and adds n and d in units of exp(m). s: the state before the tile, [4, V].
    """
    o_c = tl.arange(0, g.shape[0])[:, None]
    a, b, c, r = row_of(s, 0), row_of(s, 1), row_of(s, 2), row_of(s, 3)
    c = tl.maximum(c, -1e30)
    above, below, top, rest, old, new = n, d, m, m, m, m
    for t in tl.static_range(g.shape[0]):
        here = o_c == t
        above = tl.where(here, a[None, :], above)
        below = tl.where(here, b[None, :], below)
        top = tl.where(here, c[None, :], top)
        rest = tl.where(here, r[None, :], rest)
        added = row_of(n, t), row_of(d, t), row_of(m, t)
        a, b, c, r, e, w = sums_joined(a, b, c, r, row_of(g, t), *added, 0.0, EXACT)
        old = tl.where(here, e[None, :], old)
        new = tl.where(here, w[None, :], new)
    return above, below, top, rest, old, new, state_rows(a, b, c, r)


@triton.jit
def sums_seen(n, d, s, r, score, more, x, EXACT: tl.constexpr):
    """What rows sum and by what they divide, and the weights in it of the past and of their own column: one of them 1.

    The unit of the past is exp(s + r), and x weighs exp(score + more).
    """
    top, rest = plus_rest(score, more)
    late = s < top
    far = (s - top) + (r - rest)
    less = weight_of(tl.where(late, far, -far), EXACT)
    old = tl.where(late, less, 1.0)
    own = tl.where(late, 1.0, less)
    return n * old + x * own, d * old + own, old, own


@triton.jit
def whole_unit(s):
    """A state in units of the rounded logarithm."""
    o_s = tl.arange(0, 4)[:, None]
    s = tl.where(o_s < 2, s * exact_exp(row_of(s, 3))[None, :], s)
    return tl.where(o_s == 3, 0.0, s)


@triton.jit
def between_units(s, units_ptr, index, o_v, m_v, V, given):
    """What sums in units of a state weigh in those of the state of some index, if that is `given`, or of s rounded."""
    far = row_of(s, 3)
    if units_ptr is not None:
        p_m = units_ptr + (index * 4 + 2) * V + o_v
        m = tl.load(p_m, mask=m_v & given, other=0.0)
        r = tl.load(p_m + V, mask=m_v & given, other=0.0)
        far = tl.where(given, (tl.maximum(row_of(s, 2), -1e30) - m) + (far - r), far)
    return exact_exp(far)[None, :]


@triton.jit
def cotangents_back(e, n, d, s):
    """Cotangents of sums behind every position of a tile [C, V], and s, [4, V], of those before it.

    s_(t-1) = e_t s_t + (n_t, d_t): the unit of each is that of the sums, whose weight falls by e.
    """
    o_c = tl.arange(0, e.shape[0])[:, None]
    a, b = row_of(s, 0), row_of(s, 1)
    above, below = n, d
    for i in tl.static_range(e.shape[0]):
        t = e.shape[0] - 1 - i
        above = tl.where(o_c == t, a[None, :], above)
        below = tl.where(o_c == t, b[None, :], below)
        a = row_of(e, t) * a + row_of(n, t)
        b = row_of(e, t) * b + row_of(d, t)
    return above, below, state_rows(a, b, tl.zeros_like(a), tl.zeros_like(a))


@triton.jit
def cotangents_handed(e, n, d, s, p):
    """What the positions of a tile hand to before a part, added to s, [4, V], and p, the decay since its start."""
    a, b, decay = row_of(s, 0), row_of(s, 1), row_of(p, 0)
    for t in tl.static_range(e.shape[0]):
        a = a + decay * row_of(n, t)
        b = b + decay * row_of(d, t)
        decay = decay * row_of(e, t)
    s = state_rows(a, b, tl.zeros_like(a), tl.zeros_like(a))
    return s, decay[None, :] + tl.zeros_like(p)


@triton.jit
def gates_along(g, p):
    """The sum of log gates as the first two rows of p, [4, V], and those of a tile [C, V]: large and small."""
    total, rest = row_of(p, 0), row_of(p, 1)
    for t in tl.static_range(g.shape[0]):
        total, lost = plus_rest(total, row_of(g, t))
        rest += lost
    return state_rows(total, rest, total, rest)


@triton.jit
def scan_sums_kernel(
    local_ptr,
    gates_ptr,
    initial_ptr,
    V,
    PARTS,
    BLOCK: tl.constexpr,
):
    """Replace the state [4, V] that each part of a sequence adds by the one it begins with, see `gates_along`."""
    i_s = tl.program_id(1).to(tl.int64)
    o_v = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_v = o_v < V
    b_n = tl.zeros([BLOCK], dtype=tl.float32)
    b_d = tl.zeros([BLOCK], dtype=tl.float32)
    b_m = tl.full([BLOCK], -1e30, dtype=tl.float32)
    b_r = tl.zeros([BLOCK], dtype=tl.float32)
    if initial_ptr is not None:
        p_s = initial_ptr + i_s * 4 * V + o_v
        b_n = tl.load(p_s, mask=m_v, other=0.0)
        b_d = tl.load(p_s + V, mask=m_v, other=0.0)
        b_m = tl.maximum(tl.load(p_s + 2 * V, mask=m_v, other=0.0), -1e30)
        b_r = tl.load(p_s + 3 * V, mask=m_v, other=0.0)
    for i_p in tl.range(PARTS, num_stages=8):
        place = (i_s * PARTS + i_p) * 4 * V + o_v
        b_n2 = tl.load(local_ptr + place, mask=m_v, other=0.0)
        b_d2 = tl.load(local_ptr + place + V, mask=m_v, other=0.0)
        b_m2 = tl.load(local_ptr + place + 2 * V, mask=m_v, other=0.0)
        b_r2 = tl.load(local_ptr + place + 3 * V, mask=m_v, other=0.0)
        b_g = tl.load(gates_ptr + place, mask=m_v, other=0.0)
        b_rest = tl.load(gates_ptr + place + V, mask=m_v, other=0.0)
        tl.store(local_ptr + place, b_n, mask=m_v)
        tl.store(local_ptr + place + V, b_d, mask=m_v)
        tl.store(local_ptr + place + 2 * V, b_m, mask=m_v)
        tl.store(local_ptr + place + 3 * V, b_r, mask=m_v)
        b_r += b_rest
        local = b_n2, b_d2, b_m2, b_r2
        joined = sums_joined(b_n, b_d, b_m, b_r, b_g, *local, True)
        b_n, b_d, b_m, b_r, _, _ = joined
