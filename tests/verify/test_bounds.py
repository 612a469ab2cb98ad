"""The measured constants: which one bounds what."""

import pytest

import sma_compiler as sma
from sma_compiler.verify.bounds import MARGIN, MEASURED, bound


def test_every_library_op_is_measured() -> None:
    assert set(MEASURED) == set(sma.library())


def test_an_op_has_its_own_bound_and_another_the_largest() -> None:
    phases = {name: entry["phases"][2] for name, entry in MEASURED.items() if "phases" in entry}
    assert bound("mamba3", "phases", True, 100)[0] == MARGIN * phases["mamba3"]
    assert bound("something else", "phases", True, 100)[0] == MARGIN * max(phases.values())


def test_no_bound_is_below_that_of_one_contraction() -> None:
    assert bound("attention", "gradients", False, 100) == (1, 1)


def test_narrow_bounds_grow_with_the_root_of_the_length() -> None:
    short, long = bound("delta_net", "output", True, 256), bound("delta_net", "output", True, 1024)
    assert long == pytest.approx([2 * number for number in short])
    assert bound("delta_net", "output", False, 1024) == bound("delta_net", "output", False, 256)
