"""The recurrence itself, position by position: S_t = decay_t * S_{t-1} + column_t x value_t, y_t = row_t . S_t.

It is computed in the dtype of the state; nothing is rounded to the operands' dtype. It runs over all positions of a
call (plan `recurrent`), or over those of every chunk at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import overload

import torch

from sma_compiler.torch_plans.gates import LogGate, decay
from sma_compiler.torch_plans.intra import own_weight
from sma_compiler.torch_plans.lanes import Lane
from sma_compiler.torch_plans.layout import (
    add,
    add_product,
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

    origin: the position at which each turn is counted, along `pos`. dtype: of the state. wide: a decay is a rounded
    number and the small rest, so that its error does not grow with the number of positions.
    """

    def __init__(self, lane: Lane, length: int, origin: Named, dtype: torch.dtype, wide: bool) -> None:
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
        held = [gate for gate in lane.gates if gate.key_closed]
        starts += some(decay(held, None, dtype))
        self._rows = steps(product(*rows), length)
        self._through = Decays(lane.gates, lane.resets, length, dtype, wide)
        self._until = Decays([gate for gate in lane.gates if gate.query_closed], lane.resets, length, dtype, wide)
        self._keys = [steps(product(*column.keys, *starts), length) for column in lane.columns]
        self._values = [steps(column.value, length) for column in lane.columns]

    def run(self, initial: Named, valid: Named | None) -> tuple[Named, Named]:
        """The result at each position, and the state behind the last.

        valid: which positions exist; at those that do not, the state stays as it is.
        """
        exists = steps(valid, self.length)
        plain = all(gate.query_closed and not gate.key_closed for gate in self.lane.gates)
        late = plain and all(column.first == 0 for column in self.lane.columns)
        state, results = initial, []
        for step in range(self.length):
            before = self.moved(state)
            after = self.after(step, before, [values[step] for values in self._values], state, exists[step])
            results.append(self.dot(step, after) if late else self.read(step, before))
            state = after
        found = stacked(results, "pos")
        own = None if late else own_terms(self.lane)
        return found if own is None else add(found, own), state

    def behind(self, initial: Named, valid: Named | None) -> Named:
        """The state behind the last position alone."""
        exists = steps(valid, self.length)
        state = initial
        for step in range(self.length):
            values = [values[step] for values in self._values]
            state = self.after(step, self.moved(state), values, state, exists[step])
        return state

    def moved(self, state: Named) -> Named:
        """The state behind a position, its distances counted from the next."""
        if self._pascal is None:
            return state
        return contract(self._pascal, rename(state, {"power": "power_from"}), "power_from")

    def read(self, step: int, before: Named) -> Named:
        """What a row sees of the (moved) state before it."""
        until, _ = self._until.at(step)
        return self.dot(step, before if until is None else multiply(until, before))

    def dot(self, step: int, state: Named) -> Named:
        """A row times a state at its own position."""
        row = self._rows[step]
        if row is None:
            return summed(state, self._inner)
        shared = math.prod(state.size(axis) for axis in state.axes if axis not in row.axes)
        if shared < _NARROW:
            return summed(multiply(row, state), self._inner)
        return contract(row, state, *self._inner)

    def after(self, step: int, before: Named, values: Sequence[Named], state: Named, exists: Named | None) -> Named:
        """The state behind a position, from the (moved) one before it and the values of its columns."""
        fed = add(*(multiply(value, *some(keys[step])) for keys, value in zip(self._keys, values, strict=True)))
        through, rest = self._through.at(step)
        after = add(before, fed)
        if through is not None:
            after = add_product(fed if rest is None else add_product(fed, rest, before), through, before)
        return after if exists is None else apply(torch.where, exists, after, state)


class Decays:
    """What a state keeps at each position, in a dtype; if `wide`, also what rounding to it drops.

    Wide ones are computed for all positions at once; others when they are asked for, so that what belongs to one
    position stays in a fast cache.
    """

    def __init__(
        self, gates: Sequence[LogGate], resets: Named | None, length: int, dtype: torch.dtype, wide: bool
    ) -> None:
        self._dtype = dtype
        self._known: list[tuple[Named | None, Named | None]] = []
        if wide:
            exact = decay([_wide(gate) for gate in gates], resets, torch.float64)
            rounded = None if exact is None else exact.to(dtype)
            self._known = list(zip(steps(rounded, length), steps(_rest(exact, dtype), length), strict=True))
        else:
            self._gates = gates
            self._logs = [steps(gate.log, length) for gate in gates]
            self._resets = steps(resets, length)

    def at(self, step: int) -> tuple[Named | None, Named | None]:
        """Decay and rest at a position; None: everything is kept, and exactly."""
        if self._known:
            return self._known[step]
        gates = [replace(gate, log=logs[step]) for gate, logs in zip(self._gates, self._logs, strict=True)]
        return decay(gates, self._resets[step], self._dtype), None


def _wide(gate: LogGate) -> LogGate:
    return replace(gate, log=gate.log.to(torch.float64))


def _rest(exact: Named | None, dtype: torch.dtype) -> Named | None:
    if exact is None or dtype == torch.float64:
        return None
    data = exact.data.detach()
    return Named((data - data.to(dtype).to(torch.float64)).to(dtype), exact.axes)


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
