"""Softmax whose score does not depend on the row (RWKV-4): scans of sums of exp(score) that never overflow.

A program holds [C, BV] numbers, of C positions and a tile of channels, and carries for each channel the numerator, the
divisor, and M, the largest logarithm of a weight that a column has there; both sums are in units of exp(M):

    M_t = max(M_(t-1) + g_t, s_t)        s = logarithms of what columns weigh, g = log gates
    N_t = e_t N_(t-1) + exp(s_t - M_t) x_t        e_t = exp(M_(t-1) + g_t - M_t)

Every exponent is at most 0. M_(t-1) + g_t is rounded; what rounding takes of it is summed apart and belongs to the
unit, so that e_t is 1 wherever M stays that of an earlier column. A row reads the state before it, and weighs its own
column by itself.

Memory holds a state as four rows of channels: numerators, divisors, M, and what rounding took of it, which is nothing
in states that calls hand on. The cotangents of the sums are in the same units, so that they go the same way from the
end without a maximum of their own:

    D_(t-1) = e_t D_t + o_t dN_t        o_t: what the state weighs in the row that reads it, at most 1

What parts of a sequence add to states is joined as columns are, and what they hand back is a plain scan. Units of the
state that a part ends with and of the one that the next begins with are rounded apart.
"""

from __future__ import annotations

from sma_compiler.ir.nodes import Expr
from sma_compiler.kernel.build import MINUS_INFINITY, E, arange, call, lift, pointwise, size, where, zeros
from sma_compiler.kernel.chunk import Loaded, Place, State
from sma_compiler.kernel.lower import wide_operand
from sma_compiler.kernel.nodes import Name, Tile
from sma_compiler.kernel.scan import LocalScan, Scan
from sma_compiler.kernel.scan_back import Back, ScanGradient

LOWEST = -1e30
"""The logarithm of a weight of 0, in kernels."""
_TILE = Tile("fp32", ("C", "BV"))
_STATE = Tile("fp32", ("BK", "BV"))


class Columns(Scan):
    """What all kernels have: the columns of a tile of positions, and how they add up."""

    turned = False

    def empty_state(self, number: int) -> State:
        """Sums of 0, and the logarithm of nothing."""
        state = super().empty_state(number)
        if not self.walk.backward:
            self.b.set(state.matrix, where(arange("BK").col.eq(2), LOWEST, state.matrix))
        return state

    def columns(self, place: Place, at: Loaded) -> tuple[E, E, E, E]:
        """Log gates, what columns add to sums, and logarithms of their weights; nothing happens past the end."""
        b, inside = self.b, place.inputs.inside["value"]
        gate = at.lowering.value(self.logs()[0]).among(_TILE.shape)
        for log in self.logs()[1:]:
            gate = gate + at.lowering.value(log).among(_TILE.shape)
        gate = b.let("b_g", where(inside, pointwise("tl.maximum", gate, LOWEST), 0.0))
        score = b.let("b_m", where(inside, at.lowering.value(self.walk.s).among(_TILE.shape), LOWEST))
        x = wide_operand(b, self.walk.x, self.walk.names[2], at.lowering, inside)
        return gate, x, b.let("b_one", where(inside, 1.0, 0.0)), score

    def along(self, columns: tuple[E, E, E, E], state: E, behind: E | None = None) -> tuple[E, ...]:
        """The sums and their units before every position of a tile, and what both weigh that the position joins.

        behind: takes the state after the tile, where that is wanted.
        """
        names = ("b_n_0", "b_d_0", "b_m_0", "b_r_0", "b_old", "b_new")
        behind = behind or E(Name(_STATE, self.b.fresh("b_s")))
        return self.tiles("sums_along", (*columns, state, lift(self.exact)), names, behind)

    def seen(self, columns: tuple[E, E, E, E], before: tuple[E, ...], at: Loaded) -> tuple[E, ...]:
        """Numerators and divisors of rows, and the weights of the past and of their own column."""
        gate, x, _, score = columns
        above, below, *read, _, _ = before
        if self.reads_decayed:
            top, lost = self.tiles("plus_rest", (read[0], gate), ("b_late", "b_lost"))
            read = [top, read[1] + lost]
        more = at.lowering.value(self.walk.p).among(_TILE.shape)
        given = (above, below, *read, score, more, x, lift(self.exact))
        return self.tiles("sums_seen", given, ("b_above", "b_below", "b_past", "b_own"))

    def pass_over(self, place: Place, at: Loaded, state: E) -> tuple[E, E]:
        """Carry a state over a tile of positions; their log gates, of which nothing was taken."""
        columns = self.columns(place, at)
        self.along(columns, state, state)
        return columns[0], lift(None)

    def over(self, a: E, b: E) -> E:
        """A quotient."""
        return pointwise("tl.div_rn", a, b) if self.exact else a / b

    def cotangents(self, place: Place, at: Loaded, given: Expr, row: tuple[E, ...]) -> tuple[E, E]:
        """The cotangents of the numerators and divisors of rows."""
        above, below, *_ = row
        self.b.section("Cotangents of what rows sum and of what divides it")
        dn = wide_operand(self.b, given, "dn", at.lowering, place.inputs.inside["value"])
        over = self.b.let("b_over", self.over(dn, below))
        return over, self.b.let("b_under", -over * self.over(above, below))

    def between(self, place: Place, state: E) -> E:
        """What sums in units of the state that a program ends with weigh in those that the next begins with."""
        b, inputs = self.b, place.inputs
        if place.part is None or ("units", 0) not in self.tensors.sums:
            return b.let("b_unit", b.helper("exact_exp", self.row(state, 3)).row)
        parts = self.arguments.integer("PARTS", self.tensors.parts)
        pointer = self.arguments.pointer("units", self.tensors.sums["units", 0])
        given = pointer, self.state_of_part(place) + 1, *inputs.channels["value"], size("V"), place.part < parts - 1
        b.helpers.add("between_units")
        return b.let("b_unit", call("between_units", state, *given, tile=Tile("fp32", ("1", "BV"))))

    def row(self, state: E, number: int) -> E:
        """A row of a state."""
        self.b.helpers.add("row_of")
        return call("row_of", state, number, tile=Tile("fp32", ("BV",)))

    def tiles(self, helper: str, given: tuple[E, ...], names: tuple[str, ...], *more: E) -> tuple[E, ...]:
        """The tiles [C, BV] that a helper gives; those after them are assigned to variables."""
        self.b.helpers.add(helper)
        found = tuple(E(Name(_TILE, self.b.fresh(name))) for name in names)
        self.b.assign((*found, *more), call(helper, *given, tile=_TILE))
        return found


class Stabilised(Columns):
    """Builds the forward kernel."""

    def pass_rows(self, place: Place, at: Loaded, state: State) -> E:
        """See `Scan`."""
        columns = self.columns(place, at)
        before = self.along(columns, state.matrix, state.matrix)
        row = self.seen(columns, before, at)
        self.hand(place, at, before, row)
        above, below, *_ = row
        return self.b.let("b_y", self.over(above, below))

    def hand(self, place: Place, at: Loaded, before: tuple[E, ...], row: tuple[E, ...]) -> None:
        """Sum up what rows hand back to what lies before the program's positions, where that is asked for."""

    def final_states(self, place: Place, states: tuple[State, ...]) -> None:
        """Write the state that the program ends with; of no column the logarithm is -inf."""
        (state,) = states
        if ("matrix", 0) in self.tensors.final:
            self.b.space()
            self.b.helpers.add("whole_unit")
            self.b.set(state.matrix, call("whole_unit", state.matrix, tile=_STATE))
            nothing = arange("BK").col.eq(2) & (state.matrix <= LOWEST)
            self.b.set(state.matrix, where(nothing, MINUS_INFINITY, state.matrix))
        super().final_states(place, states)


class StabilisedParts(Columns, LocalScan):
    """Builds the kernel of the states of parts alone, with sums of log gates in the place of decays."""

    def empty_decay(self) -> E:
        """See `LocalScan`."""
        return self.b.let("b_over", zeros("BK", "BV"))

    def decayed_by(self, place: Place, at: Loaded, decays: E, rest: E, decay: E) -> None:
        """See `LocalScan`."""
        self.b.helpers.add("gates_along")
        self.b.set(decay, call("gates_along", decays, decay, tile=_STATE))


class StabilisedAgain(Stabilised, ScanGradient):
    """Builds the kernel that keeps states for the gradients, and sums up what each part hands to those before it.

    Rows divide by what the part begins with, too, so that sum is known no earlier.
    """

    def exprs(self) -> tuple[Expr, ...]:
        """See `Scan`."""
        return (*super().exprs(), self.leaves.given) if self.parts else super().exprs()

    def initial_states(self, place: Place) -> tuple[State, ...]:
        """And nothing handed back yet."""
        found = super().initial_states(place)
        if self.parts:
            self.handed = self.b.let("b_handed", zeros("BK", "BV"))
            self.over_part = self.b.let("b_over", zeros("BK", "BV") + 1.0)
        return found

    def hand(self, place: Place, at: Loaded, before: tuple[E, ...], row: tuple[E, ...]) -> None:
        """See `Stabilised`."""
        if not self.parts:
            return
        b, past, (*_, old, _) = self.b, row[2], before
        over, under = self.cotangents(place, at, self.leaves.given, row)
        with b.branch(self._pointer("decays").given()):
            given = (old, past * over, past * under, self.handed, self.over_part)
            b.helpers.add("cotangents_handed")
            b.assign((self.handed, self.over_part), call("cotangents_handed", *given, tile=_STATE))

    def final_states(self, place: Place, states: tuple[State, ...]) -> None:
        """And what the part hands back, with the decay over it."""
        super().final_states(place, states)
        if not self.parts:
            return
        with self.b.branch(self._pointer("decays").given()):
            self.b.set(self.over_part, self.over_part * self.between(place, states[0].matrix))
            for label, value in (("handed", self.handed), ("decays", self.over_part)):
                made = State(value, None)
                self.keep_state(place, made, "matrix", self._pointer(label), self.state_of_part(place))

    def _pointer(self, label: str) -> E:
        return self.arguments.pointer(label, self.tensors.sums[label, 0])


class StabilisedBack(Columns, Back):
    """Builds the kernel of the gradients."""

    def from_behind(self, tiles: E) -> E:
        """See `Back`: they are small, and loaded ahead."""
        return call("tl.range", tiles, tile=Tile("int32"), num_stages=size("STAGES"))

    def enter(self, place: Place, stop: E, state: State, known: E) -> None:
        """See `Back`."""
        with self.b.branch(stop.eq(place.end)):
            self.b.set(state.matrix, state.matrix * self.between(place, known))

    def pass_back(self, place: Place, at: Loaded, state: State, known: E) -> None:
        """See `Back`."""
        b, leaves, inside = self.b, self.leaves, place.inputs.inside["value"]
        b.section("Sums before every position, and rows")
        columns = _, x, _, _ = self.columns(place, at)
        before = above, below, _, _, old, new = self.along(columns, known)
        row = _, divisor, past, own = self.seen(columns, before, at)
        over, under = self.cotangents(place, at, leaves.given, row)
        b.section("Cotangents of the sums behind every position, of values, of logarithms of weights and of log gates")
        given = (old, past * over, past * under, state.matrix)
        later_above, later_below = self.tiles("cotangents_back", given, ("b_n_1", "b_d_1"), state.matrix)
        b.comment("A row less its own value, without the difference of the two: they are alike where it weighs most")
        apart = b.let("b_apart", self.over(past * (x * below - above), divisor))
        more = b.let("b_dq", own * over * apart)
        bound = {
            leaves.q: more,
            leaves.k: b.let("b_dk", new * (x * later_above + later_below) + more),
            leaves.v: b.let("b_dv", new * later_above + own * over),
        }
        passed = old * (above * later_above + below * later_below)
        if self.reads_decayed:
            passed = passed + past * (above * over + below * under)
        bound[leaves.gate] = b.let("b_dgate", b.helper("keep", passed, inside, size("MASKED")))
        for leaf, value in bound.items():
            at.lowering.bind(leaf, value)
