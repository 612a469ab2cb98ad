"""Checked ops and their plans, kept between processes: a spec that was compiled before is neither parsed nor analysed.

They lie in a folder of the user's own, found by everything that they follow from; what is read back may hold the data
of the compiler and nothing else, and any doubt means that the spec is compiled.
"""

from __future__ import annotations

import hashlib
import io
import pickle

from sma_compiler.backend_errors import UnsafeCache
from sma_compiler.ir.nodes import Op
from sma_compiler.plan.choose import Plans
from sma_compiler.runtime.load import cache_dir, private_folder, write_whole
from sma_compiler.runtime.versions import compiler
from sma_compiler.source import Source

_DATA = ("ir.nodes", "ir.graph", "mask.", "facts.", "plan.choose", "source")
"""The modules of this package whose classes a kept op may hold."""
_PLAIN = ("bool", "float", "frozenset", "int")
_DIGEST = hashlib.sha256().digest_size


class _Reader(pickle.Unpickler):
    """Makes the compiler's own data, and calls nothing else."""

    def find_class(self, module: str, name: str) -> type:
        parts = tuple(f"sma_compiler.{part}" for part in _DATA)
        plain = module == "builtins" and name in _PLAIN
        if not plain and not module.startswith(parts):
            raise pickle.UnpicklingError(f"{module}.{name}")
        found = super().find_class(module, name)
        if not isinstance(found, type):
            raise pickle.UnpicklingError(f"{module}.{name} is no class")
        return found


def recall(source: Source, name: str | None) -> tuple[Op, Plans] | None:
    """An op of a spec, as this or another process compiled it before; None: none did."""
    if not (cache_dir() / "specs").is_dir():
        return None
    try:
        content = (private_folder("specs") / _entry(source, name)).read_bytes()
    except (OSError, UnsafeCache):
        return None
    return _read(content)


def keep(source: Source, name: str | None, op: Op, plans: Plans) -> None:
    """Keep an op, where there is a folder for it and all that it holds can be read back."""
    try:
        data = pickle.dumps((op, plans), 5)
        content = hashlib.sha256(data).digest() + data
        if _read(content) is None:
            return
        write_whole(private_folder("specs") / _entry(source, name), content)
    except (OSError, UnsafeCache, RecursionError, pickle.PicklingError):
        return


def _read(content: bytes) -> tuple[Op, Plans] | None:
    digest, data = content[:_DIGEST], content[_DIGEST:]
    if hashlib.sha256(data).digest() != digest:
        return None
    try:
        op, plans = _Reader(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, RecursionError):
        return None
    return op, plans


def _entry(source: Source, name: str | None) -> str:
    parts = compiler(), source.name, name or "", source.text
    return f"{hashlib.sha256(chr(0).join(parts).encode('utf-8', 'surrogatepass')).hexdigest()}.op"
