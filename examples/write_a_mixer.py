"""From an equation to a layer: compiles `damped_waves.sma`, asks what was found out, trains through it, decodes.

python examples/write_a_mixer.py
"""

from __future__ import annotations

from pathlib import Path

import torch

import sma_compiler as sma

BATCH, TIME, HEADS, KEY, VALUE = 2, 300, 4, 16, 32


def main() -> None:
    """Prints the facts, the plans' errors against the reference, a gradient and the decoding error."""
    torch.manual_seed(0)
    op = sma.compile(Path(__file__).with_name("damped_waves.sma"))
    print(op.explain())

    q, k = (torch.randn(BATCH, TIME, HEADS, KEY) for _ in range(2))
    v = torch.randn(BATCH, TIME, HEADS, VALUE)
    m = torch.full((HEADS,), 0.05, requires_grad=True)  # decay a position
    w = torch.linspace(0.1, 1.0, HEADS, requires_grad=True)  # radians a position

    exact = op.reference(q, k, v, m=m, w=w)
    for plan in op.plans:
        y = op(q, k, v, m=m, w=w, plan=plan.name)
        error = (y - exact).square().mean().sqrt() / exact.square().mean().sqrt()
        print(f"{plan.name:<10} relative error {error:.1e}")

    op(q, k, v, m=m, w=w).square().mean().backward()
    print("gradient of the frequencies:", *(f"{x:.3g}" for x in w.grad))

    y, state = op(q[:, :-1], k[:, :-1], v[:, :-1], m=m, w=w, return_state=True)
    last, state = op.step(q[:, -1], k[:, -1], v[:, -1], m=m, w=w, state=state)
    print(f"the last position decoded from the state: off by {(last - exact[:, -1]).abs().max():.1e}")


if __name__ == "__main__":
    main()
