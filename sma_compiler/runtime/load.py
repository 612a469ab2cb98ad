"""Emitted text as a loaded module: by way of a file named after its content, in a folder of the user's own.

Triton reads the source of a kernel from its file. Files are written whole under another name and renamed, so that any
number of processes may do it at once; what a file holds is compared with its name each time it is loaded.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
import threading
from pathlib import Path
from types import ModuleType

from sma_compiler.backend_errors import UnsafeCache
from sma_compiler.runtime.replay import Tap

_lock = threading.Lock()


def cache_dir() -> Path:
    """Where compiled kernels and tuning records are kept, whether or not it exists yet.

    `SMA_CACHE_DIR` where it is set, else the user's cache folder (`XDG_CACHE_HOME`) and `sma_compiler` in it.
    """
    if chosen := os.environ.get("SMA_CACHE_DIR"):
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "sma_compiler"


def private_folder(name: str) -> Path:
    """A folder of the cache that nobody else can write to; made where it is missing.

    Raises:
        UnsafeCache: it cannot be made, somebody else owns it, or others may write to it.
    """
    base = cache_dir()
    folder = base / name
    try:
        for path in (base, folder):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        held, found = base.stat(), folder.stat()
    except OSError as error:
        raise UnsafeCache(folder, f"cannot be made ({error.strerror})") from None
    if os.name == "posix":
        if found.st_uid != os.geteuid():
            raise UnsafeCache(folder, f"belongs to another user (uid {found.st_uid})")
        if found.st_mode & 0o022:
            raise UnsafeCache(folder, f"can be written by others (mode {found.st_mode & 0o777:o})")
        if held.st_uid not in (os.geteuid(), 0):
            raise UnsafeCache(base, f"belongs to another user (uid {held.st_uid})")
        if held.st_mode & 0o022 and not held.st_mode & stat.S_ISVTX:  # who may rename what is in it may replace it
            raise UnsafeCache(base, f"can be written by others (mode {held.st_mode & 0o777:o})")
    return folder


def store(text: str, folder: Path) -> Path:
    """The file of a text, `<sha256>.py`; written where it is missing or holds something else."""
    content = text.encode("utf-8")
    path = folder / f"{hashlib.sha256(content).hexdigest()}.py"
    try:
        if path.read_bytes() == content:
            return path
    except FileNotFoundError:
        pass
    write_whole(path, content)
    return path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that no process ever sees in part."""
    handle, draft = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def remember(key: str, text: str) -> None:
    """Keep a text, and that it is what `key` asks for: no process emits it again.

    Raises:
        UnsafeCache: the folder is not the user's own.
    """
    folder = private_folder("kernels")
    write_whole(folder / _entry(key), store(text, folder).stem.encode("ascii"))


def remembered(key: str) -> str | None:
    """The text that was kept for a key, if it is there as it was kept. Raises UnsafeCache."""
    if not (cache_dir() / "kernels").is_dir():
        return None
    folder = private_folder("kernels")
    try:
        name = (folder / _entry(key)).read_text(encoding="ascii")
        if len(name) != 64 or not name.isalnum():
            return None
        content = (folder / f"{name}.py").read_bytes()
    except (OSError, UnicodeDecodeError):
        return None
    return content.decode("utf-8") if hashlib.sha256(content).hexdigest() == name else None


def _entry(key: str) -> str:
    return f"{hashlib.sha256(key.encode('utf-8')).hexdigest()}.key"


def load(text: str) -> ModuleType:
    """An emitted file as a module, the same one every time; launches of its kernels can be recorded."""
    name = f"sma_kernels_{hashlib.sha256(text.encode('utf-8')).hexdigest()}"
    with _lock:
        if name not in sys.modules:
            path = store(text, private_folder("kernels"))
            module = ModuleType(name)
            module.__file__ = str(path)
            exec(compile(text, str(path), "exec"), module.__dict__)  # of our own text: no bytecode file is trusted
            for key, value in list(vars(module).items()):
                if key.endswith("_kernel"):
                    setattr(module, key, Tap(value))
            sys.modules[name] = module
        return sys.modules[name]
