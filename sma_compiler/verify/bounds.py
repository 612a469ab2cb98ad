"""Measured constants of the accuracy contract: what `solve`, several contractions and gradients may add.

Calibrated on the torch backend: every legal plan of every library op, 8 seeds, T of 65 and 256, B = 2, H = 2,
K = V = 16, samples of `samples.py`; the constant is the largest error found, times 1.5, rounded up. In fp32 it
multiplies 2e-6 + 2**-24 (G + sqrt T), in bf16 and fp16 the unit roundoff beside 2 rms(round(f64) - f64).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bound:
    """Multiples that bound a whole tensor and a block of it."""

    whole: float
    block: float


OTHERS = "*"
"""Stands for every op without an entry of its own."""

OUTPUTS_FP32: dict[str, Bound] = {OTHERS: Bound(1, 1)}
OUTPUTS_NARROW: dict[str, Bound] = {OTHERS: Bound(2, 4)}
GRADIENTS_FP32: dict[str, Bound] = {OTHERS: Bound(1, 4)}
GRADIENTS_NARROW: dict[str, Bound] = {OTHERS: Bound(2, 4)}


def output_bound(op: str, narrow: bool) -> Bound:
    """The bound of the output of an op with `solve` or several contractions; narrow: bf16 or fp16."""
    table = OUTPUTS_NARROW if narrow else OUTPUTS_FP32
    return table.get(op, table[OTHERS])


def gradient_bound(op: str, narrow: bool) -> Bound:
    """The bound of the gradients of an op."""
    table = GRADIENTS_NARROW if narrow else GRADIENTS_FP32
    return table.get(op, table[OTHERS])
