"""Triton's hash of itself, which names the kernels that it compiled, kept between processes.

Triton reads its own code for it in every process that launches a kernel, with a library of 400 MB: most of the time
that a process spends before its first launch. The hash is remembered by the sizes and times of the files that are read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

from sma_compiler.backend_errors import UnsafeCache
from sma_compiler.runtime.load import remember, remembered

HASHED = ("runtime", "compiler", "backends", "language", "_C")
"""The folders of Triton's package that it hashes files of."""


@cache
def quicken() -> None:
    """From now on Triton asks for what was remembered; a hash that is not is made by Triton itself."""
    from triton.runtime import cache as names

    module: Any = names  # whose hash is replaced
    hashed: Callable[[], str] | None = getattr(module, "triton_key", None)
    if hashed is not None and hasattr(hashed, "cache_info"):  # as in Triton 3: made once in a process
        module.triton_key = lru_cache(partial(known_key, hashed, Path(module.__file__).parents[1]))


def known_key(hashed: Callable[[], str], folder: Path) -> str:
    """The hash of the package in a folder: as it was remembered, or else as `hashed`, Triton's own, gives it."""
    try:
        key = signature(folder)
        found = remembered(key)
        if found is None:
            found = hashed()
            remember(key, found)
        return found
    except (OSError, UnsafeCache):
        return hashed()


def signature(folder: Path) -> str:
    """What changes with any file that is hashed: their paths, sizes and times of change."""
    digest = hashlib.sha256()
    for part in HASHED:
        for path, folders, names in os.walk(folder / part):
            folders.sort()
            for name in sorted(names):
                if name.endswith((".py", ".so", ".pyd")):
                    found = os.stat(os.path.join(path, name))
                    digest.update(f"{path}/{name} {found.st_size} {found.st_mtime_ns}\n".encode())
    return f"triton_key {digest.hexdigest()}"
