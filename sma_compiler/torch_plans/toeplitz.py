"""The Toeplitz plan: L_ij = c[i - j] applied to a tensor over time by FFT, padded so that nothing wraps around."""

from __future__ import annotations

import torch

from sma_compiler.ir.nodes import Expr
from sma_compiler.torch_plans.evaluate import Evaluator
from sma_compiler.torch_plans.named import Named, union
from sma_compiler.torch_plans.named_ops import cut, join, select
from sma_compiler.torch_plans.pairs import Line, Pairs, Run, Sums


def convolve(mask: Expr, x: Named, line: Line, evaluator: Evaluator, causal: bool) -> Named:
    """sum over j of c[i - j] x[j] at the new positions of a line.

    x: over the line, real, in the dtype of the computation. causal: c[d] is 0 for d < 0.
    """
    length = line.length
    if line.exists is not None:
        x = select(line.exists, x, 0)
    if length == 0:
        return x
    kernel = _kernel(mask, evaluator, length, causal)
    lags = kernel.size("time")
    size = fast_size(length + lags)
    spectra = [_spectrum(one, size) for one in (kernel, x)]
    axes = union(spectra)
    at = axes.index("time")
    product = spectra[0].view(axes) * spectra[1].view(axes)
    found = Named(torch.fft.irfft(product, size, at), axes)
    # lag 0 is the kernel's entry 0 where it is causal, else its entry length - 1
    first = line.new + (0 if causal else length - 1)
    return cut(found, "time", first, first + length - line.new)


def _kernel(mask: Expr, evaluator: Evaluator, length: int, causal: bool) -> Named:
    """c[d] for d = 0 .. length - 1, or from 1 - length on where it is not causal, along `time`."""
    places = Named(torch.arange(length, device=evaluator.device), ("time",))
    line = Line(length, 0, places, None)
    sums = Sums(evaluator, line)
    first, every = (0, 1), (0, length)
    below = _entries(mask, Pairs(evaluator, line, Run("i", *every), Run("j", *first), sums), "i", "j")
    if causal:
        return below
    above = _entries(mask, Pairs(evaluator, line, Run("i", *first), Run("j", *every), sums), "j", "i")
    at = above.axes.index("time")
    earlier = Named(above.data.flip(at).narrow(at, 0, length - 1), above.axes)
    return join([earlier, below], "time", [length - 1, length])


def _entries(mask: Expr, pairs: Pairs, along: str, other: str) -> Named:
    """The mask at pairs of which one position is 0; the other's axis becomes `time`."""
    value = pairs.mask(mask).to(pairs.dtype)
    if other in value.axes:
        at = value.axes.index(other)
        value = Named(value.data.select(at, 0), value.axes[:at] + value.axes[at + 1 :])
    if along not in value.axes:
        size = pairs.points[along].size
        value = Named(value.data.unsqueeze(-1).expand(*value.data.shape, size), (*value.axes, along))
    return value.rename(along, "time")


def _spectrum(x: Named, size: int) -> Named:
    at = x.axes.index("time")
    return Named(torch.fft.rfft(x.data, size, at), x.axes)


def fast_size(least: int) -> int:
    """The smallest 2^a or 3 * 2^a that is at least this."""
    size = 1
    while size < least:
        size *= 2
    return size // 4 * 3 if size >= 4 and size // 4 * 3 >= least else size
