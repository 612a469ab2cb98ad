"""Triton's hash of itself is the same whether it is made or remembered, and made anew where a file changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sma_compiler.runtime.triton_key import HASHED, known_key, signature

PROCESS = """
import json, time
from triton.runtime import cache
made = cache.triton_key
from sma_compiler.runtime.triton_key import quicken
quicken()
quicken()
begun = time.process_time()
key = cache.triton_key()
print(json.dumps([key, made.cache_info().currsize, time.process_time() - begun]))
"""


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SMA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


def test_a_second_process_does_not_hash() -> None:
    pytest.importorskip("triton")
    found = []
    for _ in range(2):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", PROCESS], capture_output=True, text=True, check=True, env=environment
        )
        found.append(json.loads(done.stdout))
    (first, made, _), (second, again, seconds) = found
    assert first == second
    assert (made, again) == (1, 0)
    assert seconds < 0.1


def package(folder: Path) -> Path:
    """What looks like Triton's."""
    for part in HASHED:
        (folder / part / "inner").mkdir(parents=True)
        (folder / part / "inner" / "one.py").write_text("x = 1\n")
    (folder / "_C" / "libtriton.so").write_bytes(b"code")
    return folder


def counted() -> tuple[list[str], Callable[[], str]]:
    made: list[str] = []

    def hashed() -> str:
        made.append(f"hash {len(made)}")
        return made[-1]

    return made, hashed


def test_it_is_made_anew_where_a_file_changed(tmp_path: Path) -> None:
    made, hashed = counted()
    inside = package(tmp_path / "triton")
    assert [known_key(hashed, inside) for _ in range(2)] == ["hash 0", "hash 0"]
    (inside / "_C" / "libtriton.so").write_bytes(b"other")
    assert known_key(hashed, inside) == "hash 1"
    changed = inside / "backends" / "inner" / "one.py"
    os.utime(changed, ns=(0, 0))
    assert known_key(hashed, inside) == "hash 2"
    (inside / "language" / "two.py").write_text("")
    assert known_key(hashed, inside) == "hash 3"
    assert len({signature(inside), signature(package(tmp_path / "other"))}) == 2
    assert len(made) == 4


def test_nothing_is_remembered_in_a_folder_of_others(tmp_path: Path, folder: Path) -> None:
    made, hashed = counted()
    inside = package(tmp_path / "triton")
    known_key(hashed, inside)
    folder.chmod(0o777)
    assert known_key(hashed, inside) == "hash 1"
    assert len(made) == 2
