"""The reference against the language's rules, each on the smallest spec that shows it."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sma_compiler.ir.check import check_file
from sma_compiler.ir.nodes import Op
from sma_compiler.oracle import contractions
from sma_compiler.reference import Argument, evaluate, evaluate_with_lse
from sma_compiler.source import Source
from sma_compiler.verify.samples import default_sizes, samples

LIBRARY = Path(__file__).parents[2] / "grammar" / "library"
F64 = torch.float64
INF = math.inf


def spec(text: str) -> Op:
    (op,) = check_file(Source(text))
    return op


def library(name: str) -> Op:
    return spec((LIBRARY / f"{name}.sma").read_text(encoding="utf-8"))


def mask_of(parameters: str, mask: str, length: int, **arguments: Argument) -> Tensor:
    """The matrix [T, T] of a mask without axes, read off by the identity."""
    op = spec(f"op f(v: [time, value]{', ' + parameters if parameters else ''}):\n    return ({mask}) @ v\n")
    return evaluate(op, {"v": torch.eye(length, dtype=F64)[None], **arguments})[0]


def gradients(op: Op, arguments: dict[str, Argument], cotangent: Tensor | None = None) -> dict[str, Tensor]:
    leaves = {
        name: x.detach().to(F64).requires_grad_()
        for name, x in arguments.items()
        if isinstance(x, Tensor) and x.is_floating_point()
    }
    y = evaluate(op, arguments | leaves)
    weights = torch.ones_like(y) if cotangent is None else cotangent
    found = torch.autograd.grad(y, list(leaves.values()), weights)
    return dict(zip(leaves, found, strict=True))


def test_dimensions_follow_the_declaration_and_the_result_the_axes() -> None:
    op = spec("op f(q: [head, key, time], k, v: [value, time]):\n    return attend(causal, q, k, v)\n")
    q, k, v = torch.randn(2, 3, 4, 5), torch.randn(2, 5, 3, 4), torch.randn(2, 6, 5)
    scores = torch.einsum("bhki,bjhk->bhij", q.double(), k.double()).tril()
    expected = torch.einsum("bhij,bvj->bihv", scores, v.double())
    torch.testing.assert_close(evaluate(op, {"q": q, "k": k, "v": v}), expected)


def test_a_group_of_heads_shares_an_entry() -> None:
    op = library("gla")
    whole = samples(op, default_sizes(op, time=9, head=6, key=3, value=2), F64)
    k = whole["k"]
    assert isinstance(k, Tensor)
    grouped = whole | {"k": k[:, :, :2]}
    spread = whole | {"k": k[:, :, [0, 0, 0, 1, 1, 1]]}
    torch.testing.assert_close(evaluate(op, grouped), evaluate(op, spread))


def test_heads_that_do_not_divide_are_refused() -> None:
    op = library("linear_attention")
    q, k = torch.randn(1, 3, 4, 2), torch.randn(1, 3, 3, 2)
    with pytest.raises(ValueError, match="do not divide"):
        evaluate(op, {"q": q, "k": k, "v": q})


def test_a_batch_of_one_is_shared() -> None:
    op = library("linear_attention")
    q, k = torch.randn(3, 4, 2, 2), torch.randn(1, 4, 2, 2)
    shared = evaluate(op, {"q": q, "k": k, "v": k})
    torch.testing.assert_close(shared, evaluate(op, {"q": q, "k": k.repeat(3, 1, 1, 1), "v": k.repeat(3, 1, 1, 1)}))


@pytest.mark.parametrize("ends", ["j < t <= i", "j <= t <= i", "j < t < i", "j <= t < i"])
@pytest.mark.parametrize("flipped", [False, True])
def test_path_sums(ends: str, flipped: bool) -> None:
    length = 6
    g = torch.randn(1, length, dtype=F64)
    if flipped:
        ends = ends.translate(str.maketrans("ij", "ji"))
    got = mask_of("g: [time]", f"sum(g[t], {ends})", length, g=g)
    for i in range(length):
        for j in range(length):
            expected = sum((float(g[0, t]) for t in range(length) if eval(ends, {"i": i, "j": j, "t": t})), 0.0)
            assert abs(float(got[i, j]) - expected) < 1e-12


def test_a_path_of_a_constant_gate_counts_its_steps() -> None:
    got = mask_of("g: real", "causal * sum(g, j < t <= i)", 5, g=-0.5)
    steps = torch.arange(5.0, dtype=F64)
    torch.testing.assert_close(got, (-0.5 * (steps[:, None] - steps)).tril())


def test_a_path_sum_is_not_a_difference_of_long_sums() -> None:
    g = torch.tensor([[1e9, 1e-9, 1e-9, 1e-9]], dtype=F64)
    got = mask_of("g: [time]", "causal * sum(g[t], j < t <= i)", 4, g=g)
    torch.testing.assert_close(got[3, 0], torch.tensor(3e-9, dtype=F64), rtol=1e-15, atol=0)


def test_a_gate_of_minus_infinity_cuts_exactly() -> None:
    op = library("gla")
    arguments = samples(op, default_sizes(op, time=9, key=3, value=2), F64)
    g = arguments["g"]
    assert isinstance(g, Tensor)
    cut = g.index_fill(1, torch.tensor([4]), -INF)
    y = evaluate(op, arguments | {"g": cut})
    after = {name: x[:, 4:] for name, x in arguments.items() if isinstance(x, Tensor)}
    torch.testing.assert_close(y[:, 4:], evaluate(op, after))
    torch.testing.assert_close(y[:, :4], evaluate(op, arguments)[:, :4])
    found = gradients(op, arguments | {"g": cut})
    assert all(bool(grad.isfinite().all()) for grad in found.values())
    assert float(found["g"][:, 4].abs().max()) == 0


def test_what_a_boolean_factor_leaves_out_has_no_value_and_no_gradient() -> None:
    gamma = torch.tensor(1e-200, dtype=F64)  # gamma ** -2 is infinite
    for mask in ("causal * s ** (i - j)", "s ** (i - j) * causal", "where(i >= j, s ** (i - j), 0)"):
        op = spec(f"op f(v: [time], s: [value]):\n    return ({mask}) @ v\n")
        arguments: dict[str, Argument] = {"v": torch.ones(1, 5, dtype=F64), "s": gamma[None]}
        assert evaluate(op, arguments).flatten().tolist() == pytest.approx([1, 1, 1, 1, 1])
        found = gradients(op, arguments)
        assert float(found["s"]) == pytest.approx(4)  # of s ** 1, once in each of four rows
        assert found["v"].flatten().tolist() == pytest.approx([1, 1, 1, 1, 1])


def test_selection_holds_for_tensors_too() -> None:
    op = spec("op f(x: [time], on: bool[time]):\n    return on * log(x) + where(on, 1, sqrt(x))\n")
    x = torch.tensor([[2.0, -1.0, 4.0, 0.0]], dtype=F64)
    on = torch.tensor([[True, False, True, False]])
    op_right = evaluate(op, {"x": x.abs(), "on": on})
    torch.testing.assert_close(op_right[0, ::2], x[0, ::2].log() + 1)
    assert float(evaluate(op, {"x": x, "on": on})[0, 1].isnan())
    only = spec("op f(x: [time], on: bool[time]):\n    return on * log(x)\n")
    assert evaluate(only, {"x": x, "on": on})[0].tolist() == [math.log(2), 0, math.log(4), 0]
    assert gradients(only, {"x": x, "on": on})["x"][0].tolist() == [0.5, 0, 0.25, 0]


def test_one_minus_causal_is_a_number() -> None:
    assert mask_of("", "1 - causal", 3).tolist() == [[0, 1, 1], [0, 0, 1], [0, 0, 0]]


def test_zero_to_the_zero_is_one() -> None:
    assert mask_of("s: real", "causal * s ** (i - j)", 3, s=0.0).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_integers_stay_integers() -> None:
    op = spec("op f(x: int[time], on: bool[time]):\n    return cumsum(x) * 2 + cumsum(on) + shift(x) // 2 + x % 3\n")
    x, on = torch.tensor([[3, -5, 2**40, 1]]), torch.tensor([[True, True, False, True]])
    y = evaluate(op, {"x": x, "on": on})
    assert y.dtype is torch.int64
    assert y.tolist() == [[6 + 1 + 0 + 0, -4 + 2 + 1 + 1, 2 * (2**40 - 2) + 2 - 3 + 1, 2 * (2**40 - 1) + 3 + 2**39 + 1]]


def test_an_integer_divided_by_zero_where_nothing_selects_it() -> None:
    op = spec("op f(x: int[time], n: int[time]):\n    return where(n > 0, x // n + x % n, -1)\n")
    got = evaluate(op, {"x": torch.tensor([[7, 7]]), "n": torch.tensor([[0, 2]])})
    assert got.tolist() == [[-1, 4]]


def test_infinities_pass_a_shift() -> None:
    op = spec("op f(g: [time]):\n    return shift(g)\n")
    assert evaluate(op, {"g": torch.tensor([[1.0, -INF, 2.0, 3.0]])}).tolist() == [[0, 1, -INF, 2]]


def test_lag_tables_are_zero_outside() -> None:
    c = torch.tensor([5.0, 7.0])
    assert mask_of("c: [lag]", "c[i - j]", 4, c=c).tolist() == [[5, 0, 0, 0], [7, 5, 0, 0], [0, 7, 5, 0], [0, 0, 7, 5]]
    assert mask_of("c: [lag]", "c[j - i]", 3, c=c).tolist() == [[5, 7, 0], [0, 5, 7], [0, 0, 5]]


def test_levels_beyond_the_axis_are_zero() -> None:
    w = torch.arange(1.0, 3.0).expand(1, 5, 2)  # 1 on the diagonal, 2 at distance one within a pair
    got = mask_of("w: [time, level]", "levels(w)", 5, w=w)
    assert got.tolist() == [[1, 0, 0, 0, 0], [2, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 2, 1, 0], [0, 0, 0, 0, 1]]
    flipped = mask_of("w: [time, level]", "transpose(levels(w))", 5, w=w)
    torch.testing.assert_close(flipped, got.T)


def test_products_and_transposes_of_masks() -> None:
    g = -torch.rand(1, 6, dtype=F64)
    left = mask_of("g: [time]", "decay(g)", 6, g=g)
    right = mask_of("g: [time]", "band(-1, 1) * g[i]", 6, g=g)
    both = mask_of("g: [time]", "transpose(decay(g) @ (band(-1, 1) * g[i]))", 6, g=g)
    torch.testing.assert_close(both, (left @ right).T)


def test_rope_leaves_the_pairs_beyond_its_modes() -> None:
    op = spec("op f(x: [time, key], angle: [time, mode]):\n    return rope(x, angle)\n")
    x, angle = torch.randn(1, 3, 7, dtype=F64), torch.randn(1, 3, 2, dtype=F64)
    pairs = torch.complex(x[..., 0:4:2], x[..., 1:4:2]) * torch.exp(1j * angle)
    expected = torch.cat((torch.view_as_real(pairs).flatten(-2), x[..., 4:]), -1)
    torch.testing.assert_close(evaluate(op, {"x": x, "angle": angle}), expected)


def test_softmax_survives_masks_that_underflow() -> None:
    far = spec(
        "op f(q, k, v, s: real):\n    L = band(3, 5) * exp(-s * (i - j)) * s ** (i - j)\n"
        "    return attend(L, q, k, v, normalize=softmax)\n"
    )
    sizes = default_sizes(far, batch=1, time=9, key=3, value=2)
    arguments = samples(far, sizes, F64) | {"s": 900.0}
    y, lse = evaluate_with_lse(far, arguments)
    # the nearest column has e^900 times the weight of the next: each row reads it alone
    v, q, k = (arguments[name] for name in ("v", "q", "k"))
    assert isinstance(v, Tensor)
    assert isinstance(q, Tensor)
    assert isinstance(k, Tensor)
    torch.testing.assert_close(y[:, 3:], v[:, :-3])
    scores = (q[:, 3:] * k[:, :-3]).sum(-1)
    torch.testing.assert_close(lse[:, 3:], scores - 2700 + 3 * math.log(900))
    assert float(y[:, :3].abs().max()) == 0
    assert bool((lse[:, :3] == -INF).all())


def test_softmax_of_a_sum_of_masks_that_underflow() -> None:
    op = spec(
        "op f(v, g: [time], h: [time]):\n"
        "    L = causal * (exp(g[i]) * exp(h[j]) + 3 * exp(h[i] + g[j]))\n"
        "    return attend(L, 1, 1, v, normalize=softmax)\n"
    )
    g, h, v = torch.randn(1, 5, dtype=F64), torch.randn(1, 5, dtype=F64), torch.randn(1, 5, 1, 2, dtype=F64)
    y = evaluate(op, {"v": v, "g": g, "h": h})
    torch.testing.assert_close(evaluate(op, {"v": v, "g": g - 2000, "h": h}), y, rtol=1e-11, atol=1e-11)


def test_an_empty_row_is_zero_with_finite_gradients() -> None:
    for normalize in ("softmax", "sum", "max1"):
        op = spec(f"op f(q, k, v):\n    return attend(strict, q, k, v, normalize={normalize})\n")
        arguments = samples(op, default_sizes(op, batch=1, time=4, key=2, value=2), F64)
        assert float(evaluate(op, arguments)[:, 0].abs().max()) == 0
        assert all(bool(grad.isfinite().all()) for grad in gradients(op, arguments).values())


def test_max1_divides_by_at_least_one() -> None:
    op = spec("op f(q: [time], k: [time], v: [time]):\n    return attend(causal, q, k, v, normalize=max1)\n")
    q, k = torch.ones(1, 3, dtype=F64), torch.tensor([[0.25, 0.25, -2.5]], dtype=F64)
    got = evaluate(op, {"q": q, "k": k, "v": torch.ones(1, 3, dtype=F64)})
    assert got.tolist() == [[0.25, 0.5, -1.0]]


def test_a_mask_selects_activated_scores() -> None:
    op = spec("op f(q: [time], k: [time], v: [time]):\n    return attend(causal, q, k, v, activation=exp)\n")
    arguments: dict[str, Argument] = {
        "q": torch.tensor([[1.0, 0.0]], dtype=F64),
        "k": torch.tensor([[0.5, 1e4]], dtype=F64),  # e^10000 at the pair (0, 1), which the mask leaves out
        "v": torch.ones(1, 2, dtype=F64),
    }
    assert evaluate(op, arguments)[0].tolist() == pytest.approx([math.exp(0.5), 2])
    assert all(bool(grad.isfinite().all()) for grad in gradients(op, arguments).values())


def test_a_sum_over_channels_of_a_mask_is_the_contraction() -> None:
    head = "op f(c: [time, key], b: [time, key], g: [time, key], v: [time, value]):\n"
    first = spec(head + "    return sum(c[i] * decay(g) * b[j], key) @ v\n")
    second = spec(head + "    return attend(decay(g), c, b, v)\n")
    arguments = samples(second, default_sizes(second, time=8, key=3, value=2), F64)
    torch.testing.assert_close(evaluate(first, arguments), evaluate(second, arguments))


def test_a_gate_per_value_channel() -> None:
    op = spec("op f(q, k, v, g: [time, head, value]):\n    return attend(decay(g), q, k, v)\n")
    arguments = samples(op, default_sizes(op, time=7, key=3, value=2), F64)
    one = spec("op f(q, k, v, g: [time, head]):\n    return attend(decay(g), q, k, v)\n")
    y = evaluate(op, arguments)
    for channel in range(2):
        v, g = arguments["v"], arguments["g"]
        assert isinstance(v, Tensor)
        assert isinstance(g, Tensor)
        alone = evaluate(one, arguments | {"v": v[..., channel : channel + 1], "g": g[..., channel]})
        torch.testing.assert_close(y[..., channel], alone[..., 0])


def test_a_reset_is_not_a_return() -> None:
    doc = torch.tensor([[1, 1, 2, 1]])
    runs = mask_of("doc: int[time]", "causal * documents(doc)", 4, doc=doc)
    same = mask_of("doc: int[time]", "causal * (doc[i] == doc[j])", 4, doc=doc)
    assert runs.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert same.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 1]]


def test_a_chain_of_thousands_of_terms() -> None:
    op = spec("op f(x: [time]):\n    return " + " + ".join(["x"] * 4000) + "\n")
    assert evaluate(op, {"x": torch.ones(1, 2)}).tolist() == [[4000, 4000]]


EVERY = ("forgetting", "document", "mamba3", "hydra", "kda", "log_linear", "rwkv4", "h3")


@pytest.mark.parametrize("name", EVERY)
def test_a_pack_gives_what_each_sequence_gives(name: str) -> None:
    op = library(name)
    arguments = samples(op, default_sizes(op, batch=1, time=14, key=4, value=3, lag=4), F64)
    offsets = torch.tensor([0, 5, 5, 6, 14])
    packed = evaluate(op, arguments, cu_seqlens=offsets)
    for start, stop in ((0, 5), (5, 6), (6, 14)):
        alone = {
            decl.name: x.narrow(decl.dims.index("time"), start, stop - start)
            if isinstance(x := arguments[decl.name], Tensor) and "time" in decl.dims
            else x
            for decl in op.params
        }
        assert torch.equal(packed[:, start:stop], evaluate(op, alone))
    rows = torch.tensor([13, 0, 5])
    torch.testing.assert_close(evaluate(op, arguments, cu_seqlens=offsets, rows=rows), packed[:, rows])


@pytest.mark.parametrize("name", EVERY)
def test_rows_and_blocks_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op = library(name)
    arguments = samples(op, default_sizes(op, batch=2, time=11, key=4, value=3), F64)
    whole, slopes = evaluate(op, arguments), gradients(op, arguments)
    rows = torch.tensor([0, 7, 3])
    torch.testing.assert_close(evaluate(op, arguments, rows=rows), whole[:, rows])
    monkeypatch.setattr(contractions, "BLOCK_ELEMENTS", 4 * 11 * 4 * 4)
    torch.testing.assert_close(evaluate(op, arguments), whole)
    for found, expected in zip(gradients(op, arguments).values(), slopes.values(), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", [*EVERY, "mamba2", "linear_attention_normalized", "s4d", "rwkv7", "retention"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    op = library(name)
    arguments = samples(op, default_sizes(op, batch=1, time=4, head=1, key=2, value=2, mode=1, lag=3), F64)
    names = [key for key, x in arguments.items() if isinstance(x, Tensor) and x.is_floating_point()]

    def run(*tensors: Tensor) -> Tensor:
        return evaluate(op, arguments | dict(zip(names, tensors, strict=True)))

    leaves = [x.requires_grad_() for x in (arguments[key] for key in names) if isinstance(x, Tensor)]
    assert torch.autograd.gradcheck(run, leaves, atol=1e-6)


@pytest.mark.parametrize("length", [0, 1])
def test_the_shortest_sequences(length: int) -> None:
    for path in sorted(LIBRARY.glob("*.sma")):
        op = spec(path.read_text(encoding="utf-8"))
        sizes = default_sizes(op, time=length, lag=3, level=2, key=4, value=3)
        y = evaluate(op, samples(op, sizes, F64))
        assert y.shape[1] == length
        assert bool(y.isfinite().all())
