"""Files with chosen configurations, in Triton's interpreter: prints the worst error over its bound for each.

`TRITON_INTERPRET=1 python -m tune.interpret_choices`
"""

from __future__ import annotations

import json

import torch

from sma_compiler.interface import library
from sma_compiler.runtime import self_check

CHOSEN = [
    ("simple_gla", "chunked:backward.chunk=32,backward.outer=32,dq.stages=2,forward.chunk=32,forward.scores=1"),
    ("simple_gla", "chunked:backward.programs=8,forward.programs=8"),
    ("simple_gla", "recurrent:recurrent.elements=64,recurrent.warps=2"),
    ("forgetting", "quadratic:dkv.columns=16,dkv.rows=64,dq.columns=16,dq.rows=16,forward.columns=64,forward.rows=16"),
]
SIZES = {"batch": 1, "time": 70, "head": 2, "key": 16, "value": 16}


def main() -> None:
    self_check.SEEDS = self_check.HEADS = 1
    found = {}
    for name, pick in CHOSEN:
        program = library(name).program
        kernel = program.kernels.find(pick, SIZES, "float32", "sm_90")
        given = program, pick, kernel, SIZES, torch.float32, torch.device("cpu")
        report = self_check.compare(*given, seed=3, time=70)
        assert report.worst is not None
        found[pick] = report.worst.ratio
    print(json.dumps(found))


if __name__ == "__main__":
    main()
