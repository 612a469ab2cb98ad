"""Helpers of launchers that sum what kernels leave in parts."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


def of_groups(x, heads):
    """x [B, T, H, ...] summed over the heads that share one of `heads`."""
    B, T, H, *rest = x.shape
    if heads == H:
        return x
    return total(x.view(B, T, heads, H // heads, *rest), 3, x.dtype)


def of_all_heads(x, axis, heads):
    """x with each entry of its axis of heads once for every head that it serves."""
    count = x.shape[axis]
    return x if count == heads else x.repeat_interleave(heads // count, axis)


def sum_of(*parts, dtype=None):
    """The sum of the parts of a gradient, rounded once, to theirs by default; None where it is not needed."""
    found = [x for x in parts if x is not None]
    if not found:
        return None
    dtype = found[0].dtype if dtype is None else dtype
    if len(found) == 2:
        return torch.add(*found, out=torch.empty_like(found[0], dtype=dtype))
    total = found[0].float() if len(found) > 2 else found[0]
    for x in found[1:]:
        total = total + x
    return total.to(dtype)


@triton.jit
def total_kernel(x_ptr, y_ptr, N, M, BN: tl.constexpr, BM: tl.constexpr):
    """Each row of y is the sum of N rows of x, of M numbers, in fp32."""
    n_m = tl.cdiv(M, BM)
    i_y = (tl.program_id(0) // n_m).to(tl.int64)
    o_m = tl.program_id(0) % n_m * BM + tl.arange(0, BM)
    p_x = x_ptr + i_y * N * M + o_m[None, :]
    m_m = o_m < M
    b_y = tl.zeros([BN, BM], dtype=tl.float32)
    for n in range(0, N, BN):
        o_n = n + tl.arange(0, BN)
        m_x = (o_n < N)[:, None] & m_m[None, :]
        b_y += tl.load(p_x + o_n[:, None] * M, mask=m_x, other=0.0).to(tl.float32)
    b_y = tl.sum(b_y, 0).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + i_y * M + o_m, b_y, mask=m_m)


def total(x, axis, dtype):
    """x without one axis, which is summed in fp32."""
    before, count, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    rows, width = before.numel(), after.numel()
    # Offsets in a row have 32 bits; an empty sum launches nothing
    if count > 4096 or width > 65536 or x.numel() == 0:
        return x.sum(axis, dtype=torch.float32).to(dtype)
    y = torch.empty((*before, *after), dtype=dtype, device=x.device)
    tall = min(64, triton.next_power_of_2(count))
    wide = min(max(16, 1024 // tall), triton.next_power_of_2(width))
    programs, warps = rows * triton.cdiv(width, wide), 1 if rows > 64 else 4
    total_kernel[(programs,)](x, y, count, width, BN=tall, BM=wide, num_warps=warps)
    return y
