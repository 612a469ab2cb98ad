"""Emitted files are kept by content in a folder of the user's own, and loaded only as they were written."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import sma_compiler as sma
from sma_compiler.backend_errors import UnsafeCache
from sma_compiler.runtime import load

TEXT = "def answer():\n    return {}\n\n\nanswer_kernel = [answer]\n"


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SMA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


def fresh(text: str) -> object:
    """The text loaded as another process would load it."""
    for name in [name for name in sys.modules if name.startswith("sma_kernels_")]:
        del sys.modules[name]
    return load.load(text).answer()


def test_files_are_named_by_their_content(folder: Path) -> None:
    assert [fresh(TEXT.format(number)) for number in (1, 2, 1)] == [1, 2, 1]
    files = sorted(folder.iterdir())
    assert len(files) == 2
    assert all(len(path.stem) == 64 and path.suffix == ".py" for path in files)
    assert load.load(TEXT.format(1)) is load.load(TEXT.format(1))
    assert isinstance(load.load(TEXT.format(1)).answer_kernel, load.Tap)


def test_the_folder_is_private(folder: Path) -> None:
    fresh(TEXT.format(1))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(next(folder.iterdir()).stat().st_mode) == 0o600


def test_a_file_that_was_changed_is_not_run(folder: Path) -> None:
    fresh(TEXT.format(1))
    (path,) = folder.iterdir()
    path.write_text(TEXT.format(2))  # of the same size
    assert fresh(TEXT.format(1)) == 1
    assert path.read_text() == TEXT.format(1)
    assert not list(folder.glob("__pycache__"))


def test_folders_that_others_may_write_to_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh(TEXT.format(1))
    folder.chmod(0o777)
    with pytest.raises(UnsafeCache, match=r"can be written by others \(mode 777\).*chmod 700"):
        fresh(TEXT.format(1))
    folder.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(UnsafeCache, match="belongs to another user"):
        fresh(TEXT.format(1))


@pytest.mark.skipif(os.geteuid() != 0, reason="the kernel lets only root give a folder to another user")
def test_a_cache_that_belongs_to_somebody_else_is_refused(folder: Path) -> None:
    fresh(TEXT.format(1))
    os.chown(folder.parent, 12345, -1)
    with pytest.raises(UnsafeCache, match=r"belongs to another user \(uid 12345\)"):
        fresh(TEXT.format(1))


def test_a_folder_that_cannot_be_made_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SMA_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(sma.CallError, match=r"cannot be made .*set SMA_CACHE_DIR to another folder"):
        fresh(TEXT.format(1))


STORE = """
import sys
from pathlib import Path
from sma_compiler.runtime import load
for number in range(16):
    text = f"answer = {number % 4}\\n" * 200
    assert load.store(text, Path(sys.argv[1])).read_text() == text
"""
"""What each of several processes runs."""


def test_processes_share_it() -> None:
    folder = load.private_folder("kernels")
    command = [sys.executable, "-c", STORE, str(folder)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert len(list(folder.iterdir())) == 4
