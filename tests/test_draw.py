"""Pictures of masks: the ranks in them are right, every plan and every kind of mask can be drawn, nothing overlaps."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib import colors as mpl_colors
from matplotlib.image import imread

from sma_compiler.draw.blocks import numerical_rank, partition
from sma_compiler.draw.colours import DIVERGING, SEQUENTIAL, choose_scale, norm_and_map
from sma_compiler.draw.gather import BadPictureLength, gather
from sma_compiler.draw.picture import MaskView, Picture, PlanView
from sma_compiler.draw.render import PlottingMissing, UnknownPictureFormat, save
from sma_compiler.draw.tiles import EMPTY, FULL, PARTIAL, SKIPPED, classify
from sma_compiler.ir.check import check_file
from sma_compiler.plan.choose import plan
from sma_compiler.syntax.locate import library_names, library_source

T = 64
LAG = torch.arange(T)[:, None] - torch.arange(T)[None]
CAUSAL = LAG >= 0
PLANS = ("quadratic", "recurrent", "chunked", "toeplitz", "global", "hierarchical")


def decay(gamma: float) -> torch.Tensor:
    return torch.where(CAUSAL, gamma ** LAG.clamp(min=0).double(), 0.0)


def lightness(colour: object) -> float:
    """CIE L* of an sRGB colour, 0 to 100."""
    channels = np.array(mpl_colors.to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ [0.2126, 0.7152, 0.0722])
    return 116 * luminance ** (1 / 3) - 16 if luminance > 0.008856 else 903.3 * luminance


@pytest.mark.parametrize("gamma", [0.99, 0.5, 0.05])
def test_a_decay_has_rank_one_however_steep(gamma: float) -> None:
    blocks = partition(decay(gamma))
    assert {block.rank for block in blocks if block.lower} == {1}
    assert {block.rank for block in blocks if not block.lower} == {0}


@pytest.mark.parametrize("rank", [0, 1, 2, 5])
def test_numerical_rank_of_random_products(rank: int) -> None:
    left, right = (torch.randn(20, rank, dtype=torch.float64) for _ in range(2))
    assert numerical_rank(left @ right.T) == rank


def test_a_window_has_a_rank_below_its_width() -> None:
    window = (CAUSAL & (LAG < 12)).double()
    assert max(block.rank for block in partition(window)) == 11


def test_blocks_cover_all_but_the_diagonal_once() -> None:
    covered = torch.zeros(T, T)
    for block in partition(torch.ones(T, T, dtype=torch.float64), depth=6):
        covered[block.top : block.bottom, block.left : block.right] += 1
    assert torch.equal(covered, 1 - torch.eye(T))


def test_tiles_of_a_causal_window_whose_length_no_tile_divides() -> None:
    lag = np.subtract.outer(np.arange(10), np.arange(10))  # tiles start at 0, 3, 6
    found = classify((lag >= 0) & (lag < 6), lag > -10, 3)
    assert classify(lag == 0, (lag >= 0) & (lag < 2), 3).tolist()[2] == [SKIPPED, EMPTY, PARTIAL]
    assert found.tolist() == [
        [PARTIAL, EMPTY, EMPTY],
        [FULL, PARTIAL, EMPTY],
        [PARTIAL, PARTIAL, PARTIAL],
    ]
    assert classify(lag > -10, lag > -10, 3).tolist() == [[FULL] * 3] * 3


def library_picture(name: str, **sizes: int) -> Picture:
    (op,) = check_file(library_source(name))
    return gather(op, plan(op), sizes, {})


@pytest.mark.parametrize("name", library_names())
def test_every_library_spec_is_gathered_and_its_ranks_hold(name: str) -> None:
    picture = library_picture(name)
    assert picture.name == name
    assert picture.masks
    for mask in picture.masks:
        assert mask.plans[0].name == "quadratic"
        assert not (mask.values[~mask.live] != 0).any()
        assert not (mask.values[~mask.visited] != 0).any()
        for block in mask.blocks:
            assert block.rank <= int(mask.lower if block.lower else mask.upper)


def test_a_window_is_skipped_and_documents_are_masked() -> None:
    (window,) = library_picture("sliding_window").masks
    (documents,) = library_picture("document").masks
    assert (window.visited == window.live).all()
    assert (documents.visited == CAUSAL.numpy()).all()


def test_contractions_that_share_a_mask_share_a_row() -> None:
    assert [mask.title for mask in library_picture("rwkv7").masks] == ["attend0, attend2", "attend1, solve"]
    assert [mask.title for mask in library_picture("sliding_window").masks] == ["attend (softmax)"]


@pytest.mark.parametrize("length", [8, 13, 100])
def test_any_length_can_be_drawn(length: int, tmp_path: Path) -> None:
    for name in ("hydra", "s4d", "document"):
        save(library_picture(name, time=length), tmp_path / "mask.svg")


@pytest.mark.parametrize("length", [1, 7, 513])
def test_lengths_that_show_nothing_are_refused(length: int) -> None:
    with pytest.raises(BadPictureLength, match=str(length)):
        library_picture("mamba2", time=length)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (decay(0.99), "linear"),
        (decay(0.5), "log"),
        (CAUSAL.double(), "constant"),
        (torch.zeros(T, T), "constant"),
        (-CAUSAL.double(), "constant"),
        (decay(0.99) * torch.cos(0.3 * LAG), "signed"),
        (decay(0.5) * torch.cos(0.3 * LAG), "signed_log"),
    ],
)
def test_scales_fit_the_values_and_leave_zero_to_the_paper(values: torch.Tensor, kind: str) -> None:
    scale = choose_scale(values.double().numpy())
    assert scale.kind == kind
    norm, palette = norm_and_map(scale)
    assert palette(np.ma.masked) == pytest.approx((1, 1, 1, 1))
    if kind.startswith("signed"):
        assert scale.low == -scale.high
        assert palette(norm(0.0))[:3] == pytest.approx((1, 1, 1), abs=0.01)
    else:
        assert lightness(palette(norm(scale.high))) < 90


def test_the_colour_scales_are_even() -> None:
    """Equal steps of value are about equal steps of lightness, so no edge appears where the mask has none."""
    steps = -np.diff([lightness(colour) for colour in SEQUENTIAL])
    assert steps.min() > 0.6 * steps.mean()
    assert steps.max() < 1.4 * steps.mean()
    assert lightness(SEQUENTIAL[0]) < 95
    half = [lightness(colour) for colour in DIVERGING]
    assert np.allclose(half, half[::-1], atol=6)


def view(values: torch.Tensor, plans: tuple[str, ...], causal: bool = True) -> MaskView:
    return MaskView(
        title="attend",
        values=values.double().numpy(),
        live=(values != 0).numpy(),
        visited=(LAG > -1 if causal else LAG > -T).numpy(),
        near=(LAG == 0).numpy(),
        blocks=tuple(partition(values.double())),
        lower="1",
        upper="0" if causal else "1",
        causal=causal,
        facts="causal · scalar gate",
        plans=tuple(PlanView(name, "T²(K + V)") for name in plans),
    )


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_png_of_any_number_of_plans(count: int, tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    save(Picture("op", ("op a(v):",), "T = 64", (view(decay(0.9), PLANS[:count]),)), path)
    image = imread(path)
    assert image.shape[1] > 1200
    assert image.std() > 0.05


def test_svg_is_well_formed_and_the_same_twice(tmp_path: Path) -> None:
    everything = (
        view(decay(0.9) * torch.cos(LAG), PLANS[:4]),
        view(decay(0.9) + decay(0.8).T, PLANS[4:] + PLANS[2:3], causal=False),
        view(torch.zeros(T, T), PLANS[:1]),
    )
    picture = Picture("a_b", ("op a(v):", "    return x_1  # $\\nonsense_^$"), "sample", everything)
    first, second = tmp_path / "1.svg", tmp_path / "2.svg"
    save(picture, first)
    save(picture, second)
    assert ElementTree.parse(first).getroot().tag.endswith("svg")
    assert first.read_bytes() == second.read_bytes()


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownPictureFormat, match=r"\.png or \.svg"):
        save(Picture("op", (), "", ()), tmp_path / "mask.bmp")


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(PlottingMissing, match="plot"):
        save(Picture("op", (), "", ()), tmp_path / "mask.png")
