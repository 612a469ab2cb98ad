"""The recurrence itself, position by position: S_t = decay_t * S_{t-1} + column_t x value_t, y_t = row_t . S_t.

It is computed in the dtype of the state; nothing is rounded to the operands' dtype. It runs over all positions of a
call (plan `recurrent`), or over those of every chunk at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sma_compiler.torch_plans.gates import decay
from sma_compiler.torch_plans.intra import own_weight
from sma_compiler.torch_plans.lanes import Lane
from sma_compiler.torch_plans.layout import add, apply, contract, multiply, number, order, rename, summed, without
from sma_compiler.torch_plans.named import Named

_NARROW = 8


class Walk:
    """The factors of a lane (with `pos` in place of `time`) at each position, and the recurrence over them.

    origin: the position at which each turn is counted, along `pos`. dtype, device: of the state.
    """

    def __init__(self, lane: Lane, origin: Named, dtype: torch.dtype) -> None:
        basis = lane.basis
        self.inner = (*lane.inner, *basis.axes)
        self.pascal = basis.pascal(origin.data.device)
        rows: list[Named] = [*lane.rows, number(1, dtype, origin.data.device)]
        starts: list[Named] = []
        for turned, factors in ((basis.origin_rows(origin), rows), (basis.origin_columns(origin), starts)):
            if turned is not None:
                factors.append(turned)
        if basis.degree:
            unit = torch.eye(basis.degree + 1, dtype=dtype, device=origin.data.device)
            rows.append(Named(unit[-1], ("power",)))
            starts.append(Named(unit[0], ("power",)))
        self.row = multiply(*rows)
        self.through = decay(lane.gates, lane.resets, dtype)
        since = decay([gate for gate in lane.gates if gate.key_closed], None, dtype)
        kept = [since] if since is not None else []
        self.columns = [(_all(*column.keys, *starts, *kept), column.value) for column in lane.columns]
        plain = all(gate.query_closed and not gate.key_closed for gate in lane.gates)
        self.late = plain and all(column.first == 0 for column in lane.columns)
        self.until = decay([gate for gate in lane.gates if gate.query_closed], lane.resets, dtype)
        self.own = None if self.late else own_terms(lane)

    def run(self, length: int, initial: Named, valid: Named | None) -> tuple[Named, Named]:
        """The result at each of `length` positions, and the state behind the last.

        valid: which positions exist; at those that do not, the state stays as it is.
        """
        rows, through, until = (_steps(x, length) for x in (self.row, self.through, self.until))
        columns = [(_steps(key, length), _steps(value, length)) for key, value in self.columns]
        exists = _steps(valid, length)
        state, results = initial, []
        for step in range(length):
            moved = state
            if self.pascal is not None:
                moved = contract(self.pascal, rename(state, {"power": "power_from"}), "power_from")
            fed = add(*(_product(keys[step], values[step]) for keys, values in columns))
            after = add(_product(through[step], moved), fed)
            read = after if self.late else _product(until[step], moved)
            results.append(self._read(rows[step], read))
            state = after if exists[step] is None else _where(exists[step], after, state)
        axes = order(axis for result in results for axis in result.axes)
        found = Named(torch.stack([result.view(axes) for result in results], len(axes)), (*axes, "pos"))
        return found if self.own is None else add(found, self.own), state

    def _read(self, row: Named | None, state: Named) -> Named:
        assert row is not None
        if state.size("value") < _NARROW:
            return summed(multiply(row, state), self.inner)
        return contract(row, state, *self.inner)


def own_terms(lane: Lane) -> Named | None:
    """What each row sees at distance 0; None: nothing."""
    weighed = [(own_weight(lane, column), column.value) for column in lane.columns if column.first == 0]
    terms = [multiply(weight, value) for weight, value in weighed if weight is not None]
    return add(*terms) if terms else None


def _steps(x: Named | None, length: int) -> Sequence[Named | None]:
    if x is None or "pos" not in x.axes:
        return [x] * length
    place = x.axes.index("pos")
    axes = without(x.axes, "pos")
    return [Named(step, axes) for step in x.data.unbind(place)]


def _all(*factors: Named) -> Named | None:
    return multiply(*factors) if factors else None


def _product(weight: Named | None, x: Named | None) -> Named:
    assert x is not None
    return x if weight is None else multiply(weight, x)


def _where(condition: Named | None, yes: Named, no: Named) -> Named:
    assert condition is not None
    return apply(torch.where, condition, yes, no)
