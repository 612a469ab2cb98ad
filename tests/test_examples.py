"""The examples run: every spec compiles, the scripts do what they print, the model learns and decodes as it was
trained."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import sma_compiler as sma

EXAMPLES = Path(__file__).parents[1] / "examples"
ENV = {**os.environ, "PYTHONPATH": str(Path(sma.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
SPECS = sorted(EXAMPLES.glob("*.sma"))


def load(name: str) -> ModuleType:
    """A script as a module: the folder is no package."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


bytes_model = load("train_bytes")


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_every_spec_has_a_doc_comment_and_the_name_of_its_file(path: Path) -> None:
    op = sma.compile(path)
    assert op.name == path.stem
    assert len(op.doc) > 20


def test_write_a_mixer_runs() -> None:
    script = [sys.executable, EXAMPLES / "write_a_mixer.py"]
    done = subprocess.run(script, capture_output=True, text=True, env=ENV, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    errors = [float(line.split()[-1]) for line in done.stdout.splitlines() if "relative error" in line]
    assert len(errors) == 3
    assert max(errors) < 1e-5
    assert float(done.stdout.split()[-1]) < 1e-4


@pytest.mark.parametrize("mixer", bytes_model.RECIPES)
def test_step_decoding_agrees_with_the_full_forward(mixer: str) -> None:
    torch.manual_seed(0)
    model = bytes_model.ByteModel(mixer)
    tokens = torch.randint(256, (2, 40))
    with torch.no_grad():
        every = model(tokens)
        logits, states = model.prefill(tokens[:, :30])
        torch.testing.assert_close(logits, every[:, 29], rtol=1e-4, atol=1e-4)
        for at in range(30, 40):
            logits, states = model.step(tokens[:, at], states)
            torch.testing.assert_close(logits, every[:, at], rtol=1e-4, atol=1e-4)


def test_the_model_has_about_a_million_parameters() -> None:
    for mixer in bytes_model.RECIPES:
        assert 0.9e6 < sum(p.numel() for p in bytes_model.ByteModel(mixer).parameters()) < 1.3e6


def test_corpus_splits_by_file_and_by_seed() -> None:
    train, held = bytes_model.corpus(0)
    again, _ = bytes_model.corpus(0)
    other, _ = bytes_model.corpus(1)
    assert torch.equal(train, again)
    assert not torch.equal(train[:10000], other[:10000])
    assert len(train) > 5 * len(held) > 5 * 10000


def test_the_bigram_baseline_is_the_cross_entropy_of_counts() -> None:
    data = torch.tensor([0, 1] * 500, dtype=torch.uint8)
    held = torch.tensor([[0, 1, 0, 1, 0]])
    assert bytes_model.bigram_bits(data, held) == pytest.approx(math.log2(1 + 25.5 / 500), rel=1e-2)
    uniform = torch.randint(256, (2_000_000,), dtype=torch.uint8)
    assert bytes_model.bigram_bits(uniform, torch.randint(256, (64, 257))) == pytest.approx(8, abs=0.1)


def test_a_short_training_run_learns_and_writes_its_results(tmp_path: Path) -> None:
    command = [sys.executable, EXAMPLES / "train_bytes.py", "--mixer", "retention", "--steps", "12", "--out", tmp_path]
    command += ["--sample", "20", "--windows", "16", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["steps"] == 12
    assert result["first_loss"] > 6
    assert result["held_out_bits_per_byte"] < result["first_loss"] - 1
    assert result["gain"] == pytest.approx(result["bigram_bits_per_byte"] - result["held_out_bits_per_byte"])
    assert len((tmp_path / "sample.txt").read_text()) >= 20
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "bigram" in done.stdout
