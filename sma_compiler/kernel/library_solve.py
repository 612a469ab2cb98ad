"""Leaf helpers of emitted kernels that invert, inside a chunk, what a delta rule solves; each copied into a file."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def quarters(a):
    """The upper left, lower left and lower right quarters of matrices [n, 2 s, 2 s]."""
    n: tl.constexpr = a.shape[0]
    s: tl.constexpr = a.shape[1] // 2
    by_half = tl.permute(tl.reshape(a, [n, 2, s, 2, s]), [0, 2, 4, 1, 3])
    left, right = tl.split(by_half)
    first, below = tl.split(left)
    _, last = tl.split(right)
    return first, below, last


@triton.jit
def inverse_by_rows(a, DOT: tl.constexpr):
    """`inverse_below` of matrices so small that no product pays, row by row; of fp32 operands in fp64."""
    s: tl.constexpr = a.shape[1]
    if tl.float32 == DOT:
        a = a.to(tl.float64)
    a = tl.permute(a, [1, 0, 2])  # a thread has all rows of a column
    o_s = tl.arange(0, s)
    inverse = -a
    for j in tl.static_range(1, s - 1):
        row = tl.sum(tl.where(o_s[:, None, None] == j, inverse, 0.0), 0)
        column = tl.gather(a, tl.full(a.shape, j, tl.int32), 2)
        inverse -= column * row[None, :, :]
    return tl.permute(inverse, [1, 0, 2]).to(tl.float32)


@triton.jit
def inverse_below(
    a,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    PARTS: tl.constexpr,
):
    """N of (I + A)^-1 = I + N for strictly lower triangular A, both [n, s, s]: of halves, then what joins them.

    Every entry is a sum of few products of what is as large as N itself: powers of A, which may be far larger, do not
    occur. PARTS: where N is rounded to bf16, factors are two parts in bf16 each; that takes registers.
    """
    n: tl.constexpr = a.shape[0]
    s: tl.constexpr = a.shape[1] // 2
    rounding: tl.constexpr = "bf16x3" if PARTS and tl.bfloat16 == DOT else PRECISION
    if s < 16:
        inverse = inverse_by_rows(a, DOT)
    else:
        first, below, last = quarters(a)
        halves = tl.permute(tl.join(first, last), [0, 3, 1, 2])
        halves = inverse_below(tl.reshape(halves, [2 * n, s, s]), DOT, PRECISION, PARTS)
        halves = tl.permute(tl.reshape(halves, [n, 2, s, s]), [0, 2, 3, 1])
        first, last = tl.split(halves)
        below += tl.dot(last, below, input_precision=rounding)
        below += tl.dot(below, first, input_precision=rounding)
        left = tl.join(first, -below)
        right = tl.join(tl.zeros_like(last), last)
        inverse = tl.permute(tl.join(left, right), [0, 3, 1, 4, 2])
        inverse = tl.reshape(inverse, [n, 2 * s, 2 * s])
    return inverse


@triton.jit
def inverse_of_chunk(
    a,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    PARTS: tl.constexpr,
):
    """`inverse_below` of one matrix, [C, C]."""
    s: tl.constexpr = a.shape[0]
    inverse = inverse_below(tl.reshape(a, [1, s, s]), DOT, PRECISION, PARTS)
    return tl.reshape(inverse, [s, s])
