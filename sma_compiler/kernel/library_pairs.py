"""Leaf helpers of emitted quadratic files, each copied into a file that uses it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sma_compiler.kernel.library import find_chunk, sequence


@triton.jit
def again(x, R: tl.constexpr):
    """x [N] R times over, [R, N]: Triton loads fewer entries than threads in every thread by itself."""
    return tl.broadcast_to(x[None, :], [R, x.shape[0]])


@triton.jit
def spread(x, M: tl.constexpr):
    """x [R, N], R times the same row, as [M, N]."""
    R: tl.constexpr = x.shape[0]
    N: tl.constexpr = x.shape[1]
    return tl.reshape(tl.broadcast_to(x[:, None, :], [R, M // R, N]), [M, N])


@triton.jit
def in_registers(x, HELD: tl.constexpr):
    """A tile as it is; in registers, not in shared memory, where it is the result of a product."""
    if HELD:
        o_x = tl.arange(0, x.shape[1])
        one = tl.where(o_x[:, None] == o_x[None, :], 1.0, 0.0)
        x = tl.dot(x, one.to(x.dtype)).to(x.dtype)
    return x


@triton.jit
def parted(x):
    """x in 8 bits below its largest entry, and the rest: fp32 rounds no sum of products of two such tiles."""
    wide = x.to(tl.float32)
    top = tl.max(tl.max(tl.abs(wide), 1), 0).to(tl.int32, bitcast=True)
    bits = ((top & 0x7F800000) + (17 << 23)) | (1 << 22)
    shift = bits.to(tl.float32, bitcast=True)
    high = (wide + shift) - shift
    return high.to(x.dtype), (wide - high).to(x.dtype)


@triton.jit
def exact_exponents(
    p_x,
    m_x,
    p_y,
    m_y,
    scale,
    less,
    K: tl.constexpr,
    DOT: tl.constexpr,
):
    """Products of the rows of K entries at p_x [M] and p_y [N], scaled, less about what is given of rows.

    Tensor cores cut all addends off a little below the largest one; of large scores that is what they differ by. So
    what is nearly as large goes before the smaller parts come. All pairs of a row lack the same of it.
    """
    rest = tl.where((tl.abs(less) < float("inf")) & (scale != 0.0), less / scale, 0.0)
    total = tl.zeros([p_x.shape[0], p_y.shape[0]], dtype=tl.float32)
    for k0 in tl.range(0, K, 16, num_stages=1):
        k = k0 + tl.arange(0, 16)
        m_xk = m_x[:, None] & (k < K)[None, :]
        m_yk = m_y[:, None] & (k < K)[None, :]
        x = tl.load(p_x[:, None] + k[None, :], mask=m_xk, other=0)
        y = tl.load(p_y[:, None] + k[None, :], mask=m_yk, other=0)
        x_high, _ = parted(x.to(DOT))
        y_high, _ = parted(y.to(DOT))
        total = tl.dot(x_high, tl.trans(y_high), total)
    total -= rest
    for k0 in tl.range(0, K, 16, num_stages=1):
        k = k0 + tl.arange(0, 16)
        m_xk = m_x[:, None] & (k < K)[None, :]
        m_yk = m_y[:, None] & (k < K)[None, :]
        x = tl.load(p_x[:, None] + k[None, :], mask=m_xk, other=0)
        y = tl.load(p_y[:, None] + k[None, :], mask=m_yk, other=0)
        x_high, x_low = parted(x.to(DOT))
        _, y_low = parted(y.to(DOT))
        total = tl.dot(x_high, tl.trans(y_low), total)
        total = tl.dot(x_low, tl.trans(y.to(DOT)), total)
    return total * scale


@triton.jit
def whole_kernel(
    inner_ptr,
    total_ptr,
    cut_ptr,
    cuts_ptr,
    cu_ptr,
    high_ptr,
    low_ptr,
    count_ptr,
    late_ptr,
    early_ptr,
    T,
    S,
    SLOTS,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What the positions of a chunk sum to, from the first chunk on, and what lies between them and its ends."""
    slot = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    _, t0, end = find_chunk(cu_ptr, row, slot, T, S, C)
    if t0 >= end:
        return
    before = tl.zeros([BLOCK], dtype=tl.float64)
    counted = tl.zeros([BLOCK], dtype=tl.int32)
    for first in range(0, slot, BLOCK):
        o_s = first + tl.arange(0, BLOCK)
        at = row * SLOTS + o_s
        total = tl.load(total_ptr + at, mask=o_s < slot, other=0)
        before += total.to(tl.float64)
        if cuts_ptr is not None:
            counted += tl.load(cuts_ptr + at, mask=o_s < slot, other=0)
    t = t0 + tl.arange(0, C)
    at = row * T + t
    inner = tl.load(inner_ptr + at, mask=t < end, other=0)
    x = tl.sum(before, 0) + inner.to(tl.float64)
    high = x.to(high_ptr.dtype.element_ty)
    tl.store(high_ptr + at, high, mask=t < end)
    if low_ptr is not None:
        tl.store(low_ptr + at, (x - high.to(tl.float64)).to(tl.float32), mask=t < end)
    if cut_ptr is not None:
        cut = tl.load(cut_ptr + at, mask=t < end, other=0)
        tl.store(count_ptr + at, tl.sum(counted, 0) + cut, mask=t < end)
        if late_ptr is not None:
            begun = row * T + t0
            clear = cut == tl.load(cut_ptr + begun)
            late = tl.where(clear, inner - tl.load(inner_ptr + begun), -float("inf"))
            tl.store(late_ptr + at, late, mask=t < end)
        if early_ptr is not None:
            ended = row * T + tl.minimum(t0 + C, end) - 1
            clear = cut == tl.load(cut_ptr + ended)
            early = tl.where(clear, tl.load(inner_ptr + ended) - inner, -float("inf"))
            tl.store(early_ptr + at, early, mask=t < end)


def whole(inner, total, cut, cuts, chunk, late, early, cu_seqlens):
    """Sums up to each position, [B, H, T], from those in chunks and of whole ones; fp32 in two parts, and of cuts.

    late, early: whether to give what lies between a position and the first or the last one of its chunk, too: -inf
    over a cut.
    """
    batch, heads, time = inner.shape
    high = torch.empty_like(inner)
    low = torch.empty_like(inner) if inner.dtype == torch.float32 else None
    count = None if cut is None else torch.empty_like(cut)
    ends = [torch.empty_like(inner) if wanted else None for wanted in (late, early)]
    slots = total.shape[2]
    sequences = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    given = (inner, total, cut, cuts, cu_seqlens)
    made, sizes = (high, low, count, *ends), (time, sequences, slots)
    grid = (slots, batch * heads)
    whole_kernel[grid](*given, *made, *sizes, C=chunk, BLOCK=256, num_warps=1)
    return high, low, count, *ends


@triton.jit
def lengths_kernel(
    x_ptr,
    row_ptr,
    y_ptr,
    stride_b,
    stride_t,
    stride_h,
    T,
    D,
    SHARED: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    """The largest sum of squares of a row, of those of a block; 0 where nothing fades.

    row_ptr: running sums of log gates, of the SHARED heads that have x in common.
    """
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    d = tl.arange(0, BD)
    i_h = tl.program_id(1).to(tl.int64)
    i_b = tl.program_id(2).to(tl.int64)
    line = i_b * tl.num_programs(1) + i_h
    least = 0.0
    for h in range(SHARED):
        p_row = row_ptr + (line * SHARED + h) * T
        least = tl.minimum(least, tl.load(p_row + T - 1) - tl.load(p_row))
    largest = 0.0
    if least < -128.0:
        p_x = x_ptr + i_b * stride_b + i_h * stride_h
        at = p_x + t.to(tl.int64)[:, None] * stride_t + d[None, :]
        inside = (t < T)[:, None] & (d < D)[None, :]
        x = tl.load(at, mask=inside, other=0).to(tl.float32)
        largest = tl.max(tl.sum(x * x, 1), 0)
    tl.store(y_ptr + line * tl.num_programs(0) + tl.program_id(0), largest)


def lengths(x, row):
    """The largest sum of squares of a row, by blocks: [B, G, blocks] of x [B, T, G, D].

    row: the running sums of log gates, [B, H, T].
    """
    batch, time, heads, width = x.shape
    shape = (batch, heads, triton.cdiv(time, 64))
    y = torch.empty(shape, dtype=torch.float32, device=x.device)
    given = (x, row, y, x.stride(0), x.stride(1), x.stride(2), time, width)
    wide, shared = triton.next_power_of_2(width), row.shape[1] // heads
    lengths_kernel[shape[::-1]](*given, SHARED=shared, BT=64, BD=wide, num_warps=4)
    return y


@triton.jit
def longest(p, N, BLOCK: tl.constexpr):
    """The root of the largest of N entries."""
    o_n = tl.arange(0, BLOCK)
    largest = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(0, N, BLOCK):
        n = first + o_n
        largest = tl.maximum(largest, tl.load(p + n, mask=n < N, other=0.0))
    return tl.sqrt(tl.max(largest, 0))


@triton.jit
def fading_kernel(
    q_ptr,
    k_ptr,
    row_ptr,
    cut_ptr,
    cu_ptr,
    since_ptr,
    until_ptr,
    scale,
    T,
    S,
    BLOCKS,
    Q_SHARED: tl.constexpr,
    K_SHARED: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program tells between which chunks the pairs of a chunk's positions have weights that fp32 holds."""
    row = tl.program_id(1).to(tl.int64)
    i_s, t0, end = find_chunk(cu_ptr, row, tl.program_id(0), T, S, C)
    if t0 >= end:
        return
    _, begin, _, _ = sequence(cu_ptr, i_s, T, C)
    last = tl.minimum(t0 + C, end) - 1
    p_row = row_ptr + row * T
    # Scores differ by at most twice the product of lengths; a row sees itself without decay. In log2
    of_q = longest(q_ptr + row // Q_SHARED * BLOCKS, BLOCKS, BLOCK)
    of_k = longest(k_ptr + row // K_SHARED * BLOCKS, BLOCKS, BLOCK)
    reach = 2.02 * 1.4426950408889634 * tl.abs(scale) * of_q * of_k
    first_row = tl.load(p_row + t0)
    last_row = tl.load(p_row + last)
    least = -(reach + 128.0 + tl.abs(last_row) * 1e-6)
    o_n = tl.arange(0, BLOCK)
    before = (t0 - begin) // C
    gone = tl.zeros([BLOCK], dtype=tl.int32)
    for first in range(0, before, BLOCK):
        at = begin + (first + o_n) * C + (C - 1)
        inside = first + o_n < before
        fades = first_row - tl.load(p_row + at, mask=inside, other=0.0) < least
        if cut_ptr is not None:
            cut = tl.load(cut_ptr + row * T + at, mask=inside, other=0)
            fades = fades | (cut != tl.load(cut_ptr + row * T + t0))
        gone += (fades & inside).to(tl.int32)
    t = t0 + tl.arange(0, C)
    since = tl.full([C], begin, tl.int32) + tl.sum(gone, 0) * C
    tl.store(since_ptr + row * T + t, since, mask=t < end)
    if until_ptr is not None:
        after = tl.cdiv(end - t0, C) - 1
        held = tl.zeros([BLOCK], dtype=tl.int32)
        for first in range(0, after, BLOCK):
            at = t0 + (1 + first + o_n) * C
            inside = first + o_n < after
            fades = tl.load(p_row + at, mask=inside, other=0.0) - last_row < least
            if cut_ptr is not None:
                cut = tl.load(cut_ptr + row * T + at, mask=inside, other=0)
                fades = fades | (cut != tl.load(cut_ptr + row * T + last))
            held += (inside & (fades == 0)).to(tl.int32)
        until = tl.full([C], t0 + C, tl.int32) + tl.sum(held, 0) * C
        tl.store(until_ptr + row * T + t, tl.minimum(until, end), mask=t < end)


def fading(q, k, scale, row, cut, chunk, columns, cu_seqlens):
    """Where pairs begin and (`columns`) end to have weights that are no 0 in fp32, for every position: [B, H, T].

    row, cut: the running sums of log gates, none of them above 0, and of cuts, [B, H, T]. By the lengths of q and k.
    """
    batch, heads, time = row.shape
    since = torch.empty(row.shape, dtype=torch.int32, device=row.device)
    until = torch.empty_like(since) if columns else None
    of_q, of_k = lengths(q, row), lengths(k, row)
    sequences, slots = batch, triton.cdiv(time, chunk)
    if cu_seqlens is not None:
        sequences = cu_seqlens.shape[0] - 1
        slots = time // chunk + sequences
    given = (of_q, of_k, row, cut, cu_seqlens, since, until)
    sizes = (scale, time, sequences, of_q.shape[2])
    shared = {"Q_SHARED": heads // q.shape[2], "K_SHARED": heads // k.shape[2]}
    grid = (slots, batch * heads)
    fading_kernel[grid](*given, *sizes, **shared, C=chunk, BLOCK=128, num_warps=4)
    return since, until


def along_paths(late, early, late_closed, early_closed):
    """What all pairs have whose path holds a position, [B, T, H], from sums over pairs at either end, [B, H, T]."""
    over = (late.double() - early).flip(-1).cumsum(-1).flip(-1)
    if not late_closed:
        over -= late
    if early_closed:
        over += early
    return over.float().transpose(1, 2)


@triton.jit
def larger(a, b):
    """The larger one."""
    return tl.maximum(a, b)


@triton.jit
def smaller(a, b):
    """The smaller one."""
    return tl.minimum(a, b)


@triton.jit
def turns(p, cu_ptr, t, T, S, stride_t, RESETS: tl.constexpr):
    """Where a run begins: at the start of a sequence, and where there is a reset or another id than before."""
    inside = (t > 0) & (t < T)
    at = p + t.to(tl.int64) * stride_t
    here = tl.load(at, mask=inside, other=0)
    turn = here != 0
    if not RESETS:
        turn = here != tl.load(at - stride_t, mask=inside, other=0)
    if cu_ptr is not None:
        low = t * 0
        high = low + S
        while tl.max(high - low) > 1:
            middle = (low + high) // 2
            reached = tl.load(cu_ptr + middle) <= t
            low = tl.where(reached, middle, low)
            high = tl.where(reached, high, middle)
        turn = turn | (tl.load(cu_ptr + low) == t)
    return (turn & inside) | (t == 0)


@triton.jit
def runs_kernel(
    told_ptr,
    cu_ptr,
    begin_ptr,
    end_ptr,
    stride_b,
    stride_t,
    T,
    S,
    RESETS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Where the run of every position begins, or where it ends: one program goes over a row of the batch."""
    i_b = tl.program_id(1).to(tl.int64)
    p = told_ptr + i_b * stride_b
    o_t = tl.arange(0, BLOCK)
    if tl.program_id(0) == 0:
        last = 0
        for t0 in range(0, T, BLOCK):
            t = t0 + o_t
            at = tl.where(turns(p, cu_ptr, t, T, S, stride_t, RESETS), t, last)
            begin = tl.associative_scan(at, 0, larger)
            tl.store(begin_ptr + i_b * T + t, begin, mask=t < T)
            last = tl.max(begin)
    else:
        first = T
        for i in range(tl.cdiv(T, BLOCK)):
            t = (tl.cdiv(T, BLOCK) - 1 - i) * BLOCK + o_t
            at = tl.where(turns(p, cu_ptr, t + 1, T, S, stride_t, RESETS), t + 1, first)
            end = tl.associative_scan(at, 0, smaller, reverse=True)
            tl.store(end_ptr + i_b * T + t, end, mask=t < T)
            first = tl.min(end)


def runs(told, resets, batch, cu_seqlens):
    """Where the run of every position begins and where it ends, [B, T], of ids or (`resets`) of where runs begin."""
    time = told.shape[1]
    begin, end = torch.empty((2, batch, time), dtype=torch.int32, device=told.device)
    stride = told.stride(0) if told.shape[0] == batch else 0
    count = 0 if cu_seqlens is None else cu_seqlens.shape[0]
    given = (told, cu_seqlens, begin, end, stride, told.stride(1), time, count)
    runs_kernel[(2, batch)](*given, RESETS=resets, BLOCK=1024, num_warps=4)
    return begin, end
