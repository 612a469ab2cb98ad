"""What kernels and measurements depend on besides an op: the code that makes them, and Triton."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files

MAKERS = ("ir", "mask", "facts", "plan", "kernel", "emit", "torch_plans")
"""The folders whose modules make plans and kernels: what was measured with others says nothing."""


@cache
def generator() -> str:
    """A hash of the modules that make plans and kernels."""
    digest = hashlib.sha256()
    for folder in MAKERS:
        for file in sorted(files("sma_compiler").joinpath(folder).iterdir(), key=lambda found: found.name):
            if file.name.endswith(".py"):
                digest.update(f"{folder}/{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


@cache
def triton_version() -> str:
    """Of the package, or "none"."""
    try:
        return version("triton")
    except PackageNotFoundError:
        return "none"
