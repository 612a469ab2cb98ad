"""Ops that are kept between processes are the ops that were compiled; what is damaged or foreign is not read."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path

import pytest
import torch

from sma_compiler.driver import compile_source
from sma_compiler.interface import library
from sma_compiler.runtime import compiled
from sma_compiler.runtime.op import CompiledOp
from sma_compiler.runtime.program import Program
from sma_compiler.source import Source
from sma_compiler.syntax.locate import library_source
from sma_compiler.verify.samples import default_sizes, samples


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SMA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "specs"


def kept(source: Source, name: str | None = None) -> tuple[CompiledOp, CompiledOp | None]:
    """An op as it was compiled, and as it is read back."""
    op = compile_source(source, name)
    compiled.keep(source, name, op.ir, op.program.plans)
    found = compiled.recall(source, name)
    return op, CompiledOp(Program(*found)) if found else None


@pytest.mark.parametrize("name", library())
def test_every_op_is_read_back_as_it_was(name: str) -> None:
    op, found = kept(library_source(name))
    assert found is not None
    assert found.spec_hash == op.spec_hash
    assert str(found.facts) == str(op.facts)
    assert (found.plans, found.refused, found.causal) == (op.plans, op.refused, op.causal)
    for mask, other in zip(found.facts.masks, op.facts.masks, strict=True):
        assert (mask.lower_rank, mask.upper_rank, mask.state_size) == (
            other.lower_rank,
            other.upper_rank,
            other.state_size,
        )
    given = samples(op.ir, default_sizes(op.ir, batch=1, time=9, head=1, key=4, value=4))
    assert torch.equal(found(**given), op(**given))


@pytest.mark.parametrize("name", ["mamba2", "sliding_window"])
def test_kernels_are_emitted_alike(name: str) -> None:
    op, found = kept(library_source(name))
    assert found is not None
    assert found.source() == op.source()


def test_a_spec_is_found_by_its_text_its_place_and_its_op(folder: Path) -> None:
    text = "op one(q, k, v):\n    return attend(causal, q, k, v)\n"
    source = Source(f"{text}\n{text.replace('one', 'two')}")
    _, found = kept(source, "two")
    assert found is not None
    assert found.name == "two"
    assert compiled.recall(source, "one") is None
    assert compiled.recall(Source(source.text, "other.sma"), "two") is None
    assert compiled.recall(Source(f"{source.text}\n"), "two") is None
    assert len(list(folder.iterdir())) == 1


def test_damage_and_folders_of_others_are_left_aside(folder: Path) -> None:
    source = library_source("retention")
    kept(source)
    (path,) = folder.iterdir()
    content = path.read_bytes()
    for damaged in (b"", content[:-1], content[:200], content[:40] + bytes([content[40] ^ 1]) + content[41:]):
        path.write_bytes(damaged)
        assert compiled.recall(source, None) is None
    path.write_bytes(content)
    assert compiled.recall(source, None) is not None
    folder.chmod(0o777)
    assert compiled.recall(source, None) is None


@pytest.mark.parametrize("value", [print, io.BytesIO, compile_source, torch.zeros(1)], ids=lambda x: type(x).__name__)
def test_only_the_data_of_the_compiler_is_made(value: object, folder: Path) -> None:
    source = library_source("retention")
    kept(source)
    (path,) = folder.iterdir()
    data = pickle.dumps((value, value), 5)
    path.write_bytes(hashlib.sha256(data).digest() + data)
    assert compiled.recall(source, None) is None
