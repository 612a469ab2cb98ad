"""What is measured of a row of `sma bench --suite auto`, and what must be compiled for it: told by other processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from typing import Any

import torch

from sma_compiler.bench.auto_rows import AutoRow
from sma_compiler.interface import library
from sma_compiler.kernel.choices import read_plan
from sma_compiler.kernel.errors import NoTritonKernel
from sma_compiler.plan.devices import CPU, DEVICES, GPU
from sma_compiler.tune.compile import Work, work_of
from sma_compiler.tune.report import Candidate
from sma_compiler.tune.setting import Situation, situation
from sma_compiler.tune.space import candidates, signatures
from sma_compiler.tune.workers import serve


def situation_at(row: AutoRow, device: str) -> Situation:
    """A row on the device of this name, which need not be here."""
    gpu = None if device.endswith("threads") else DEVICES.get(device, GPU)
    target = "" if gpu is None else "sm_90" if gpu in DEVICES.values() else "sm_80"
    given = library(row.op).program, row.shape("cuda" if gpu else "cpu"), "bfloat16" if gpu else "float32", gpu or CPU
    return situation(*given, target, training=True)


def plan_row(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The candidates of a row: what each is, its kernels, their configurations, and what to compile for it.

    given: `row`, the fields of one; `device`, its name; `limit`, of candidates; `picks`, others that are asked about,
    by backend.
    """
    row = AutoRow(**given["row"])
    at = situation_at(row, given["device"])
    wanted = candidates(at, given["limit"])
    others = [Candidate(backend, *read_plan(pick)) for backend, pick in given["picks"]]
    names = {(one.backend, one.pick) for one in wanted}
    found = []
    for one in [*wanted, *(other for other in others if (other.backend, other.pick) not in names)]:
        try:
            ahead, behind = signatures(at, one)
        except NoTritonKernel:
            continue
        works: list[Work] = work_of(at, one, ()) if one.backend == "triton" else []
        texts = [work.text for work in works if work.share[0] == 0]
        file = sha256("".join(texts).encode()).hexdigest()[:16] if works else ""
        made = {"backend": one.backend, "pick": one.pick, "ahead": ahead, "behind": behind, "file": file}
        found.append(made | {"works": [asdict(work) for work in works], "wanted": one in wanted})
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(plan_row)
