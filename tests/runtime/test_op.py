"""The op object: calls, states, steps, packs, options, and what each refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sma_compiler as sma
from sma_compiler import backend_errors
from sma_compiler import call_errors as errors
from sma_compiler.verify.samples import samples

Given = dict[str, Any]


def attention_inputs(batch: int = 2, time: int = 9) -> Given:
    return {
        "q": torch.randn(batch, time, 4, 8),
        "k": torch.randn(batch, time, 2, 8),
        "v": torch.randn(batch, time, 2, 6),
    }


def at(given: Given, t: int) -> Given:
    """Position t of tensors that all have time."""
    return {name: x[:, t] for name, x in given.items()}


def part(given: Given, start: int, stop: int) -> Given:
    return {name: x[:, start:stop] for name, x in given.items()}


ATTENTION = sma.library("attention")
RETENTION = sma.library("retention")
GLA = sma.library("gla")


def test_describes_itself() -> None:
    op = sma.library("mamba2")
    assert op.name == "mamba2"
    assert "Mamba-2" in op.doc
    assert [decl.name for decl in op.params] == ["q", "k", "v", "dt", "a", "bias", "d"]
    assert op.params[3].dims == ("batch", "time", "head")
    assert op.causal
    assert [plan.name for plan in op.plans] == ["quadratic", "recurrent", "chunked"]
    assert set(op.refused) == {"toeplitz", "hierarchical", "global"}
    assert repr(op) == "<sma op mamba2(q, k, v, dt, a, bias, d), plans quadratic, recurrent, chunked>"
    assert len(op.facts.masks) == 1


def test_explains_itself() -> None:
    text = str(GLA.explain({"B": 1, "T": 4096, "H": 8, "K": 64, "V": 64}))
    for expected in ("op gla(q, k, v, g: [time, head, key])", "lower_rank", "Refused", "At batch 1, time 4096"):
        assert expected in text
    assert "position: int64 [batch]" in text
    assert ": float32 [batch, head, key, value]" in text
    assert "later positions matter" in str(sma.library("prefix_lm").explain())
    with pytest.raises(errors.UnknownSize, match=r"no size 'Z'"):
        GLA.explain({"Z": 3})
    with pytest.raises(errors.WrongSize, match=r"'T' must be an integer of at least 1, not 0"):
        GLA.explain({"T": 0})


def test_positional_and_named_arguments_agree() -> None:
    given = attention_inputs()
    assert torch.equal(ATTENTION(*given.values()), ATTENTION(**given))
    torch.testing.assert_close(ATTENTION(**given), ATTENTION.reference(**given).float(), rtol=1e-5, atol=1e-6)


def test_the_result_has_the_dtype_of_the_first_tensor() -> None:
    given = attention_inputs() | {"q": torch.randn(2, 9, 4, 8).bfloat16()}
    assert ATTENTION(**given).dtype == torch.bfloat16


def test_strides_do_not_matter() -> None:
    given = attention_inputs()
    strided = {name: x.transpose(1, 2).contiguous().transpose(1, 2) for name, x in given.items()}
    assert not strided["q"].is_contiguous()
    torch.testing.assert_close(ATTENTION(**strided), ATTENTION(**given))


def test_returns_what_is_asked_for_in_order() -> None:
    given = attention_inputs()
    y = ATTENTION(**given)
    found = ATTENTION(**given, return_state=True, return_lse=True)
    assert [type(x) for x in found] == [Tensor, sma.State, Tensor]
    assert torch.equal(found[0], y)
    assert ATTENTION(**given, return_state=True)[1]["position"].tolist() == [9, 9]
    y_again, lse = ATTENTION(**given, return_lse=True)
    assert torch.equal(y_again, y)
    assert lse.shape == (2, 9, 4)
    expected = ATTENTION.reference(**given, return_lse=True)[1]
    torch.testing.assert_close(lse, expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cut", [0, 1, 4, 9])
@pytest.mark.parametrize("op", [ATTENTION, sma.library("linear_attention")], ids=lambda op: op.name)
def test_a_cut_sequence_joined_by_a_state_is_whole(op: sma.CompiledOp, cut: int) -> None:
    given = attention_inputs()
    whole, end = op(**given, return_state=True)
    first, state = op(**part(given, 0, cut), return_state=True)
    second, joined = op(**part(given, cut, 9), initial_state=state, return_state=True)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    assert list(joined) == list(end)
    for name in end:
        torch.testing.assert_close(joined[name], end[name])


def test_steps_are_the_call() -> None:
    given = attention_inputs()
    y, end = ATTENTION(**given, return_state=True)
    state = None
    for t in range(9):
        y_t, state = ATTENTION.step(**at(given, t), state=state)
        torch.testing.assert_close(y_t, y[:, t])
    assert state is not None
    torch.testing.assert_close(dict(state), dict(end))


@pytest.mark.parametrize("length", [0, 1, 5])
@pytest.mark.parametrize("name", ["attention", "retention", "mamba3", "h3", "rwkv4", "delta_net"])
def test_states_own_their_memory(name: str, length: int) -> None:
    op = sma.library(name)
    given = dict(samples(op.ir, {"batch": 1, "time": 6, "head": 2, "key": 4, "value": 4, "mode": 2, "lag": 3}))
    over_time = {decl.name: decl.dims.index("time") for decl in op.params if "time" in decl.dims}
    given = {n: x.narrow(over_time[n], 0, length) if n in over_time else x for n, x in given.items()}
    _, before = op(**given, return_state=True)
    _, after = op(**given, initial_state=before, return_state=True)
    used = {x.untyped_storage().data_ptr() for x in (*given.values(), *before.values()) if x.numel()}
    for tensor in after.values():
        assert tensor.is_contiguous()
        if tensor.numel():
            assert tensor.untyped_storage().data_ptr() not in used
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_gradients_flow_through_states() -> None:
    given = {name: x.requires_grad_() for name, x in attention_inputs().items()}
    expected = torch.autograd.grad(ATTENTION(**given).square().sum(), list(given.values()))
    first, state = ATTENTION(**part(given, 0, 5), return_state=True)
    second = ATTENTION(**part(given, 5, 9), initial_state=state)
    found = torch.autograd.grad(first.square().sum() + second.square().sum(), list(given.values()))
    torch.testing.assert_close(found, expected)


def test_steps_in_place_keep_addresses() -> None:
    given = {name: x.requires_grad_() for name, x in attention_inputs().items()}
    y = ATTENTION(**given)
    state = ATTENTION.empty_state(2, capacity=9, H=4, K=8, V=6)
    addresses = {name: tensor.data_ptr() for name, tensor in state.items()}
    for t in range(9):
        y_t, same = ATTENTION.step(**at(given, t), state=state, inplace=True)
        assert same is state
        assert not y_t.requires_grad
        torch.testing.assert_close(y_t, y[:, t])
    assert {name: tensor.data_ptr() for name, tensor in state.items()} == addresses


def test_a_full_cache_refuses_and_stays_as_it_was() -> None:
    given = attention_inputs()
    state = ATTENTION.empty_state(2, capacity=3, head=4, key=8, value=6)
    for t in range(3):
        ATTENTION.step(**at(given, t), state=state, inplace=True)
    before = state.clone()
    with pytest.raises(errors.CapacityExceeded, match=r"'attend0.cache' holds 3 positions and is full"):
        ATTENTION.step(**at(given, 3), state=state, inplace=True)
    for name in state:
        assert torch.equal(state[name], before[name])


@pytest.mark.parametrize("sizes", [{"w": 4}, {"capacity": 3}, {"capacity": 20}, {"capacity": 2, "w": 4}], ids=str)
def test_a_window_drops_what_has_left_it(sizes: dict[str, int]) -> None:
    op = sma.library("sliding_window")
    given = attention_inputs()
    y = op(**given, w=4)
    state = op.empty_state(2, head=4, key=8, value=6, **sizes)
    for t in range(9):
        y_t, state = op.step(**at(given, t), w=4, state=state, inplace=True)
        torch.testing.assert_close(y_t, y[:, t])


def test_too_small_a_window_is_refused() -> None:
    op = sma.library("sliding_window")
    given = attention_inputs()
    state = op.empty_state(2, capacity=2, head=4, key=8, value=6)
    op.step(**at(given, 0), w=4, state=state, inplace=True)
    op.step(**at(given, 1), w=4, state=state, inplace=True)
    with pytest.raises(errors.CapacityExceeded):
        op.step(**at(given, 2), w=4, state=state, inplace=True)


def test_empty_states_are_what_a_call_starts_with() -> None:
    for name in ("gla", "attention", "gated_delta_net", "mamba3", "rwkv4", "s4d"):
        op = sma.library(name)
        sizes = {"head": 2, "key": 8, "value": 6, "mode": 4}
        empty = op.empty_state(3, **sizes)
        assert empty.batch == 3
        assert not empty["position"].any()
        wide = op.empty_state(3, dtype=torch.float64, **sizes)
        assert list(wide) == list(empty)
        assert all(x.dtype == torch.float64 for x in wide.values() if x.is_floating_point())


def test_empty_states_need_the_sizes_of_the_op() -> None:
    with pytest.raises(errors.MissingSize, match=r"the size 'value' is missing: 'v' has the dimensions \[batch, time"):
        GLA.empty_state(2, head=2, key=8)
    with pytest.raises(errors.UnknownSize, match=r"no size 'heads'; did you mean 'head'\?"):
        GLA.empty_state(2, heads=2, key=8, value=8)
    with pytest.raises(errors.WrongSize, match=r"'batch' must be an integer of at least 1, not 0"):
        GLA.empty_state(0, head=2, key=8, value=8)
    with pytest.raises(errors.NoStates, match=r"empty_state needs a causal op"):
        sma.library("prefix_lm").empty_state(2, head=2, key=8, value=8)


PACK = torch.tensor([0, 3, 3, 10, 11, 20])


def test_a_pack_gives_what_each_sequence_gives_alone() -> None:
    given = attention_inputs(1, 20)
    y, state, lse = ATTENTION(**given, cu_seqlens=PACK, return_state=True, return_lse=True)
    assert state.batch == 5
    assert state["position"].tolist() == [3, 0, 7, 1, 9]
    for start, stop in ((0, 3), (3, 10), (10, 11), (11, 20)):
        alone, alone_lse = ATTENTION(**part(given, start, stop), return_lse=True)
        torch.testing.assert_close(y[:, start:stop], alone)
        torch.testing.assert_close(lse[:, start:stop], alone_lse)
    expected = ATTENTION.reference(**given, cu_seqlens=PACK)
    torch.testing.assert_close(y, expected.float(), rtol=1e-5, atol=1e-6)


def test_packs_carry_states_row_by_row() -> None:
    given, more = attention_inputs(1, 20), attention_inputs(1, 8)
    bounds = torch.tensor([0, 2, 4, 4, 8, 8], dtype=torch.int32)
    _, state = ATTENTION(**given, cu_seqlens=PACK, return_state=True)
    y, after = ATTENTION(**more, cu_seqlens=bounds, initial_state=state, return_state=True)
    assert after["position"].tolist() == [5, 2, 7, 5, 9]
    joined = {name: torch.cat([x[:, 10:11], more[name][:, 4:8]], 1) for name, x in given.items()}
    torch.testing.assert_close(y[:, 4:8], ATTENTION(**joined)[:, 1:])


def test_gradients_of_packs() -> None:
    given = {name: x.double().requires_grad_() for name, x in attention_inputs(1, 20).items()}
    found = torch.autograd.grad(ATTENTION(**given, cu_seqlens=PACK).square().sum(), list(given.values()))
    expected = torch.autograd.grad(ATTENTION.reference(**given, cu_seqlens=PACK).square().sum(), list(given.values()))
    torch.testing.assert_close(found, expected)


def test_a_call_without_positions() -> None:
    given = {name: x.requires_grad_() for name, x in part(attention_inputs(), 0, 0).items()}
    y, state, lse = ATTENTION(**given, return_state=True, return_lse=True)
    assert y.shape == (2, 0, 4, 6)
    assert lse.shape == (2, 0, 4)
    assert state["position"].tolist() == [0, 0]
    y.sum().backward()
    gamma = torch.rand(4, requires_grad=True)
    y, state = RETENTION(**given, gamma=gamma, return_state=True)
    y.sum().backward()
    assert gamma.grad is not None
    assert not gamma.grad.any()
    empty = part(attention_inputs(1), 0, 0)
    _, state = ATTENTION(**empty, cu_seqlens=torch.tensor([0, 0, 0]), return_state=True)
    assert state.batch == 2


def test_refuses_states_that_do_not_fit() -> None:
    given = attention_inputs()
    gamma = torch.rand(4)
    _, state = ATTENTION(**given, return_state=True)
    with pytest.raises(errors.NotAState, match=r"not dict"):
        ATTENTION(**given, initial_state=dict(state))
    with pytest.raises(errors.ForeignState, match=r"retention: this state belongs to another op"):
        RETENTION(**given, gamma=gamma, initial_state=state)
    with pytest.raises(errors.StateMismatch, match=r"the shape of state tensor 'position' is \[1\], but .* \[2\]"):
        ATTENTION(**given, initial_state=state.rows(0))
    _, state = RETENTION(**given, gamma=gamma, return_state=True)
    (matrix,) = (name for name in state if name != "position")
    with pytest.raises(errors.StateMismatch, match=rf"shape of state tensor '{matrix}' is \[2, 4, 8, 5\]"):
        RETENTION(**given, gamma=gamma, initial_state=state.map(lambda x: x[..., :5] if x.dim() > 1 else x))
    with pytest.raises(errors.StateMismatch, match=rf"dtype of state tensor '{matrix}' is torch.float64"):
        RETENTION(**given, gamma=gamma, initial_state=state.to(torch.float64))
    with pytest.raises(errors.StateMismatch, match=r"device of state tensor 'position' is meta"):
        RETENTION(**given, gamma=gamma, initial_state=state.to("meta"))
    with pytest.raises(errors.StateMismatch, match=r"list of names"):
        RETENTION(**given, gamma=gamma, initial_state=sma.State(RETENTION.spec_hash, {"position": state["position"]}))
    packed = attention_inputs(1, 20)
    with pytest.raises(errors.StateMismatch, match=r"'position' is \[2\], but this call needs \[5\]"):
        RETENTION(**packed, gamma=gamma, cu_seqlens=PACK, initial_state=state)


def test_refuses_states_of_ops_that_look_ahead() -> None:
    op = sma.library("prefix_lm")
    given = attention_inputs()
    for options in ({"return_state": True}, {"initial_state": sma.State("", {})}):
        with pytest.raises(errors.NoStates, match=r"needs a causal op, and this one has no states"):
            op(**given, n=3, **options)
    with pytest.raises(errors.NoStates, match=r"step needs a causal op"):
        op.step(**at(given, 0), n=3)


def test_refuses_options() -> None:
    given = attention_inputs()
    with pytest.raises(errors.UnknownPlan, match=r"no plan 'quadartic'; did you mean 'quadratic'\?"):
        ATTENTION(**given, plan="quadartic")
    with pytest.raises(errors.RefusedPlan, match=r"plan 'chunked' is not legal here: softmax makes"):
        ATTENTION(**given, plan="chunked")
    with pytest.raises(backend_errors.TritonNeedsGPU, match=r"needs tensors on a GPU, but they are on cpu"):
        ATTENTION(**given, backend="triton")
    with pytest.raises(errors.UnknownBackend, match=r"no backend 'cuda'; backends: 'torch', 'triton' and 'auto'"):
        ATTENTION(**given, backend="cuda")
    with pytest.raises(errors.UnknownPrecision, match=r"no precision 'fp8'; precisions: 'ieee', 'tf32'"):
        ATTENTION(**given, precision="fp8")
    with pytest.raises(errors.NoLogSumExp, match=r"needs exactly one .*softmax.*this op has none"):
        RETENTION(**given, gamma=torch.rand(4), return_lse=True)
    with pytest.raises(errors.InPlaceNeedsState, match=r"pass state=op.empty_state"):
        ATTENTION.step(**at(given, 0), inplace=True)
    with pytest.raises(errors.UnknownArgument, match=r"no parameter 'plan'"):
        ATTENTION.step(**at(given, 0), plan="auto")


def test_refuses_bad_input_before_any_work() -> None:
    given = attention_inputs()
    gate = torch.full((2, 9, 4, 8), float("nan"))
    with pytest.raises(errors.NaNInGate, match=r"gla.sma:\d+:\d+: gla: 'g' feeds a mask and holds NaN"):
        GLA(**given, g=gate)
    with pytest.raises(errors.NaNInGate):
        GLA.reference(**given, g=gate)
    one_row = {name: x[:1] for name, x in given.items()}
    with pytest.raises(errors.BadSequenceBounds, match=r"must end at 9"):
        GLA(**one_row, g=torch.zeros(1, 9, 4, 8), cu_seqlens=PACK)
    with pytest.raises(sma.CallError, match=r"argument 'g' is missing"):
        GLA(**given)


@pytest.mark.parametrize("plan", ["quadratic", "recurrent", "chunked"])
def test_a_plan_is_taken_wherever_it_is_legal(plan: str) -> None:
    op = sma.compile(
        "op mixed(q, k, v, g: [time, head]):\n"
        "    u = attend(causal, q, k, v, normalize=softmax)\n"
        "    return attend(decay(g), q, k, u)\n"
    )
    given = attention_inputs() | {"g": -torch.rand(2, 9, 4)}
    y = op(**given, plan=plan)
    torch.testing.assert_close(y, op.reference(**given).float(), rtol=1e-4, atol=1e-5)
    assert op.refused.keys() == {"toeplitz", "hierarchical", "global"}


def test_equal_specs_share_their_hash() -> None:
    one = sma.compile("# a\nop f(q, k, v, g: [time, head]):\n    return attend(decay(g), q, k, v)\n")
    other = sma.compile(
        "op h(q, k, v, g: [time, head]):\n    L = causal * exp(sum(g[t], j < t <= i))\n    return attend(L, q, k, v)\n"
    )
    different = sma.compile(
        "op h(q, k, v, g: [time, head]):\n    L = strict * exp(sum(g[t], j < t <= i))\n    return attend(L, q, k, v)\n"
    )
    assert one.spec_hash == other.spec_hash
    assert len(one.spec_hash) == 64
    assert different.spec_hash != one.spec_hash
