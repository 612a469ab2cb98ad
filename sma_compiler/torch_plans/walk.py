"""The recurrence itself, position by position: S_t = decay_t * S_{t-1} + column_t x value_t, y_t = row_t . S_t.

It is computed in the dtype of the state; nothing is rounded to the operands' dtype. It runs over all positions of a
call (plan `recurrent`), or over those of every chunk at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch

from sma_compiler.torch_plans.gates import decay
from sma_compiler.torch_plans.intra import own_weight
from sma_compiler.torch_plans.lanes import Lane
from sma_compiler.torch_plans.layout import (
    add,
    apply,
    contract,
    multiply,
    order,
    product,
    rename,
    some,
    summed,
    without,
)
from sma_compiler.torch_plans.named import Named

_NARROW = 8


class Walk:
    """The factors of a lane (with `pos` in place of `time`) at each of `length` positions, and the recurrence.

    origin: the position at which each turn is counted, along `pos`. dtype: of the state.
    """

    def __init__(self, lane: Lane, length: int, origin: Named, dtype: torch.dtype) -> None:
        basis, device = lane.basis, origin.data.device
        rows = list(lane.rows)
        starts: list[Named] = []
        for turned, factors in ((basis.origin_rows(origin), rows), (basis.origin_columns(origin), starts)):
            if turned is not None:
                factors.append(turned)
        if basis.degree:
            unit = torch.eye(basis.degree + 1, dtype=dtype, device=device)
            rows.append(Named(unit[-1], ("power",)))
            starts.append(Named(unit[0], ("power",)))
        self.lane = lane
        self.length = length
        self._inner = (*lane.inner, *basis.axes)
        self._pascal = basis.pascal(device)
        since = decay([gate for gate in lane.gates if gate.key_closed], None, dtype)
        starts += [since] if since is not None else []
        until = decay([gate for gate in lane.gates if gate.query_closed], lane.resets, dtype)
        self._rows = steps(product(*rows), length)
        self._through = steps(decay(lane.gates, lane.resets, dtype), length)
        self._until = steps(until, length)
        self._keys = [steps(product(*column.keys, *starts), length) for column in lane.columns]

    def run(self, initial: Named, valid: Named | None) -> tuple[Named, Named]:
        """The result at each position, and the state behind the last.

        valid: which positions exist; at those that do not, the state stays as it is.
        """
        values = [steps(column.value, self.length) for column in self.lane.columns]
        exists = steps(valid, self.length)
        plain = all(gate.query_closed and not gate.key_closed for gate in self.lane.gates)
        late = plain and all(column.first == 0 for column in self.lane.columns)
        state, results = initial, []
        for step in range(self.length):
            before = self.moved(state)
            after = self.after(step, before, [value[step] for value in values], state, exists[step])
            results.append(self.dot(step, after) if late else self.read(step, before))
            state = after
        found = stacked(results, "pos")
        own = None if late else own_terms(self.lane)
        return found if own is None else add(found, own), state

    def moved(self, state: Named) -> Named:
        """The state behind a position, its distances counted from the next."""
        if self._pascal is None:
            return state
        return contract(self._pascal, rename(state, {"power": "power_from"}), "power_from")

    def read(self, step: int, before: Named) -> Named:
        """What a row sees of the (moved) state before it."""
        until = self._until[step]
        return self.dot(step, before if until is None else multiply(until, before))

    def dot(self, step: int, state: Named) -> Named:
        """A row times a state at its own position."""
        row = self._rows[step]
        if row is None:
            return summed(state, self._inner)
        if state.size("value") < _NARROW:
            return summed(multiply(row, state), self._inner)
        return contract(row, state, *self._inner)

    def after(self, step: int, before: Named, values: Sequence[Named], state: Named, exists: Named | None) -> Named:
        """The state behind a position, from the (moved) one before it and the values of its columns."""
        fed = add(*(multiply(value, *some(keys[step])) for keys, value in zip(self._keys, values, strict=True)))
        through = self._through[step]
        after = add(before if through is None else multiply(through, before), fed)
        return after if exists is None else apply(torch.where, exists, after, state)


def own_terms(lane: Lane) -> Named | None:
    """What each row sees at distance 0; None: nothing."""
    weighed = [(own_weight(lane, column), column.value) for column in lane.columns if column.first == 0]
    terms = [multiply(weight, value) for weight, value in weighed if weight is not None]
    return add(*terms) if terms else None


@overload
def steps(x: Named, length: int, axis: str = "pos") -> Sequence[Named]: ...


@overload
def steps(x: Named | None, length: int, axis: str = "pos") -> Sequence[Named | None]: ...


def steps(x: Named | None, length: int, axis: str = "pos") -> Sequence[Named | None]:
    """The entries of an axis; the same one for each where x lacks it."""
    if x is None or axis not in x.axes:
        return [x] * length
    axes = without(x.axes, axis)
    return [Named(step, axes) for step in x.data.unbind(x.axes.index(axis))]


def stacked(entries: Sequence[Named], axis: str) -> Named:
    """Entries of a new axis."""
    axes = order(name for entry in entries for name in entry.axes)
    return Named(torch.stack([entry.view(axes) for entry in entries], len(axes)), (*axes, axis))
