"""Runs the walks of `solve` in Triton's interpreter against fp64, as ops of several contractions are; prints JSON."""

from __future__ import annotations

import json
import sys

from kernel import interpret_backward
from kernel.interpret_stages import SIZES, module, run
from kernel.solves import SPECS, compiled

MUTANTS = {
    "no inverse": ("tl.dot(b_n, b_r.to(DOT), b_r, input_precision=PRECISION)", "b_r + 0.0"),
    "no state": ("tl.dot(b_k, b_s.to(DOT)", "tl.dot(b_k, (0.0 * b_s).to(DOT)"),
    "not transposed": (
        "m_t[:, None],\n                MASKED,\n            ).to(DOT),\n        )  # [C, C]",
        "m_t[:, None],\n                MASKED,\n            ).to(DOT).T,\n        )  # [C, C]",
    ),
    "no sum of parts": ("b_y + b_more", "b_y"),
}
"""For each a text of the file of `gated`, and what takes its place."""


def main(names: list[str]) -> None:
    """Print the errors of every spec, and of the mutants."""
    interpret_backward.SIZES.update(SIZES)
    found = {name: run(compiled(name), module(compiled(name), "float32"), "float32") for name in names}
    op = compiled("gated")
    found |= {name: run(op, module(op, "float16", *texts), "float16") for name, texts in MUTANTS.items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:] or [*SPECS])
