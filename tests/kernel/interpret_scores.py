"""Runs products of rows that are large in Triton's interpreter, summed exactly and in fp32; prints errors as JSON."""

from __future__ import annotations

import json

import torch
import triton
import triton.language as tl

from sma_compiler.kernel.library_pairs import exact_exponents

ROWS, CHANNELS = 16, 80


@triton.jit
def kernel(
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    less_ptr: tl.tensor,
    exact_ptr: tl.tensor,
    plain_ptr: tl.tensor,
    N: tl.constexpr,
    K: tl.constexpr,
    BK: tl.constexpr,
) -> None:
    """Both sums, less a number for each row."""
    o_n = tl.arange(0, N)
    o_k = tl.arange(0, BK)
    m_n = o_n < N
    less = tl.load(less_ptr + o_n)[:, None]
    at = o_n[:, None] * N + o_n[None, :]
    exact = exact_exponents(x_ptr + o_n * K, m_n, y_ptr + o_n * K, m_n, 1.0, less, K, tl.float16)
    tl.store(exact_ptr + at, exact)
    rows = o_n[:, None] * K + o_k[None, :]
    x = tl.load(x_ptr + rows, mask=(o_k < K)[None, :], other=0)
    y = tl.load(y_ptr + rows, mask=(o_k < K)[None, :], other=0)
    tl.store(plain_ptr + at, tl.dot(x, tl.trans(y), input_precision="ieee") - less)


def main() -> None:
    """Scores of a size of 1e5 that lie close to each other in each row."""
    draw = torch.Generator().manual_seed(0)
    x = (60 * torch.randn(ROWS, CHANNELS, generator=draw)).half()
    y = (x[:1] + torch.randn(ROWS, CHANNELS, generator=draw)).half()
    scores = x.double() @ y.double().T
    less = scores.amax(1).float()
    exact, plain = torch.empty(2, ROWS, ROWS)
    kernel[(1,)](x, y, less, exact, plain, N=ROWS, K=CHANNELS, BK=128)
    expected = scores - less.double()[:, None]
    found = {"exact": exact, "plain": plain, "size": scores}
    print(json.dumps({name: float((value - expected).abs().max()) for name, value in found.items()}))


if __name__ == "__main__":
    main()
