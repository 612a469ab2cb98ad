"""Settings of every test: one profile for property tests, and skips of what the machine lacks."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "sma",
    deadline=None,  # the first example of a test pays for imports and compilation
    derandomize="CI" in os.environ,  # a submission is judged by its own change, not by chance
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)
settings.load_profile("sma")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew, to be reviewed as code")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(
                    pytest.mark.skip(
                        reason="compiled kernels run on a CUDA device alone, and there is none; `pytest -m gpu` on one"
                    )
                )


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same random tensors in every run of a test."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other processes found out about a spec is left aside: tests change parts of the compiler."""
    monkeypatch.setattr("sma_compiler.driver.recall", lambda _source, _name: None)
    monkeypatch.setattr("sma_compiler.driver.keep", lambda *_: None)
