"""Leaf helpers of emitted kernels for sums of exponentials that are kept in units of the largest one.

Sums are n and d, their unit is exp(m); -1e30 is the logarithm of nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sma_compiler.kernel.library import exact_exp


@triton.jit
def plus_rest(a, b):
    """a + b, and what rounding takes of it."""
    s = a + b
    c = s - a
    return s, (a - (s - c)) + (b - c)


@triton.jit
def sums_joined(g, n, d, m, g2, n2, d2, m2):
    """Two runs of positions, each as its log gates and the sums behind it, as one."""
    s, rest = plus_rest(m, g2)
    m = tl.maximum(s, m2)
    old = exact_exp((s - m) + rest)
    new = exact_exp(m2 - m)
    return g + g2, n * old + n2 * new, d * old + d2 * new, m


@triton.jit
def sums_joined_both(g, n, d, m, h, a, b, c, g2, n2, d2, m2, h2, a2, b2, c2):
    """`sums_joined` with the second run, and with the second run without its last position."""
    h, a, b, c = sums_joined(g, n, d, m, h2, a2, b2, c2)
    g, n, d, m = sums_joined(g, n, d, m, g2, n2, d2, m2)
    return g, n, d, m, h, a, b, c


@triton.jit
def rows_of_state(s):
    """Sums and the logarithm of their unit, [V], which are the rows of a state [4, V]."""
    o_s = tl.arange(0, s.shape[0])[:, None]
    n = tl.sum(tl.where(o_s == 0, s, 0.0), 0)
    d = tl.sum(tl.where(o_s == 1, s, 0.0), 0)
    m = tl.sum(tl.where(o_s == 2, s, 0.0), 0)
    return n, d, tl.maximum(m, -1e30)


@triton.jit
def state_rows(n, d, m, position):
    """The state at one position of a tile [C, V], as rows."""
    here = tl.arange(0, m.shape[0])[:, None] == position
    n = tl.sum(tl.where(here, n, 0.0), 0)[None, :]
    d = tl.sum(tl.where(here, d, 0.0), 0)[None, :]
    m = tl.sum(tl.where(here, m, 0.0), 0)[None, :]
    o_s = tl.arange(0, 4)[:, None]
    return tl.where(o_s == 0, n, tl.where(o_s == 1, d, tl.where(o_s == 2, m, 0.0)))


@triton.jit
def sums_along(g, n, d, m, s):
    """Sums and units after every position of a tile [C, V] and before it, from a state [4, V] on.

    A position decays by g what it finds, and adds n and d in units of exp(m).
    """
    n0, d0, m0 = rows_of_state(s)
    n0, d0, m0 = n0[None, :], d0[None, :], m0[None, :]
    first = tl.arange(0, m.shape[0])[:, None] == 0
    none = tl.zeros_like(m)
    _, n1, d1, m1 = sums_joined(none, n0, d0, m0, g, n, d, m)
    n = tl.where(first, n1, n)
    d = tl.where(first, d1, d)
    m = tl.where(first, m1, m)
    a = tl.where(first, n0, 0.0)
    b = tl.where(first, d0, 0.0)
    c = tl.where(first, m0, -1e30)
    runs = (g, n, d, m, none, a, b, c)
    _, n, d, m, _, a, b, c = tl.associative_scan(runs, 0, sums_joined_both)
    return n, d, m, a, b, c


@triton.jit
def sums_back(g, n, d, m, s):
    """The same from the end of the tile."""
    g, n, d, m = tl.flip(g, 0), tl.flip(n, 0), tl.flip(d, 0), tl.flip(m, 0)
    n, d, m, a, b, c = sums_along(g, n, d, m, s)
    n, d, m = tl.flip(n, 0), tl.flip(d, 0), tl.flip(m, 0)
    return n, d, m, tl.flip(a, 0), tl.flip(b, 0), tl.flip(c, 0)


@triton.jit
def sums_seen(n, d, m, g, score, more, x):
    """What rows sum and by what they divide, the logarithm of the unit, and the weights of the past and of their own.

    Rows read sums that g decays, and x, which weighs exp(score + more).
    """
    s, rest = plus_rest(m, g)
    top = tl.maximum(s, score + more)
    old = exact_exp((s - top) + rest)
    own = exact_exp((score - top) + more)
    return n * old + x * own, d * old + own, top, old, own


@triton.jit
def in_unit(d, s):
    """The cotangent of a state in units of exp(-m), m that of the state: with -m as its third row."""
    _, _, m = rows_of_state(s)
    return tl.where(tl.arange(0, 4)[:, None] == 2, -m[None, :], d)


@triton.jit
def of_unit(d, s):
    """A cotangent in units of its own as that of a state, which has a unit."""
    _, _, unit = rows_of_state(d)
    _, _, m = rows_of_state(s)
    return tl.where(tl.arange(0, 4)[:, None] < 2, d * exact_exp(m + unit)[None, :], 0.0)
