"""What compiled kernels need of a GPU, kept by the content of their file: the cost model asks, and never compiles."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from sma_compiler.runtime.load import cache_dir, private_folder, write_whole
from sma_compiler.runtime.versions import triton_version
from sma_compiler.target.resources import Resources

FOLDER = "usage"


def keep(text: str, target: str, found: Sequence[Resources]) -> None:
    """Remember what kernels of a file need, each by itself: processes compile them in shares. Raises UnsafeCache."""
    folder = private_folder(FOLDER) / _name(text, target)
    folder.mkdir(mode=0o700, exist_ok=True)
    for one in found:
        write_whole(folder / f"{one.kernel}.json", json.dumps(asdict(one)).encode())


def known(text: str, target: str) -> dict[str, Resources]:
    """By kernel; empty where the file was never compiled; without what is damaged."""
    found = {}
    for path in sorted((cache_dir() / FOLDER / _name(text, target)).glob("*.json")):
        try:
            one = Resources(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            continue
        if all(isinstance(n, int) for n in (one.registers, one.spilled, one.shared, one.warps)):
            found[one.kernel] = one
    return found


def by_role(name: str, used: Mapping[str, Resources]) -> dict[str, Resources]:
    """What kernels need by role, from that by kernel. name: of the op."""
    return {kernel.removeprefix(f"{name}_").removesuffix("_kernel"): found for kernel, found in used.items()}


def _name(text: str, target: str) -> str:
    return hashlib.sha256(f"{triton_version()} {target}\n{text}".encode()).hexdigest()
