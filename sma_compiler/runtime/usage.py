"""What compiled kernels need of a GPU, kept by the content of their file: the cost model asks, and never compiles."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from sma_compiler.runtime.load import cache_dir, private_folder
from sma_compiler.runtime.versions import triton_version
from sma_compiler.target.resources import Resources

FOLDER = "usage"


def keep(text: str, target: str, found: Sequence[Resources]) -> None:
    """Remember what the kernels of a file need. Raises UnsafeCache."""
    folder = private_folder(FOLDER)
    handle, draft = tempfile.mkstemp(dir=folder, suffix=".tmp")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump([asdict(one) for one in found], file)
    os.replace(draft, folder / _name(text, target))


def known(text: str, target: str) -> dict[str, Resources]:
    """By kernel; empty where the file was never compiled, or what is kept is damaged."""
    path = cache_dir() / FOLDER / _name(text, target)
    try:
        found = [Resources(**one) for one in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return {}
    if not all(isinstance(n, int) for one in found for n in (one.registers, one.spilled, one.shared, one.warps)):
        return {}
    return {one.kernel: one for one in found}


def by_role(name: str, used: Mapping[str, Resources]) -> dict[str, Resources]:
    """What kernels need by role, from that by kernel. name: of the op."""
    return {kernel.removeprefix(f"{name}_").removesuffix("_kernel"): found for kernel, found in used.items()}


def _name(text: str, target: str) -> str:
    return hashlib.sha256(f"{triton_version()} {target}\n{text}".encode()).hexdigest() + ".json"
