"""States are immutable pytrees of named tensors."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sma_compiler.runtime.state import State


@pytest.fixture
def state() -> State:
    return State("ab" * 32, {"position": torch.tensor([4, 4, 4]), "attend0.S0": torch.randn(3, 2, 5)})


def test_a_mapping_in_order(state: State) -> None:
    assert list(state) == list(state.keys()) == ["position", "attend0.S0"]
    assert len(state) == 2
    assert state.batch == 3
    assert state.nbytes == 3 * 8 + 30 * 4
    assert state.tensors is not state.tensors
    with pytest.raises(TypeError):
        state["position"] = torch.zeros(3)
    with pytest.raises(TypeError, match="unhashable"):
        hash(state)


def test_repr_lists_the_tensors(state: State) -> None:
    assert repr(state) == "State of op abababababab\n  position: int64 [3]\n  attend0.S0: float32 [3, 2, 5]"


def test_a_pytree(state: State) -> None:
    leaves, spec = pytree.tree_flatten(state)
    assert all(a is b for a, b in zip(leaves, state.values(), strict=True))
    assert pytree.tree_unflatten(leaves, spec) == state
    doubled = pytree.tree_map(lambda tensor: 2 * tensor, state)
    assert torch.equal(doubled["attend0.S0"], 2 * state["attend0.S0"])
    other = State("cd" * 32, state.tensors)
    assert pytree.tree_structure(other) != pytree.tree_structure(state)
    assert other != state


def test_to_converts_floating_tensors_only(state: State) -> None:
    wide = state.to(torch.float64)
    assert wide["attend0.S0"].dtype == torch.float64
    assert wide["position"].dtype == torch.int64
    assert state.to("cpu")["position"].device.type == "cpu"


def test_rows(state: State) -> None:
    assert torch.equal(state.rows(1)["attend0.S0"], state["attend0.S0"][1:2])
    assert torch.equal(state.rows(-1)["attend0.S0"], state["attend0.S0"][2:])
    assert torch.equal(state.rows([2, 0])["attend0.S0"], state["attend0.S0"][[2, 0]])
    assert state.rows(slice(0, 2)).batch == 2


def test_clone_and_detach(state: State) -> None:
    copy = state.clone()
    copy["position"].zero_()
    assert state["position"].tolist() == [4, 4, 4]
    tracked = state.map(lambda tensor: tensor.requires_grad_() if tensor.is_floating_point() else tensor)
    assert tracked["attend0.S0"].requires_grad
    assert not tracked.detach()["attend0.S0"].requires_grad


def test_saves_and_loads_with_weights_only(state: State) -> None:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert isinstance(loaded, State)
    assert loaded.spec_hash == state.spec_hash
    assert torch.equal(loaded["attend0.S0"], state["attend0.S0"])


def advance(x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    total = x if state is None else x + state["total"]
    return total, State("ef" * 32, {"total": total})


def test_passes_through_torch_transforms() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    compiled = torch.compile(advance, fullgraph=True, backend="aot_eager")
    _, state = compiled(x)
    y, _ = compiled(x, state)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.full((3, 2), 2.0))
    batched = torch.func.vmap(lambda row: advance(row)[1])(x.detach())
    assert torch.equal(batched["total"], x.detach())


def test_exports_saves_and_loads() -> None:
    class Step(torch.nn.Module):
        def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
            return advance(x, state)

    x = torch.ones(3, 2)
    program = torch.export.export(Step(), (x, advance(x)[1]))
    y, state = program.module()(x, advance(x)[1])
    assert torch.equal(y, 2 * x)
    assert isinstance(state, State)
