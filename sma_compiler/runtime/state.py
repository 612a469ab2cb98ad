"""`State`: what a causal op carries from one call to the next, as a pytree of tensors."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class State(Mapping[str, Tensor]):
    """The state of an op after some positions: a mapping from names to tensors, batch first in each.

    The names and shapes depend on the spec and the sizes of the call, never on the plan, and are listed by
    `op.explain()`; every op has `position`, int64 [B], the number of positions seen. A state is immutable but for
    `op.step(..., inplace=True)`, which writes into its tensors. It is a pytree (`torch.utils._pytree`), so it passes
    through `torch.compile`, `torch.export`, `torch.func` and checkpointing like any tensor.

    Args:
        spec_hash: `op.spec_hash` of the op that takes it.
        tensors: the tensors by name, in the op's order.
    """

    def __init__(self, spec_hash: str, tensors: Mapping[str, Tensor]) -> None:
        self.spec_hash = spec_hash
        self._tensors = dict(tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def keys(self) -> KeysView[str]:
        return self._tensors.keys()

    def values(self) -> ValuesView[Tensor]:
        return self._tensors.values()

    def items(self) -> ItemsView[str, Tensor]:
        return self._tensors.items()

    def __eq__(self, other: object) -> bool:
        """Whether the same tensor objects sit under the same names; compare values tensor by tensor."""
        if not isinstance(other, State):
            return NotImplemented
        same = self.spec_hash == other.spec_hash and list(self) == list(other)
        return same and all(self[name] is other[name] for name in self)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name (a new dict; the tensors themselves)."""
        return dict(self._tensors)

    @property
    def batch(self) -> int:
        """The number of rows (of sequences, where the state came from a pack)."""
        return next(iter(self._tensors.values())).shape[0]

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors together."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors.values())

    def map(self, function: Callable[[Tensor], Tensor]) -> State:
        """The state with a function applied to each tensor."""
        return State(self.spec_hash, {name: function(tensor) for name, tensor in self._tensors.items()})

    def to(self, target: torch.device | torch.dtype | str) -> State:
        """The state on another device, or with its floating-point tensors in another dtype."""
        if isinstance(target, torch.dtype):
            return self.map(lambda tensor: tensor.to(target) if tensor.is_floating_point() else tensor)
        return self.map(lambda tensor: tensor.to(target))

    def detach(self) -> State:
        """The same values, cut from the autograd graph."""
        return self.map(Tensor.detach)

    def clone(self) -> State:
        """A copy that shares no memory with this one."""
        return self.map(Tensor.clone)

    def rows(self, index: int | slice | Tensor | list[int]) -> State:
        """Some rows: an integer keeps one (batch 1), a slice, list or tensor of integers those it picks."""
        chosen = slice(index, index + 1 or None) if isinstance(index, int) else index
        return self.map(lambda tensor: tensor[chosen])

    def __repr__(self) -> str:
        lines = [
            f"  {name}: {str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for name, t in self._tensors.items()
        ]
        return "\n".join([f"State of op {self.spec_hash[:12]}", *lines])


Context = list[Any]  # [spec hash, names]: JSON, so that torch.export can save it


def _flatten(state: State) -> tuple[list[Tensor], Context]:
    return list(state.values()), [state.spec_hash, list(state)]


def _flatten_with_keys(state: State) -> tuple[list[tuple[pytree.KeyEntry, Tensor]], Context]:
    values, context = _flatten(state)
    return [(pytree.MappingKey(name), value) for name, value in zip(state, values, strict=True)], context


def _unflatten(values: Iterable[Any], context: Context) -> State:
    spec_hash, names = context
    return State(spec_hash, dict(zip(names, values, strict=True)))


pytree.register_pytree_node(
    State,
    _flatten,
    _unflatten,
    serialized_type_name="sma_compiler.State",
    to_dumpable_context=lambda context: context,
    from_dumpable_context=lambda context: context,
    flatten_with_keys_fn=_flatten_with_keys,
)
torch.serialization.add_safe_globals([State])  # torch.load(weights_only=True) takes states
