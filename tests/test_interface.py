"""`sma.compile`, `sma.library`, `sma.cache_dir`, and the stages of the driver."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch

import sma_compiler as sma
from sma_compiler.call_errors import UnknownLibraryOp
from sma_compiler.driver import STAGES, compile_all, lower
from sma_compiler.driver_errors import NoSuchFile, NoSuchOp, SeveralOps
from sma_compiler.source import Source

ONE = "op one(q, k, v):\n    return attend(causal, q, k, v)\n"
TWO = ONE + "\nop two(v):\n    return causal @ v\n"


def test_compiles_text_and_files(tmp_path: Path) -> None:
    file = tmp_path / "spec.sma"
    file.write_text(ONE)
    for spec in (ONE, str(file), file):
        op = sma.compile(spec)
        assert op.name == "one"
        q = torch.randn(1, 4, 2, 3)
        assert op(q, q, q).shape == (1, 4, 2, 3)


def test_errors_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "wrong.sma"
    file.write_text("op one(q, k, v):\n    return attend(cusal, q, k, v)\n")
    with pytest.raises(sma.SpecError, match=r"wrong\.sma:2:19: "):
        sma.compile(file)
    with pytest.raises(sma.SpecError, match=r"<spec>:2:19: "):
        sma.compile(file.read_text())


def test_a_name_picks_one_of_several() -> None:
    assert sma.compile(TWO, name="two").name == "two"
    with pytest.raises(SeveralOps, match=r"the spec has several ops: one, two"):
        sma.compile(TWO)
    with pytest.raises(NoSuchOp, match=r"the spec has no op 'tow'; its ops: one, two[\s\S]*did you mean 'two'\?"):
        sma.compile(TWO, name="tow")
    with pytest.raises(sma.SpecError):
        sma.compile(ONE, "none")


def test_refuses_what_is_no_spec(tmp_path: Path) -> None:
    with pytest.raises(NoSuchFile, match=r"nowhere\.sma: No such file"):
        sma.compile("nowhere.sma")
    with pytest.raises(NoSuchFile, match=r"Is a directory"):
        sma.compile(tmp_path)
    binary = tmp_path / "binary.sma"
    binary.write_bytes(b"op \xff")
    with pytest.raises(NoSuchFile, match=r"not UTF-8 text \(byte 3\)"):
        sma.compile(binary)
    with pytest.raises(sma.SpecError):
        sma.compile("")
    long = tmp_path / "long.sma"
    long.write_text(ONE + "# é" * 70_000)
    with pytest.raises(sma.SpecError, match=r"64|65536|65,536"):
        sma.compile(long)


def test_the_library() -> None:
    names = sma.library()
    assert list(names) == sorted(names)
    assert {"attention", "mamba2", "rwkv7", "log_linear"} <= set(names)
    assert sma.library("mamba2") is sma.library("mamba2")
    with pytest.raises(UnknownLibraryOp, match=r"the library has no 'mamba4'; did you mean 'mamba\d'\?"):
        sma.library("mamba4")
    with pytest.raises(sma.CallError):
        sma.library("../mamba2")


@pytest.mark.parametrize("name", sma.library())
def test_library_names_are_op_names(name: str) -> None:
    assert sma.library(name).name == name


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SMA_CACHE_DIR", str(tmp_path / "here"))
    assert sma.cache_dir() == tmp_path / "here"
    assert not sma.cache_dir().exists()
    monkeypatch.delenv("SMA_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert sma.cache_dir().name == "sma_compiler"


@pytest.mark.parametrize("stage", STAGES)
def test_the_driver_stops_after_any_stage(stage: str) -> None:
    lowered = lower(Source(TWO), "two", stop_after=stage)
    reached = [getattr(lowered, name) is not None for name in STAGES]
    assert reached == [STAGES.index(name) <= STAGES.index(stage) for name in STAGES]


def test_all_ops_of_a_file() -> None:
    assert [op.name for op in compile_all(Source(TWO))] == ["one", "two"]
    wrong = "op {0}(q, k, v):\n    return attend(causal * (i - j - 3), q, k, v, normalize=softmax)\n"
    with pytest.raises(sma.SpecError) as caught:
        compile_all(Source(wrong.format("f") + wrong.format("g")))
    assert len(caught.value.errors) == 2


def test_ops_are_pickled_as_their_spec() -> None:
    op = sma.compile(TWO, name="two")
    again = pickle.loads(pickle.dumps(op))
    assert (again.name, again.spec_hash) == (op.name, op.spec_hash)
    assert copy.deepcopy(op) is op
    deep = "".join(f"    x{n + 1} = x{n} * {n + 2}\n" for n in range(1500))
    op = sma.compile(f"op deep(q, k, v):\n    x0 = q\n{deep}    return attend(causal, x1500, k, v)\n")
    assert pickle.loads(pickle.dumps(op)).spec_hash == op.spec_hash


def test_the_package_says_what_it_offers() -> None:
    assert all(hasattr(sma, name) for name in sma.__all__)
    assert sma.__version__
