"""Leaf helpers of emitted kernels: pure numerics, each copied into a file that uses it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def tile(p, t0, stride, o_t, o_d):
    """Addresses of rows t0 + o_t, columns o_d: 64 bits up to row t0, 32 from there."""
    return p + tl.cast(t0, tl.int64) * stride + (o_t[:, None] * stride + o_d[None, :])


@triton.jit
def column(p, t0, stride, o_t):
    """Addresses of entries t0 + o_t."""
    return p + tl.cast(t0, tl.int64) * stride + o_t * stride


@triton.jit
def cube(p, t0, stride, o_t, o_d):
    """Addresses of entries o_d of the matrices at t0 + o_t: 64 bits up to row t0, 32 from there."""
    rows = o_t[:, None, None] * stride
    return p + tl.cast(t0, tl.int64) * stride + (rows + o_d[None, :, :])


@triton.jit
def entry(p, t, stride):
    """Address of position t, by 64 bits."""
    return p + tl.cast(t, tl.int64) * stride


@triton.jit
def sum_first(x):
    """The sum over the first axis in eight parts, so that fewer roundings follow one another."""
    if x.shape[0] > 8:
        x = tl.sum(tl.reshape(x, [x.shape[0] // 8, 8, x.shape[1]]), 0)
    return tl.sum(x, 0)


@triton.jit
def sequence(cu_ptr, i_s, T, C: tl.constexpr):
    """Row of the batch, first position, end and first slot of a sequence; of a pack where there is `cu_ptr`."""
    if cu_ptr is None:
        i_b, begin, end, slot = i_s, 0, T, 0
    else:
        i_b = tl.cast(0, tl.int64)
        begin = tl.load(cu_ptr + i_s).to(tl.int32)
        end = tl.load(cu_ptr + i_s + 1).to(tl.int32)
        slot = begin // C + i_s.to(tl.int32)
    return i_b, begin, end, slot


@triton.jit
def find_chunk(cu_ptr, i_b, slot, T, S, C: tl.constexpr):
    """Sequence, first position and sequence's end of the chunk in a slot; nothing of a pack may be left of it."""
    if cu_ptr is None:
        i_s, begin, end = i_b, slot * C, T
    else:
        low = 0
        high = S - 1
        while low < high:
            middle = (low + high + 1) // 2
            reached = tl.load(cu_ptr + middle) // C + middle <= slot
            low = tl.where(reached, middle, low)
            high = tl.where(reached, high, middle - 1)
        i_s = low.to(tl.int64)
        begin = tl.load(cu_ptr + low).to(tl.int32)
        begin = begin + (slot - begin // C - low) * C
        end = tl.load(cu_ptr + low + 1).to(tl.int32)
    return i_s, begin, end


@triton.jit
def load(p, mask, MASKED: tl.constexpr):
    """Entries of a tile; 0 where `mask` is false."""
    if MASKED:
        return tl.load(p, mask=mask, other=0)
    return tl.load(p)


@triton.jit
def over_tiles(p, mask, step, count):
    """Entries summed over tiles, each `step` after the one before."""
    x = tl.load(p, mask=mask, other=0.0)
    for i in range(1, count):
        x += tl.load(p + tl.cast(i, tl.int64) * step, mask=mask, other=0.0)
    return x


@triton.jit
def oldest_slot(p, seen, SLOTS):
    """The slot of a ring that is first in time: behind the newest position. p: positions of slots, -1 in empty ones.

    A ring that is not full ends in its last slot, or begins in its first one.
    """
    last = tl.load(p + SLOTS - 1, mask=SLOTS > 0, other=-1).to(tl.int32)
    behind = tl.where(last >= 0, seen + SLOTS - 1 - last, seen)
    return behind % tl.maximum(SLOTS, 1)


@triton.jit
def store(p, x, mask, MASKED: tl.constexpr):
    """Write a tile, rounded to the tensor's dtype, where `mask` is true."""
    if MASKED:
        tl.store(p, x.to(p.dtype.element_ty), mask=mask)
    else:
        tl.store(p, x.to(p.dtype.element_ty))


@triton.jit
def keep(x, mask, MASKED: tl.constexpr):
    """Set to 0 what lies outside the tensor."""
    if MASKED:
        return tl.where(mask, x, 0.0)
    return x


@triton.jit
def pin(x, PINNED: tl.constexpr):
    """x, computed once: Triton would compute what two products read twice, in the layout of each."""
    if PINNED and x.dtype.primitive_bitwidth == 16:
        x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], x.dtype, False, 2)
    return x


@triton.jit
def unit(x, DOT: tl.constexpr):
    """The power of 2 that takes the largest of x to 1/2 .. 1, and its inverse; 1 where DOT has the range of fp32."""
    up = 1.0
    down = 1.0
    if tl.float16 == DOT:
        exponent = tl.max(tl.abs(x)).to(tl.int32, bitcast=True) >> 23
        exponent = tl.minimum(tl.maximum(exponent, 66), 186)  # 2 to between -60 and 60
        up = ((253 - exponent) << 23).to(tl.float32, bitcast=True)
        down = ((exponent + 1) << 23).to(tl.float32, bitcast=True)
    return up, down


@triton.jit
def never(x, mask, MASKED: tl.constexpr):
    """Set exponents to -inf outside the tensor: what they would weigh is 0."""
    if MASKED:
        return tl.where(mask, x, -float("inf"))
    return x


@triton.jit
def exact_exp(x):
    """exp(x) to rounding, 0 below -87. tl.exp is off by up to |x| roundings, and powers of it by more."""
    low = x < -87.0
    x = tl.where(low, -87.0, tl.where(x > 89.0, 89.0, x))
    n = tl.floor(x * 1.4426950408889634 + 0.5)
    r = (x - n * 0.693359375) + n * 2.12194440e-4
    p = 1.9875691500e-4 * r + 1.3981999507e-3
    p = p * r + 8.3334519073e-3
    p = p * r + 4.1665795894e-2
    p = p * r + 1.6666665459e-1
    p = p * r + 5.0000001201e-1
    p = p * r * r
    tail = r + p
    y = 1.0 + tail
    y = y + (((1.0 - y) + tail) + ((r - tail) + p))
    power = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return tl.where(low, 0.0, y * power)


@triton.jit
def exp_rest(x, y):
    """What exp(x) has beyond y, its value to rounding: many powers of y would be off by many roundings."""
    return (tl.exp(x.to(tl.float64)) - y).to(tl.float32)


@triton.jit
def exact_dot(a, b, PRECISION: tl.constexpr):
    """The matrix product of fp32 tiles, summed in fp64."""
    if PRECISION == "ieee":
        return tl.dot(a.to(tl.float64), b.to(tl.float64), out_dtype=tl.float64)
    return tl.dot(a, b, input_precision=PRECISION).to(tl.float64)


@triton.jit
def wide_dot(a, b, PRECISION: tl.constexpr):
    """The same, rounded once."""
    return exact_dot(a, b, PRECISION).to(tl.float32)


@triton.jit
def fine_dot(x, s, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """x times s, of which what rounding to an operand takes counts as well."""
    first = s.to(DOT)
    rest = (s - first.to(tl.float32)).to(DOT)
    product = tl.dot(x, rest, input_precision=PRECISION)
    return tl.dot(x, first, product, input_precision=PRECISION)


@triton.jit
def wide_row(x, s):
    """The sum over the first axis of products in fp64, rounded once."""
    return tl.sum(x.to(tl.float64) * s.to(tl.float64), 0).to(tl.float32)


@triton.jit
def small_rest(x, y):
    """The same as `exp_rest` where x is near 0, so that powers of y count; 0 elsewhere."""
    p = ((x / 120 + 1 / 24) * x + 1 / 6) * x + 0.5
    return tl.where(tl.abs(x) < 0.125, (x - (y - 1.0)) + x * x * p, 0.0)


@triton.jit
def exact_exp2(x):
    """2 ** x to rounding, 0 below -125. tl.exp2 is off by some roundings."""
    low = x < -125.0
    x = tl.where(low, -125.0, tl.minimum(x, 128.0))
    n = tl.floor(x + 0.5)
    r = x - n
    p = 1.535336188e-4 * r + 1.339887440e-3
    p = p * r + 9.618437358e-3
    p = p * r + 5.550332471e-2
    p = p * r + 2.402264791e-1
    p = p * r + 6.931472029e-1
    half = ((n.to(tl.int32) + 126) << 23).to(tl.float32, bitcast=True)
    return tl.where(low, 0.0, (1.0 + p * r) * half * 2.0)


@triton.jit
def exact_log2(x):
    """log2(x) to rounding, as 2 atanh(s). tl.log2 is off by 2 ** -22 near 1, where the logarithm itself is small."""
    small = x < 1.1754944e-38
    bits = tl.where(small, x * 16777216.0, x).to(tl.int32, bitcast=True)
    n = (bits - 0x3F3504F3) >> 23
    m = (bits - (n << 23)).to(tl.float32, bitcast=True)
    s = tl.div_rn(m - 1.0, m + 1.0)
    z = s * s
    p = z / 11 + 1 / 9
    p = p * z + 1 / 7
    p = p * z + 1 / 5
    p = p * z + 1 / 3
    log = 2.0 * s + 2.0 * s * (z * p)
    found = (n - tl.where(small, 24, 0)).to(tl.float32) + log * 1.4426950408889634
    return tl.where((x > 0.0) & (x < float("inf")), found, tl.log2(x))


@triton.jit
def log1p(x):
    """log(1 + x) for 0 <= x <= 1, as 2 atanh(s): to rounding also where x is tiny."""
    s = tl.div_rn(x, x + 2.0)
    z = s * s
    p = z / 15 + 1 / 13
    p = p * z + 1 / 11
    p = p * z + 1 / 9
    p = p * z + 1 / 7
    p = p * z + 1 / 5
    p = p * z + 1 / 3
    return 2.0 * s + 2.0 * s * (z * p)


@triton.jit
def expm1(x):
    """exp(x) - 1: to rounding also where x is tiny."""
    p = 1.0 + x * (1 / 12)
    for n in tl.static_range(11, 1, -1):
        p = 1.0 + x * (1 / n) * p
    return tl.where(tl.abs(x) < 1.0, x * p, exact_exp(x) - 1.0)


@triton.jit
def softplus(x):
    """log(1 + exp(x)) without overflow."""
    return tl.maximum(x, 0.0) + log1p(exact_exp(-tl.abs(x)))


@triton.jit
def logsigmoid(x):
    """log(sigmoid(x)) without overflow."""
    return tl.minimum(x, 0.0) - log1p(exact_exp(-tl.abs(x)))


@triton.jit
def floor_div(x, n):
    """x // n of integers, downward."""
    q = x // n
    return tl.where((q * n != x) & ((x < 0) != (n < 0)), q - 1, q)


@triton.jit
def floor_mod(x, n):
    """x % n of integers, with the sign of n."""
    return x - floor_div(x, n) * n


@triton.jit
def level_of(i, j):
    """The bit length of i xor j, which is 0 where they are alike."""
    x = i ^ j
    power = (x & ~(x >> 1)).to(tl.float32).to(tl.int32, bitcast=True) >> 23
    return tl.maximum(power - 126, 0)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)) without overflow."""
    z = exact_exp(-tl.abs(x))
    return tl.div_rn(tl.where(x >= 0, 1.0, z), 1.0 + z)


@triton.jit
def silu(x):
    """x * sigmoid(x)."""
    return x * sigmoid(x)


@triton.jit
def tanh(x):
    """Hyperbolic tangent, odd to the last bit."""
    z = tl.exp(-2.0 * tl.abs(x))
    y = (1.0 - z) / (1.0 + z)
    return tl.where(x >= 0, y, -y)


@triton.jit
def elu(x):
    """x where positive, else exp(x) - 1."""
    return tl.maximum(x, 0.0) + (tl.exp2(tl.minimum(x, 0.0) * 1.4426950408889634) - 1.0)


@triton.jit
def elu_plus_one(x):
    """x + 1 where positive, else exp(x)."""
    return tl.maximum(x, 0.0) + tl.exp2(tl.minimum(x, 0.0) * 1.4426950408889634)


@triton.jit
def relu(x):
    """max(x, 0)."""
    return tl.maximum(x, 0.0)


@triton.jit
def gelu(x):
    """x times the normal distribution function at x."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_slope(x):
    """The derivative of gelu: the normal distribution function plus x times its density."""
    normal = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
    return normal + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)


@triton.jit
def scan_parts_kernel(
    local_ptr,
    decay_ptr,
    initial_ptr,
    H,
    N,
    PARTS,
    BLOCK: tl.constexpr,
    BACKWARD: tl.constexpr = False,
    APART: tl.constexpr = False,
):
    """Replace the state that each part adds by the one it begins with; it has N numbers.

    BACKWARD: the last part is the first to be walked. APART: each number of a state has a decay of its own.
    """
    i_h = tl.program_id(1)
    i_b = tl.program_id(2)
    o_n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_n = o_n < N
    b_s = tl.zeros([BLOCK], dtype=tl.float32)
    if initial_ptr is not None:
        place = (i_b * H + i_h).to(tl.int64)
        b_s = tl.load(initial_ptr + place * N + o_n, mask=m_n, other=0.0)
    for step in tl.range(PARTS, num_stages=4):
        i_p = PARTS - 1 - step if BACKWARD else step
        place = ((i_b * PARTS + i_p) * H + i_h).to(tl.int64)
        p_local = local_ptr + place * N + o_n
        b_local = tl.load(p_local, mask=m_n, other=0.0)
        b_next = b_s
        if decay_ptr is not None:
            if APART:
                p_decay = decay_ptr + place * N + o_n
                b_next = b_next * tl.load(p_decay, mask=m_n, other=0.0)
            else:
                b_next = b_next * tl.load(decay_ptr + place)
        b_next = b_next + b_local
        tl.store(p_local, b_s, mask=m_n)
        b_s = b_next


def dense(x):
    """x with its last dimension contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()


def sum_dtype(x):
    """The dtype of what is kept in as many bits as x has: bf16 for bf16, fp32 else, as fp16 may not hold it."""
    return torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32


def new(wanted, shape, dtype, device):
    """A tensor to write to; None where it is not wanted."""
    return torch.empty(shape, dtype=dtype, device=device) if wanted else None


def coarsest(*tensors):
    """The dtype that matrix products round to: the coarsest of these tensors'."""
    dtypes = {x.dtype for x in tensors}
    if torch.bfloat16 in dtypes:
        return tl.bfloat16
    return tl.float16 if torch.float16 in dtypes else tl.float32


def dtype_of(operand):
    """The torch dtype of operands of matrix products."""
    if operand == tl.bfloat16:
        return torch.bfloat16
    return torch.float16 if operand == tl.float16 else torch.float32
