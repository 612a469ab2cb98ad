"""A position of a walk: how the recurrent kernels load it, carry the state of every stream over it, and read its row.

With S [inner, outer] the state of a stream whose path holds the row's position and not the column's (`decay`):

    S = exp(g) S + s x^T
    y = p S
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from sma_compiler.ir.nodes import Apply, Expr, Kind
from sma_compiler.kernel.build import E, arange, call, lift, pointwise, reduce_sum, size, where, zeros
from sma_compiler.kernel.host import SIZES, Host, suffix
from sma_compiler.kernel.inputs import EXTENT, Inputs
from sma_compiler.kernel.linear import Term, is_tensor, plain, varies
from sma_compiler.kernel.lower import Lowering
from sma_compiler.kernel.maker import Maker
from sma_compiler.kernel.nodes import Tile
from sma_compiler.kernel.walk import Walk, turned
from sma_compiler.mask.nodes import Gate


@dataclass(frozen=True)
class State:
    """What one stream carries: the matrix [inner, outer], and the vector that `Walk.vector` says."""

    matrix: E | None
    vector: E | None


@dataclass(frozen=True)
class Operands:
    """p and s along the inner axis, x along the outer one, and the factors of an addition to the scores; None: 1."""

    p: E
    s: E
    x: E | None
    offset: tuple[E | None, E | None] = (None, None)


@dataclass(frozen=True)
class Decay:
    """What a state is multiplied by at a position. rest: what rounding left off, where it would add up."""

    value: E
    rest: E | None = None

    def __call__(self, state: E, added: E | None = None) -> E:
        """A state after the decay, and after what is added to it."""
        value = along(self.value, state)
        if self.rest is not None:
            rest = state * along(self.rest, state)
            added = rest if added is None else rest + added
        return state * value if added is None else state * value + added


Weigh = Callable[[int, Term, Operands, E, E | None], None]
"""Takes a stream, its operands, its row without factors and without this column, and the score with this column."""


@dataclass
class Row:
    """The row at a position, along the outer axis, and the sum of its weights where it is to be divided."""

    y: E | None = None
    norm: E | None = None


class Positions(Maker):
    """What the kernels of the recurrent plan share."""

    def __init__(self, walk: Walk, host: Host, reserved: frozenset[str]) -> None:
        super().__init__(host, reserved)
        self.walk = walk
        self._decays: dict[tuple[int, tuple[Expr, ...]], Decay] = {}

    def suffix(self, number: int) -> str:
        """What tells the variables of several streams apart."""
        return suffix(number, len(self.walk.terms))

    def exprs(self) -> tuple[Expr, ...]:
        """Everything that is read at a position."""
        walk = self.walk
        found = [walk.p, walk.s, walk.x, *(output.expr for output in walk.outputs)]
        found += [x for x in (*(walk.offset or ()), walk.weight) if x is not None]
        for term in walk.terms:
            found += [*term.row, *term.col, *(gate.log for gate in term.gates)]
        return tuple(found)

    def position(self, inputs: Inputs, exprs: Iterable[Expr], static: Lowering, t: E | None) -> Lowering:
        """Load every tensor that some expressions read at position t; None: they have no time axis."""
        lowering = static.extended()
        for node in inputs.held(exprs):
            if not varies(node):
                continue
            address = inputs.base(node.name)
            if t is not None:
                address = self.entry(address, t, inputs.stride(node.name))
            lowering.bind(node, inputs.tensor(node, address))
        return lowering

    def entry(self, base: E, t: E, stride: E) -> E:
        """The address of position t."""
        self.b.helpers.add("entry")
        return call("entry", base, t, stride, tile=Tile("ptr"))

    def use_channels(self, inputs: Inputs, axis: str, tile: E | None) -> None:
        """Give a program all channels of an axis, or one tile of them."""
        letter, offsets = axis[0], arange(EXTENT[axis])
        held = self.b.let(f"o_{letter}", offsets if tile is None else tile * size(EXTENT[axis]) + offsets, show=False)
        inputs.use_channels(axis, held, self.b.let(f"m_{letter}", held < size(SIZES[axis]), show=False))

    def static_decays(self, static: Lowering) -> None:
        """The decays of streams that are the same at every position."""
        for number, term in enumerate(self.walk.terms):
            if not any(varies(gate.log) for gate in term.gates):
                for _, gates in _schedule(term, apart=self.walk.sums is not None):
                    self._decay_of(number, gates, static)

    def operand(self, inputs: Inputs, lowering: Lowering, expr: Expr, name: str, axis: str) -> E:
        """An operand at a position, along one axis: 0 outside the tensors."""
        value = lowering.value(expr)
        if is_tensor(expr):
            return value
        _, valid = inputs.channels[axis]
        return self.b.let(f"b_{name}", self.b.helper("keep", value, valid, size("MASKED")))

    def inner(self, inputs: Inputs, lowering: Lowering) -> tuple[E, E]:
        """p and s at a position."""
        walk = self.walk
        p = self.operand(inputs, lowering, walk.p, walk.names[0], walk.inner)
        return p, self.operand(inputs, lowering, walk.s, walk.names[1], walk.inner)

    def operands(self, inputs: Inputs, lowering: Lowering) -> Operands:
        """The operands at a position."""
        walk = self.walk
        p, s = self.inner(inputs, lowering)
        a, b = (None if x is None else lowering.value(x) for x in walk.offset or (None, None))
        if walk.weight is not None:
            weight = lowering.value(walk.weight)
            p, a = p * weight, weight if a is None else a * weight
        return Operands(p, s, lowering.value(walk.x), (a, b))

    def empty(self, number: int, matrix: str = "b_s", vector: str = "b_z") -> State:
        """A state of zeros, under these names."""
        walk, after = self.walk, self.suffix(number)
        held = self.b.let(f"{matrix}{after}", zeros(EXTENT[walk.inner], EXTENT[walk.outer]))
        return State(held, self.b.let(f"{vector}{after}", zeros(EXTENT[walk.vector])) if walk.vector else None)

    def pass_position(
        self, states: Iterable[State], at: Operands, lowering: Lowering, weigh: Weigh | None = None
    ) -> Row:
        """Carry the states over a position: each decays, gets this column and is read, as the ends of the path say.

        weigh: takes what rows have of every stream without and with this column, which is then read by itself.
        """
        found = Row()
        for number, (term, state) in enumerate(zip(self.walk.terms, states, strict=True)):
            before: Decay | None = None
            column = [number_of(factor, lowering) for factor in term.col]
            x = at.x
            if x is not None and column:
                x = self.b.let(f"b_u{self.suffix(number)}", _times(x, column))
            for action, gates in _schedule(term, apart=weigh is not None):
                decay = self._decay_of(number, gates, lowering)
                match action:
                    case "add":
                        self._add(state, at, _times(at.s, column), x, before, decay)
                        before = None
                    case "read" if weigh is None:
                        self._decay(state, before)
                        self._read(found, state, at, [number_of(factor, lowering) for factor in term.row])
                        before = None
                    case "read" if weigh is not None:
                        own = None if term.strict else self._own(number, at, None if decay is None else decay.value)
                        row = self.b.let(f"b_through{self.suffix(number)}", self._row(state, at))
                        if before is not None:
                            self.b.set(row, before(row))
                        weigh(number, term, at, row, own)
                        row = row if own is None or x is None else row + own * x
                        factors = [number_of(factor, lowering) for factor in term.row]
                        found.y = self._sum("b_y", found.y, _times(row, factors))
                    case _ if decay is not None:
                        self._decay(state, before)
                        before = decay
            self._decay(state, before)
        return found

    def follow(self, states: Mapping[int, State], at: Operands, lowering: Lowering) -> None:
        """Carry the states of the walk that goes the other way over a position whose row is not read.

        at: the operands of that walk's columns.
        """
        outside, self._decays = self._decays, dict(self._decays)
        for number, state in states.items():
            term = turned(self.walk.terms[number])
            column = [number_of(factor, lowering) for factor in term.col]
            assert at.x is not None
            x = self.b.let(f"b_u{self.suffix(number)}", _times(at.x, column)) if column else at.x
            before: Decay | None = None
            for action, gates in _schedule(term, apart=True):
                decay = self._decay_of(number, gates, lowering)
                if action == "add":
                    self._add(state, at, _times(at.s, column), x, before, decay)
                    before = None
                elif action != "read" and decay is not None:
                    self._decay(state, before)
                    before = decay
            self._decay(state, before)
        self._decays = outside

    def decays(self, number: int, term: Term, lowering: Lowering) -> list[Decay]:
        """The decays of a stream at a position; together they are that of what leads over it."""
        steps = (gates for action, gates in _schedule(term, apart=True) if action not in ("read", "add"))
        found = (self._decay_of(number, gates, lowering) for gates in steps)
        return [decay for decay in found if decay is not None]

    def _decay_of(self, number: int, gates: list[Gate], lowering: Lowering) -> Decay | None:
        """The decay by some gates of a stream, as one variable; None where there are none."""
        if not gates:
            return None
        key = number, tuple(gate.log for gate in gates)
        if key not in self._decays:
            name = self.suffix(number)
            product = _step(gates[0], lowering)
            for gate in gates[1:]:
                left, right = lowering.together(product, _step(gate, lowering))
                product = left * right
            value = self.b.let(f"b_decay{name}", product)
            rest = None
            if len(gates) == 1 and not _is_log(gates[0]) and len(value.tile.shape) < 2:
                exponent, helper = lowering.value(gates[0].log), "small_rest" if varies(gates[0].log) else "exp_rest"
                rest = self.b.let(f"b_rest{name}", self.b.helper(helper, exponent, value))
            self._decays[key] = Decay(value, rest)
        return self._decays[key]

    def _decay(self, state: State, decay: Decay | None) -> None:
        for part in (state.matrix, state.vector):
            if decay is not None and part is not None:
                self.b.set(part, decay(part))

    def _add(self, state: State, at: Operands, s: E, x: E | None, decay: Decay | None, held: Decay | None) -> None:
        """Add a column to a state, after its decay. s, x: with the column's factors. held: the column's own decay."""
        b = self.b
        if held is not None and not held.value.tile.shape:
            s, x, held = s * held.value, None if x is None else x * held.value, None
        if state.matrix is not None and x is not None:
            product = at.s.col * x.row
            product = product if held is None else product * along(held.value, product)
            b.set(state.matrix, state.matrix + product if decay is None else decay(state.matrix, product))
        if state.vector is not None:
            column = s
            if self.walk.offset is not None and x is not None:
                column = x if at.offset[1] is None else x * at.offset[1]
            b.set(state.vector, state.vector + column if decay is None else decay(state.vector, column))

    def _read(self, found: Row, state: State, at: Operands, factors: list[E]) -> None:
        """Add p S to the row, and p z to the sum of its weights."""
        if state.matrix is not None:
            found.y = self._sum("b_y", found.y, _times(self._row(state, at), factors))
        if state.vector is not None and self.walk.normalize != "none":
            found.norm = self._sum("b_norm", found.norm, _times(reduce_sum(at.p * state.vector, 0), factors))

    def _row(self, state: State, at: Operands) -> E:
        """p S, and with an offset a z^T."""
        assert state.matrix is not None
        product = at.p.col * state.matrix
        self.b.helpers.add("sum_first")
        y = call("sum_first", product, tile=Tile("fp32", product.tile.shape[1:]))
        if state.vector is not None and self.walk.offset is not None:
            y = y + (state.vector if at.offset[0] is None else at.offset[0] * state.vector)
        return y

    def _own(self, number: int, at: Operands, decay: E | None) -> E:
        """The score of a position with itself, decayed by gates that its path holds at both ends."""
        score = reduce_sum(at.p * at.s, 0)
        if self.walk.offset is not None:
            a, b = (lift(1.0) if x is None else x for x in at.offset)
            score = score + a * b
        return self.b.let(f"b_own{self.suffix(number)}", score if decay is None else score * decay)

    def _sum(self, name: str, total: E | None, value: E) -> E:
        if total is None:
            return self.b.let(name, value)
        self.b.set(total, total + value)
        return total

    def divided(self, row: Row) -> E:
        """A row over the sum of its weights: 0 where it is 0 (`sum`); over at least 1 in size (`max1`)."""
        y, norm = row.y, row.norm
        assert y is not None
        if self.walk.normalize == "max1" and norm is not None:
            self.b.set(y, y / pointwise("tl.maximum", pointwise("tl.abs", norm), 1.0))
        elif norm is not None:
            self.b.set(y, y * where(norm.eq(0.0), 0.0, 1.0 / norm))
        return y


def _schedule(term: Term, apart: bool) -> list[tuple[str, list[Gate]]]:
    """What happens at a position, in order: the state decays, its column is added (decayed as well), its row is read.

    The row's own path holds a gate where `query_closed`, that of later rows to this column where `key_closed`. apart:
    the row is read without its own column, of which it reads the product of the gates that hold both.
    """
    ends = {
        (query, key): [gate for gate in term.gates if (gate.query_closed, gate.key_closed) == (query, key)]
        for query in (False, True)
        for key in (False, True)
    }
    row, column, both, neither = ends[True, False], ends[False, True], ends[True, True], ends[False, False]
    if term.strict or apart:
        read = both if apart else []
        return [("before", [*row, *both]), ("read", read), ("between", neither), ("add", both), ("after", column)]
    return [("before", row), ("add", []), ("between", both), ("read", []), ("after", column)]


def along(value: E, state: E) -> E:
    """A decay by channel laid out along the axis of a state that has these channels."""
    if len(value.tile.shape) != 1 or len(state.tile.shape) != 2:
        return value
    return value.col if value.tile.shape[0] == state.tile.shape[0] else value.row


def _is_log(gate: Gate) -> bool:
    inner = plain(gate.log)
    return isinstance(inner, Apply) and inner.fn == "log"


def _step(gate: Gate, lowering: Lowering) -> E:
    """The decay of one step: x of a gate that is `log(x)`."""
    inner = plain(gate.log)
    if isinstance(inner, Apply) and _is_log(gate):
        return lowering.value(inner.args[0])
    return lowering.builder.helper("exact_exp", lowering.value(inner))


def number_of(factor: Expr, lowering: Lowering) -> E:
    """A factor as a number: 1 and 0 for a condition."""
    value = lowering.value(factor)
    return where(value, 1.0, 0.0) if factor.kind is Kind.BOOL else value


def _times(value: E, factors: list[E]) -> E:
    for factor in factors:
        value = value * factor
    return value
