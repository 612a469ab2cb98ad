"""Compiles kernels ahead, then launches them without a GPU: prints how many kernels each of the two compiled.

The driver below says that it is an H100 and launches nothing. `python -m target.launched`, with TRITON_CACHE_DIR.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from sma_compiler.interface import library
from sma_compiler.target.arguments import example
from sma_compiler.target.compile import compile_text, load_text

SIZES = {"batch": 2, "time": 200, "head": 8, "key": 64, "value": 64, "group": 1}


class _Utilities:
    def get_device_properties(self, _: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32, "max_num_regs": 65536}

    def load_binary(self, *_: object) -> tuple[int, ...]:
        return 0, 0, 0, 0, 1024


class Driver:
    utils = _Utilities()

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")

    def launcher_cls(self, *_: object) -> object:
        return lambda *_, **__: None


def compiled() -> int:
    return len(list(Path(os.environ["TRITON_CACHE_DIR"]).rglob("*.cubin")))


def main() -> None:
    driver.set_active(Driver())
    op = library("mamba2")
    text = op.program.kernels.emitted("chunked", SIZES, "bfloat16", "sm_90").text
    compile_text(text, op.ir, SIZES, "bfloat16", "sm_90")
    ahead = compiled()
    with tempfile.TemporaryDirectory() as folder:
        module = load_text(text, Path(folder))
        arguments = example(op.ir, SIZES, "bfloat16", "meta")
        y = getattr(module, op.name)(**arguments)
        getattr(module, f"{op.name}_backward")(torch.empty_like(y), **arguments)
    print(json.dumps([ahead, compiled() - ahead]))


if __name__ == "__main__":
    main()
