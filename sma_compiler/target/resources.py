"""What a compiled kernel needs of a GPU: registers, spills, shared memory; and its tensor-core instructions."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sma_compiler.target.compile import Compiled

_TENSOR_CORES = {
    "wgmma": r"wgmma\.mma_async",
    "mma.sync": r"\bmma\.sync",
    "mfma": r"\bv_mfma_",
}


@dataclass(frozen=True)
class Resources:
    """registers: of a thread. spilled: bytes of a thread that do not fit (stack frame). shared: bytes of a program.

    tensor_cores: instructions in the code by kind.
    """

    kernel: str
    warps: int
    registers: int
    spilled: int
    shared: int
    tensor_cores: dict[str, int]

    def __str__(self) -> str:
        used = ", ".join(f"{count} {name}" for name, count in self.tensor_cores.items() if count) or "none"
        return (
            f"{self.kernel}: {self.warps} warps, {self.registers} registers a thread, {self.spilled} bytes spilled, "
            f"{self.shared} bytes of shared memory, tensor cores: {used}"
        )


def resources(compiled: Compiled) -> Resources:
    """Read them from the binary (NVIDIA) or the assembly (AMD)."""
    text = compiled.stages.get("ptx") or compiled.stages["amdgcn"]
    cores = {name: len(re.findall(pattern, text)) for name, pattern in _TENSOR_CORES.items()}
    if "ptx" in compiled.stages:
        usage = _tool("cuobjdump", "-res-usage", compiled.binary)
        registers, stack = _number(r"REG:(\d+)", usage), _number(r"STACK:(\d+)", usage)
    else:
        registers = _number(r"\.vgpr_count:\s*(\d+)", text)
        stack = 4 * _number(r"\.vgpr_spill_count:\s*(\d+)", text)
    return Resources(compiled.launch.kernel, compiled.launch.warps, registers, stack, compiled.shared, cores)


def sass(compiled: Compiled) -> str:
    """The machine code of an NVIDIA binary, disassembled."""
    return _tool("nvdisasm", "-c", compiled.binary)


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, f"{pattern} not in the compiler's report"
    return int(found.group(1))


def _tool(name: str, option: str, binary: bytes) -> str:
    """Run a tool that ships with Triton on a binary."""
    from triton.backends import nvidia

    (folder,) = nvidia.__path__
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        tool = str(Path(folder) / "bin" / name)
        return subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout
