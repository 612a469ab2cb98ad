"""Emitted files are shared between processes: only the first one emits, and a damaged file is emitted again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sma_compiler.interface import library
from sma_compiler.runtime import kernels, load
from sma_compiler.runtime.kernels import Kernels

SIZES = {"batch": 1, "time": 64, "head": 2, "key": 16, "value": 16}
PROCESS = """
import json, sys, time, torch
begun = time.process_time()
import sma_compiler as sma
op = sma.library("retention")
kernel = op.program.kernels.find("chunked", json.loads(sys.argv[1]), "float32", "sm_90")
assert callable(kernel.forward)
loaded = [name for name in ("sma_compiler.emit.source", "lark", "sympy") if name in sys.modules]
print(json.dumps([loaded, time.process_time() - begun]))
"""


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SMA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


def test_a_second_process_neither_compiles_nor_waits() -> None:
    pytest.importorskip("triton")
    found = []
    for _ in range(2):
        command = [sys.executable, "-c", PROCESS, json.dumps(SIZES)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        found.append(json.loads(done.stdout))
    (first, _), (second, seconds) = found
    assert first == ["sma_compiler.emit.source", "lark", "sympy"]
    assert second == []
    assert seconds < 1.0  # 0.5 s, and 0.3 s from compiled bytecode


def fresh(monkeypatch: pytest.MonkeyPatch) -> tuple[Kernels, list[str]]:
    """The kernels of an op as another process would have them, and the plans that are emitted."""
    program, emitted = library("retention").program, []
    own = Kernels.emitted

    def counted(self: Kernels, plan: str, *others: object) -> object:
        emitted.append(plan)
        return own(self, plan, *others)

    monkeypatch.setattr(Kernels, "emitted", counted)
    return Kernels(program.op, program.plans), emitted


def text(found: Kernels, plan: str = "chunked", dtype: str = "float32") -> str:
    return found.text(plan, SIZES, dtype, "sm_90")


def test_what_a_file_depends_on_is_what_it_is_found_by(monkeypatch: pytest.MonkeyPatch) -> None:
    found, emitted = fresh(monkeypatch)
    first = text(found)
    assert text(found) == first
    assert len(emitted) == 1
    assert text(found, dtype="bfloat16") != first
    assert text(found, "recurrent") != first
    assert text(found, "chunked:forward.warps=8") != first
    assert len(emitted) == 4
    monkeypatch.setattr(kernels, "generator", lambda: "another")
    assert text(found) == first
    assert len(emitted) == 5


def test_damage_is_emitted_anew(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    found, emitted = fresh(monkeypatch)
    first = text(found)
    (path,) = folder.glob("*.py")
    (entry,) = folder.glob("*.key")
    path.write_text("import os\n")
    assert text(found) == first
    entry.write_text("../../../etc/passwd")
    assert text(found) == first
    entry.write_text("0" * 64)
    assert text(found) == first
    entry.write_bytes(b"\xff\xfe")
    assert text(found) == first
    assert len(emitted) == 5
    assert path.read_text() == first


def test_nothing_is_read_from_a_folder_of_others(folder: Path) -> None:
    load.remember("key", "answer = 1\n")
    assert load.remembered("key") == "answer = 1\n"
    assert load.remembered("other") is None
    folder.chmod(0o777)
    with pytest.raises(load.UnsafeCache):
        load.remembered("key")
    folder.chmod(0o700)
