"""Measured constants of the accuracy contract: what `solve`, several contractions and gradients may add.

How they were calibrated: `python -m sma_compiler.verify.calibrate` ran every legal plan of every library op on the
torch backend in fp32, bf16 and fp16, on the random inputs of `samples.py`, and printed `MEASURED`: for each op and
group of tensors the largest error over all plans, seeds and blocks, in units of what one contraction may err. T of 65
and 257 (B = 2, H = 2, K = 16, V = 16 and 32) had 8 seeds, pooled in tensors and blocks of fewer than 4096 elements; T
of 1024 (B = H = 1, K = 8, V = 16) had 3. A bound is `MARGIN` times the largest error, and never less than that of one
contraction. To be measured again only after a change that makes errors smaller: bounds never grow.
"""

from __future__ import annotations

import math

MARGIN = 1.5
"""What the largest error found is multiplied by; never less than the bound of a single contraction."""
REFERENCE_LENGTH = 256
"""Beyond this length errors of bf16 and fp16 may grow as sqrt T; the fp32 bound has sqrt T in it."""

MEASURED: dict[str, dict[str, tuple[float, float, float, float]]] = {
    "alibi": {
        "gradients": (0.07, 0.08, 0.40, 0.04),
        "sums": (0.13, 0.00, 1.74, 0.00),
    },
    "attention": {
        "gradients": (0.11, 0.17, 0.06, 0.26),
    },
    "delta_net": {
        "output": (0.27, 0.38, 1.74, 2.53),
        "gradients": (0.57, 0.75, 3.23, 4.60),
    },
    "document": {
        "gradients": (0.10, 0.11, 0.23, 0.44),
    },
    "forgetting": {
        "gradients": (0.05, 0.05, 0.64, 1.34),
    },
    "gated_delta_net": {
        "output": (0.08, 0.08, 0.00, 0.32),
        "gradients": (0.16, 0.18, 0.78, 1.08),
    },
    "gla": {
        "gradients": (0.12, 0.11, 0.77, 0.96),
    },
    "h3": {
        "output": (0.22, 0.28, 0.08, 0.44),
        "gradients": (0.22, 0.50, 0.18, 0.88),
        "sums": (0.51, 0.00, 1.21, 0.00),
        "phases": (1.77, 0.00, 2.23, 0.00),
    },
    "hgrn2": {
        "gradients": (0.08, 0.09, 0.70, 0.70),
    },
    "hydra": {
        "output": (0.06, 0.07, 0.03, 0.07),
        "gradients": (0.14, 0.18, 0.75, 1.28),
        "sums": (0.11, 0.00, 1.06, 0.00),
    },
    "hyena": {
        "gradients": (0.06, 0.07, 0.55, 0.60),
        "sums": (0.06, 0.00, 0.61, 0.00),
    },
    "kda": {
        "output": (0.07, 0.09, 0.11, 0.26),
        "gradients": (0.12, 0.14, 1.07, 1.15),
    },
    "lightning": {
        "gradients": (0.27, 0.34, 0.01, 0.15),
        "sums": (0.68, 0.00, 1.25, 0.00),
    },
    "linear_attention": {
        "gradients": (0.14, 0.16, 0.00, 0.04),
    },
    "linear_attention_full": {
        "gradients": (0.31, 0.29, 0.71, 0.97),
    },
    "linear_attention_normalized": {
        "gradients": (0.22, 0.34, 1.10, 0.97),
    },
    "log_linear": {
        "gradients": (0.06, 0.07, 0.45, 0.87),
    },
    "mamba1": {
        "gradients": (0.11, 0.18, 0.66, 1.07),
        "sums": (0.14, 0.00, 0.71, 0.00),
    },
    "mamba2": {
        "gradients": (0.07, 0.09, 0.69, 1.25),
        "sums": (0.22, 0.00, 2.22, 0.00),
    },
    "mamba3": {
        "gradients": (0.15, 0.17, 0.95, 1.61),
        "sums": (0.13, 0.00, 1.01, 0.00),
        "phases": (0.49, 0.81, 6.32, 10.69),
    },
    "prefix_lm": {
        "gradients": (0.16, 0.17, 0.00, 0.26),
    },
    "retention": {
        "gradients": (0.09, 0.11, 0.00, 0.08),
        "sums": (0.43, 0.00, 0.96, 0.00),
    },
    "rwkv4": {
        "gradients": (0.08, 0.18, 0.01, 0.62),
        "sums": (0.15, 0.00, 1.29, 0.00),
    },
    "rwkv6": {
        "gradients": (0.12, 0.11, 0.75, 0.73),
        "sums": (0.04, 0.00, 0.51, 0.00),
    },
    "rwkv7": {
        "output": (0.07, 0.10, 0.04, 0.15),
        "gradients": (0.12, 0.17, 0.95, 1.42),
    },
    "s4d": {
        "gradients": (0.18, 0.30, 0.01, 0.99),
        "sums": (0.47, 0.00, 0.84, 0.00),
        "phases": (2.69, 0.00, 0.99, 0.00),
    },
    "simple_gla": {
        "gradients": (0.12, 0.15, 0.48, 1.42),
    },
    "sliding_window": {
        "gradients": (0.10, 0.17, 0.06, 1.82),
    },
}
"""The largest error found of each op, by group: fp32 whole and block, in multiples of the bound of one contraction,
2e-6 + 2**-24 (G + sqrt T); bf16 and fp16 whole and block, in multiples of u (beyond 2 rms(round(f64) - f64)).

Groups: "output", of an op with `solve` or several contractions; "gradients" of parameters over time; "sums", gradients
of the others, which sum over time; "phases", gradients of what turns a `rope` or a wave. Measured by `calibrate.py` on
the torch backend, every legal plan: T of 65 and 257 with 8 seeds, T of 1024 with 3.
"""


def bound(op: str, group: str, narrow: bool, length: int) -> tuple[float, float]:
    """Multiples of u (narrow: bf16, fp16) or of the fp32 bound, for a whole tensor and for a block of it.

    op: its name; an op without an entry has the largest bounds that any op has. length: T.
    """
    every = [entry[group] for entry in MEASURED.values() if group in entry]
    own = MEASURED.get(op, {}).get(group)
    rows = every if own is None else [own]
    first = 2 if narrow else 0
    factor = growth(length) if narrow else 1.0
    whole, block = (max(1.0, MARGIN * max(row[first + place] for row in rows)) * factor for place in (0, 1))
    return whole, block


def growth(length: int) -> float:
    """How much larger errors of bf16 and fp16 may be at this length than at `REFERENCE_LENGTH`."""
    return math.sqrt(max(1.0, length / REFERENCE_LENGTH))
