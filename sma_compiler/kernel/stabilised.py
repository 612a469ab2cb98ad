"""Softmax whose score does not depend on the row (RWKV-4): scans of sums of exp(score) that never overflow.

A program holds [C, BV] numbers, of C positions and a tile of channels, and carries for each channel the numerator, the
divisor, and M, the largest logarithm of a weight that a column has there; both sums are in units of exp(M):

    M_t = max(M_(t-1) + g_t, s_t)        s = logarithms of what columns weigh, g = log gates
    N_t = exp(M_(t-1) + g_t - M_t) N_(t-1) + exp(s_t - M_t) x_t

Every exponent is at most 0. M_(t-1) + g_t is rounded, and what rounding takes of it goes into the power, so that M
cancels to the last digit. A row reads the state before it, and weighs its own column by itself.

Memory holds a state as four rows of channels: numerators, divisors, M, and nothing. The gradients go the same way from
the end, with columns that weigh 1 / divisor: their unit is exp(-M) of the state that they are the cotangent of.
"""

from __future__ import annotations

from sma_compiler.kernel.build import MINUS_INFINITY, E, arange, call, lift, pointwise, size, where
from sma_compiler.kernel.chunk import Loaded, Place, State
from sma_compiler.kernel.lower import wide_operand
from sma_compiler.kernel.nodes import Name, Tile
from sma_compiler.kernel.scan import Scan
from sma_compiler.kernel.scan_back import Back

LOWEST = -1e30
"""The logarithm of a weight of 0, in kernels."""
_TILE = Tile("fp32", ("C", "BV"))


class Columns(Scan):
    """What both kernels have: the columns of a tile of positions, and how they add up."""

    turned = False

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

    def along(self, columns: tuple[E, E, E, E], state: E) -> tuple[E, ...]:
        """The sums and their units after every position of a tile and before it."""
        names = ("b_n", "b_d", "b_top", "b_n_0", "b_d_0", "b_top_0")
        return self.tiles("sums_along", (*columns, state), names)

    def seen(self, columns: tuple[E, E, E, E], before: tuple[E, ...], at: Loaded) -> tuple[E, ...]:
        """Numerators and divisors of rows, the logarithms of their units, and the weights of the past and their own."""
        gate, x, _, score = columns
        more = at.lowering.value(self.walk.p).among(_TILE.shape)
        given = (*before, gate if self.reads_decayed else lift(0.0), score, more, x)
        return self.tiles("sums_seen", given, ("b_above", "b_below", "b_unit", "b_old", "b_own"))

    def pass_over(self, place: Place, at: Loaded, state: E) -> E:
        """Carry a state over a tile of positions; their log gates."""
        columns = self.columns(place, at)
        after = self.along(columns, state)[:3]
        self.b.set(state, self.state("state_rows", *after, size("C") - 1))
        return columns[0]

    def state(self, helper: str, *given: E) -> E:
        """A state that a helper gives."""
        self.b.helpers.add(helper)
        return call(helper, *given, tile=Tile("fp32", ("BK", "BV")))

    def tiles(self, helper: str, given: tuple[E, ...], names: tuple[str, ...]) -> tuple[E, ...]:
        """The tiles [C, BV] that a helper gives."""
        self.b.helpers.add(helper)
        found = tuple(E(Name(_TILE, self.b.fresh(name))) for name in names)
        self.b.assign(found, call(helper, *given, tile=_TILE))
        return found


class Stabilised(Columns):
    """Builds the forward kernel."""

    def empty_state(self, number: int) -> State:
        """Sums of 0, and the logarithm of nothing."""
        matrix = super().empty_state(number).matrix
        self.b.set(matrix, where(arange("BK").col.eq(2), LOWEST, matrix))
        return State(matrix, None)

    def pass_rows(self, place: Place, at: Loaded, state: State) -> E:
        """See `Scan`."""
        columns = self.columns(place, at)
        found = self.along(columns, state.matrix)
        self.b.set(state.matrix, self.state("state_rows", *found[:3], size("C") - 1))
        above, below, *_ = self.seen(columns, found[3:], at)
        return self.b.let("b_y", pointwise("tl.div_rn", above, below))

    def final_states(self, place: Place, states: tuple[State, ...]) -> None:
        """Write the state that the program ends with; of no column the logarithm is -inf."""
        (state,) = states
        if ("matrix", 0) in self.tensors.final:
            self.b.space()
            nothing = arange("BK").col.eq(2) & (state.matrix <= LOWEST)
            self.b.set(state.matrix, where(nothing, MINUS_INFINITY, state.matrix))
        super().final_states(place, states)


class StabilisedBack(Columns, Back):
    """Builds the kernel of the gradients."""

    def enter(self, state: State, known: E) -> None:
        """See `Back`."""
        self.b.set(state.matrix, self.state("in_unit", state.matrix, known))

    def exit(self, state: State, kept: E) -> None:
        """See `Back`."""
        self.b.set(state.matrix, self.state("of_unit", state.matrix, kept))

    def pass_back(self, place: Place, at: Loaded, state: State, known: E) -> None:
        """See `Back`."""
        b, leaves, inside = self.b, self.leaves, place.inputs.inside["value"]
        b.section("Sums before every position, and rows")
        columns = gate, x, _, score = self.columns(place, at)
        before = above, below, top = self.along(columns, known)[3:]
        row, divisor, unit, old, own = self.seen(columns, before, at)
        b.section("Cotangents of the sums behind every position: rows weigh 1 / divisor")
        given = wide_operand(b, leaves.given, "dn", at.lowering, inside)
        over = b.let("b_over", pointwise("tl.div_rn", given, divisor))
        under = b.let("b_under", -over * pointwise("tl.div_rn", row, divisor))
        m = b.let("b_m_2", where(inside, -unit, LOWEST))
        if self.reads_decayed:
            late, rest = self.tiles("plus_rest", (m, gate), ("b_late", "b_rest"))
            found = (over + over * rest, under + under * rest, late)
        else:
            found = (over, under, m)
        names = ("b_n", "b_d", "b_top", "b_n_1", "b_d_1", "b_top_1")
        out = self.tiles("sums_back", (gate, *found, state.matrix), names)
        b.set(state.matrix, self.state("state_rows", *out[:3], lift(0)))
        later_above, later_below, later = out[3:]
        b.section("Cotangents of values, of the logarithms of weights, and of log gates")
        weight = b.let("b_weight", b.helper("exact_exp", score + later))
        b.comment("A row less its own value, without the difference of the two: they are alike where it weighs most")
        apart = b.let("b_apart", pointwise("tl.div_rn", old * (x * below - above), divisor))
        more = b.let("b_dq", own * over * apart)
        bound = {
            leaves.q: more,
            leaves.k: b.let("b_dk", weight * (x * later_above + later_below) + more),
            leaves.v: b.let("b_dv", weight * later_above + own * over),
        }
        passed = b.helper("exact_exp", (top + later) + gate) * (above * later_above + below * later_below)
        if self.reads_decayed:
            passed = passed + old * (above * over + below * under)
        bound[leaves.gate] = b.let("b_dgate", b.helper("keep", passed, inside, size("MASKED")))
        for leaf, value in bound.items():
            at.lowering.bind(leaf, value)
