"""What a position may influence is what the reference says it influences, and leaks are found."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sma_compiler.ir.check import check_file
from sma_compiler.ir.nodes import Op
from sma_compiler.reference import Argument, evaluate
from sma_compiler.source import Source
from sma_compiler.verify.poison import leaks
from sma_compiler.verify.samples import default_sizes, samples

LIBRARY = Path(__file__).parents[2] / "grammar" / "library"


def library(name: str) -> tuple[Op, dict[str, Argument]]:
    (op,) = check_file(Source((LIBRARY / f"{name}.sma").read_text(encoding="utf-8"), name))
    return op, samples(op, default_sizes(op, time=12, key=4, value=3, lag=5), torch.float64, seed=2)


@pytest.mark.parametrize("name", [path.stem for path in sorted(LIBRARY.glob("*.sma"))])
def test_the_reference_does_not_leak(name: str) -> None:
    op, arguments = library(name)
    for position in (0, 5, 11):
        assert leaks(op, arguments, lambda plan, given: evaluate(op, given), "reference", position) == []


@pytest.mark.parametrize("name", ["attention", "sliding_window", "document", "gated_delta_net", "mamba3"])
def test_a_run_that_looks_ahead_leaks(name: str) -> None:
    op, arguments = library(name)

    def ahead(plan: str, given: Mapping[str, Argument]) -> Tensor:
        y = evaluate(op, given)
        return torch.cat((y[:, :1] + 1e-9 * y[:, 1:2], y[:, 1:]), 1)

    assert leaks(op, arguments, ahead, "reference", 1) == [0]
