"""The einsum program of the SSD listing (Dao & Gu 2024, section 6), written from its four steps: the yardstick.

It is what one copies from the paper: no mask of the package is used, and nothing of it is optimised.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 64
"""Positions of a chunk, as in the paper's listing."""


def segment_sums(x: Tensor) -> Tensor:
    """[..., T] -> [..., T, T]: the sum of x over j < t <= i, and -inf above the diagonal."""
    total = x.cumsum(-1)
    pairs = total[..., :, None] - total[..., None, :]
    size = x.shape[-1]
    keep = torch.ones(size, size, dtype=torch.bool, device=x.device).tril()
    return pairs.masked_fill(~keep, -torch.inf)


def ssd(c: Tensor, b: Tensor, x: Tensor, g: Tensor) -> Tensor:
    """y_i = sum over j <= i of exp(sum of g over (j, i]) (c_i . b_j) x_j.

    c, b: [B, T, H, K]; x: [B, T, H, V]; g: [B, T, H] log gates. T is a multiple of CHUNK.
    """
    batch, time, heads = g.shape
    c, b, x = (part.reshape(batch, time // CHUNK, CHUNK, heads, -1) for part in (c, b, x))
    g = g.reshape(batch, time // CHUNK, CHUNK, heads).permute(0, 3, 1, 2)  # [B, H, N, C]
    total = g.cumsum(-1)
    # 1. inside the chunks
    inside = torch.exp(segment_sums(g))
    near = torch.einsum("bnlhk,bnshk,bhnls,bnshv->bnlhv", c, b, inside, x)
    # 2. the state at the end of each chunk, from this chunk alone
    to_end = torch.exp(total[..., -1:] - total)
    states = torch.einsum("bnshk,bhns,bnshv->bnhvk", b, to_end, x)
    # 3. between the chunks
    states = torch.cat([torch.zeros_like(states[:, :1]), states], 1)
    between = torch.exp(segment_sums(F.pad(total[..., -1], (1, 0))))
    states = torch.einsum("bhzn,bnhvk->bzhvk", between, states)[:, :-1]
    # 4. what the states add inside each chunk
    far = torch.einsum("bnlhk,bnhvk,bhnl->bnlhv", c, states, torch.exp(total))
    return (near + far).flatten(1, 2)
