"""A file as the compiler emits it, written by hand in torch: a launcher and its gradients, for `gated` below.

It stands in for kernels where what is tested is the runtime around them, which then needs neither Triton nor a GPU.
"""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from sma_compiler.driver import compile_source
from sma_compiler.emit.file import Emitted
from sma_compiler.kernel.config import RECURRENT
from sma_compiler.runtime import kernels, triton
from sma_compiler.runtime.op import CompiledOp
from sma_compiler.source import Source

SPEC = """
op gated(q, k, v, g: [time, head], scale: real):
    return attend(decay(g), q, k, v, scale=scale)
"""


def use(patch: pytest.MonkeyPatch, module: ModuleType | None = None) -> CompiledOp:
    """The op, run by the functions below (or another module's) wherever a kernel is asked for or found."""
    op = compile_source(Source(SPEC, "gated.sma"))
    kernel = kernels.Kernel("gated", module or _module())
    patch.setattr(kernels.Kernels, "emitted", lambda *_: Emitted((), (), (), {"recurrent": RECURRENT}))
    patch.setattr(kernels, "_loaded", lambda *_: kernel)
    patch.setattr(kernels.Kernels, "text", lambda *_: "")
    patch.setattr(triton, "_unfit", lambda *_: None)
    return op


def _module() -> ModuleType:
    module = ModuleType("stand_in")
    module.gated, module.gated_backward = gated, gated_backward
    return module


def weights(g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of every pair [B, H, T, T]; from before the first position [B, H, T]; to behind the last [B, H, T]."""
    sums = g.float().cumsum(1).transpose(1, 2)
    pairs = (sums[..., :, None] - sums[..., None, :]).tril().exp().tril()
    return pairs, sums.exp(), (sums[..., -1:] - sums).exp()


def gated(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    scale: float,
    *,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    precision: str = "ieee",
) -> Tensor | tuple[Tensor, Tensor]:
    pairs, start, end = weights(g)
    qf, kf, vf = (x.float().transpose(1, 2) for x in (q, k, v))  # [B, H, T, D]
    y = (pairs * (qf @ kf.mT)) @ vf
    state = (kf * end[..., None]).mT @ vf
    if initial_state is not None:
        y = y + start[..., None] * (qf @ initial_state)
        state = state + start[..., -1, None, None] * initial_state
    y = (scale * y).transpose(1, 2).to(q.dtype).contiguous()
    return (y, state) if return_state else y


def gated_backward(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    scale: float,
    *,
    initial_state: Tensor | None = None,
    dstate: Tensor | None = None,
    needs: tuple[bool, ...] | None = None,
    precision: str = "ieee",
) -> tuple[Tensor | None, ...]:
    pairs, start, end = weights(g)
    qf, kf, vf, dyf = (x.float().transpose(1, 2) for x in (q, k, v, dy))
    dyf = scale * dyf
    before = torch.zeros_like(kf.mT @ vf) if initial_state is None else initial_state
    after = torch.zeros_like(before) if dstate is None else dstate
    inner = pairs * (dyf @ vf.mT)  # [B, H, T, T]
    dq = inner @ kf + start[..., None] * (dyf @ before.mT)
    dk = inner.mT @ qf + end[..., None] * (vf @ after.mT)
    dv = (pairs * (qf @ kf.mT)).mT @ dyf + end[..., None] * (kf @ after)
    dstart = start * ((qf @ before) * dyf).sum(-1)
    dend = end * ((kf @ after) * vf).sum(-1)
    last = (start[..., -1] * (before * after).sum((-2, -1)) + dend.sum(-1))[..., None]
    whole = inner * (qf @ kf.mT)
    dsums = whole.sum(-1) - whole.sum(-2) + dstart - dend
    dsums = torch.cat((dsums[..., :-1], dsums[..., -1:] + last), -1)
    dg = dsums.flip(-1).cumsum(-1).flip(-1).transpose(1, 2)
    grads = [(x.transpose(1, 2).to(y.dtype)) for x, y in ((dq, q), (dk, k), (dv, v))]
    wanted = needs or (True,) * 4
    found = tuple(x if need else None for x, need in zip((*grads, dg.to(g.dtype)), wanted, strict=True))
    if initial_state is None:
        return found
    dbefore = (qf * start[..., None]).mT @ dyf + start[..., -1, None, None] * after
    return (*found, dbefore)
