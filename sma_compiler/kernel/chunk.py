"""The chunked plan, fused: one kernel walks the chunks of a sequence with the state of one head in registers.

Per chunk of C positions, with S [K, V] the state at its start:

    A = (Q K^T) * decay            the pairs inside the chunk
    Y = A V + decay (Q S)          and those before it
    S = decay S + K^T (decay V)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace

from sma_compiler.ir.nodes import Apply, Expr, postorder
from sma_compiler.kernel.ahead import Split, address, path_from, split
from sma_compiler.kernel.arguments import Arguments
from sma_compiler.kernel.build import (
    Builder,
    E,
    arange,
    call,
    dot,
    lift,
    pointwise,
    reduce_sum,
    size,
    trans,
    where,
    zeros,
)
from sma_compiler.kernel.gates import Path, Rows, is_positive, path_of, scaled, static_rates, with_factors
from sma_compiler.kernel.host import Host
from sma_compiler.kernel.inputs import Inputs
from sma_compiler.kernel.linear import Linear, is_tensor, plain
from sma_compiler.kernel.lower import Lowering
from sma_compiler.kernel.nodes import Function, Tile
from sma_compiler.mask.nodes import Gate

CONSTANTS = ("C", "BK", "BV", "K", "V", "MASKED", "DOT", "PRECISION", "STAGES")
"""Names that every chunked kernel is compiled for."""


@dataclass(frozen=True)
class State:
    """What one stream carries: the matrix [BK, BV], and where rows are normalised the sum of the keys [BK]."""

    matrix: E
    keys: E | None


@dataclass(frozen=True)
class Chunk:
    """The tiles of one chunk: its rows, operands [C, BK], [C, BK], [C, BV], and the path of every stream."""

    rows: Rows
    lowering: Lowering
    q: E | None
    k: E
    v: E
    paths: tuple[Path, ...]


class Chunked(ABC):
    """What the chunked kernels of an op share: which expressions they read, and the tiles of a chunk.

    parts: whether several programs share a sequence, each with a part of it.
    """

    def __init__(self, linear: Linear, host: Host, reserved: frozenset[str], parts: bool) -> None:
        self.linear = linear
        self.parts = parts
        self.before = "local" if parts else "initial"
        self.splits = tuple(split(term) for term in linear.terms)
        self.host = host
        self.b = Builder(reserved | set(CONSTANTS))
        self.arguments = Arguments(self.b)
        self.several = len(linear.terms) > 1

    @abstractmethod
    def build(self, name: str) -> Function:
        """The kernel."""

    def place(self) -> tuple[Inputs, E, E, E]:
        """Say which program this is: its inputs, the offsets of a chunk's rows, where its positions begin and end."""
        b = self.b
        b.section("Which value channels, head and sequence" + (", and which part of it" if self.parts else ""))
        n_v = b.let("n_v", call("tl.cdiv", size("V"), size("BV"), tile=Tile("int32")))
        i_v = b.let("i_v", program(0) % n_v)
        i_h = b.let("i_h", (program(0) // n_v).to("int64"))
        length = self.arguments.integer("T", self.host.sizes["time"])
        part = program(1) % self.arguments.integer("PARTS", self.host.parts) if self.parts else None
        if part is None:
            i_b = b.let("i_b", program(1).to("int64"))
            begin, end = lift(0), length
        else:
            i_b = b.let("i_b", (program(1) // self.arguments.integer("PARTS", self.host.parts)).to("int64"))
            span = self.arguments.integer("SPAN", self.host.span)
            part = b.let("i_p", part)
            begin = b.let("begin", part * span)
            end = b.let("end", pointwise("tl.minimum", begin + span, length, dtype="int32"))
        inputs = Inputs(b, self.arguments, self.linear.op, self.host, i_b, i_h, part)
        o_c = b.let("o_c", arange("C"), show=False)
        o_k = b.let("o_k", arange("BK"), show=False)
        o_v = b.let("o_v", i_v * size("BV") + arange("BV"), show=False)
        inputs.use_channels("key", o_k, b.let("m_k", o_k < size("K"), show=False))
        inputs.use_channels("value", o_v, b.let("m_v", o_v < size("V"), show=False))
        b.section("Where the rows of this head begin")
        return inputs, o_c, begin, end

    def suffix(self, number: int) -> str:
        """What tells the variables of several streams apart."""
        return str(number) if self.several else ""

    def factors(self, queries: bool) -> tuple[Expr, ...]:
        """What a kernel reads to weigh pairs, besides the score; without `queries`, what keys and paths need."""
        found: list[Expr] = []
        for term, made in zip(self.linear.terms, self.splits, strict=True):
            row, col = (term.row, term.col) if made is None else (made.row, made.col)
            found += [*(row if queries else ()), *col]
            found += [gate.log for gate in term.gates] if made is None else []
        return tuple(found)

    def operand(self, expr: Expr, name: str, lowering: Lowering, valid: E) -> E:
        """q, k or v as a matrix product takes it; what is computed is 0 outside the tensor."""
        if is_tensor(expr):
            return lowering.raw(expr).to("dot")
        value = self.b.helper("keep", self.b.let(f"b_{name}", lowering.value(expr)), valid, size("MASKED"))
        return self.b.let(f"b_{name}", value.to("dot"))

    def chunk(
        self, inputs: Inputs, static: Lowering, rates: dict[Gate, E], t0: E, o_c: E, end: E, around: Iterable[Expr]
    ) -> Chunk:
        """Load rows t0 .. t0 + C and make the paths; `around` are further expressions of the same rows."""
        exprs = (self.linear.q, self.linear.k, self.linear.v, *self.factors(queries=True), *around)
        lowering, rows = self._load(inputs, static, t0, o_c, end, exprs)
        q = self.operand(self.linear.q, "q", lowering, inputs.inside["key"])
        k, v = self._keys_and_values(inputs, lowering)
        return Chunk(rows, lowering, q, k, v, self._paths(inputs, lowering, rows, rates, t0, queries=True))

    def keys(self, inputs: Inputs, static: Lowering, rates: dict[Gate, E], t0: E, o_c: E, end: E) -> Chunk:
        """The same without queries, for what only keys and values decide."""
        exprs = (self.linear.k, self.linear.v, *self.factors(queries=False))
        lowering, rows = self._load(inputs, static, t0, o_c, end, exprs)
        k, v = self._keys_and_values(inputs, lowering)
        return Chunk(rows, lowering, None, k, v, self._paths(inputs, lowering, rows, rates, t0, queries=False))

    def _load(
        self, inputs: Inputs, static: Lowering, t0: E, o_c: E, end: E, exprs: tuple[Expr, ...]
    ) -> tuple[Lowering, Rows]:
        b, linear = self.b, self.linear
        b.section("Rows t0 .. t0 + C; what lies past the end is read as 0")
        m_t = b.let("m_t", t0 + o_c < end, show=False)
        rows = Rows(o_c, m_t, pointwise("tl.minimum", end - t0, size("C"), dtype="int32"))
        operands = {plain(x) for x in (linear.q, linear.k, linear.v) if is_tensor(x)}
        inputs.enter(m_t)
        return inputs.chunk(exprs, static, t0, o_c, m_t, operands), rows

    def _keys_and_values(self, inputs: Inputs, lowering: Lowering) -> tuple[E, E]:
        k = self.operand(self.linear.k, "k", lowering, inputs.inside["key"])
        return k, self.operand(self.linear.v, "v", lowering, inputs.inside["value"])

    def _paths(
        self, inputs: Inputs, lowering: Lowering, rows: Rows, rates: dict[Gate, E], t0: E, queries: bool
    ) -> tuple[Path, ...]:
        """The path of every stream: loaded where it was made ahead."""
        if any(term.gates or term.row or term.col for term in self.linear.terms):
            self.b.section("Decay from the start of the chunk, as powers of 2")
        found: list[Path] = []
        for number, (term, made) in enumerate(zip(self.linear.terms, self.splits, strict=True)):
            suffix = self.suffix(number)
            if made is None:
                seen = term if queries else replace(term, row=())
                found.append(path_of(seen, rates, lowering, rows, suffix))
                continue
            loaded = self._loaded(inputs, made, number, rows, t0, queries)
            path = path_from(loaded, term.strict)
            found.append(with_factors(path, made.row if queries else (), made.col, lowering, rows, suffix))
        return tuple(found)

    def _loaded(self, inputs: Inputs, made: Split, number: int, rows: Rows, t0: E, queries: bool) -> dict[str, E]:
        b = self.b
        length = self.arguments.integer("T", self.host.sizes["time"])
        found: dict[str, E] = {}
        for part in made.arrays:
            if not queries and made.two_ended and part.endswith("row"):
                continue
            pointer = self.arguments.pointer(f"{part}{self.suffix(number)}", self.host.gates[number, part])
            at = address(pointer, part, inputs.place(of_part=False), t0, rows, length)
            dtype = "int32" if part.startswith("cut") else "fp32"
            if part.endswith("all"):
                value = call("tl.load", at, tile=Tile(dtype))
            else:
                value = b.helper("load", at, rows.valid, size("MASKED"), dtype=dtype)
            found[part] = b.let(f"b_{part}{self.suffix(number)}", value)
        return found

    def advance(self, chunk: Chunk, states: tuple[State, ...]) -> None:
        """Carry the states over a chunk."""
        b = self.b
        b.section("State at the end of the chunk")
        for number, (path, state) in enumerate(zip(chunk.paths, states, strict=True)):
            suffix = self.suffix(number)
            decay = path.to_end()
            factors = path.col_factors
            if decay is not None:
                factors = [b.let(f"b_out{suffix}", decay), *factors]
            values = chunk.v
            if factors:
                scaled_values = scaled(chunk.v.to("fp32"), factors, column=True)
                values = b.let(f"b_u{suffix}", scaled_values.to("dot"))
            across = path.across()
            matrix, keys = state.matrix, state.keys
            if across is not None:
                across = b.let(f"b_across{suffix}", across)
                matrix = matrix * across
            b.set(state.matrix, dot(trans(chunk.k), values, matrix))
            if state.keys is not None and keys is not None:
                grown = reduce_sum(scaled(chunk.k.to("fp32"), factors, column=True), 0)
                b.set(state.keys, (keys if across is None else keys * across) + grown)

    def empty_state(self, number: int) -> State:
        """A state of zeros."""
        b, suffix = self.b, self.suffix(number)
        matrix = b.let(f"b_s{suffix}", zeros("BK", "BV"))
        if self.linear.normalize == "none":
            return State(matrix, None)
        return State(matrix, b.let(f"b_z{suffix}", zeros("BK")))


class Forward(Chunked):
    """Builds the fused forward kernel. scores: whether Q K^T was made ahead."""

    def __init__(self, linear: Linear, host: Host, reserved: frozenset[str], parts: bool, scores: bool) -> None:
        super().__init__(linear, host, reserved, parts)
        self.ahead = scores

    def build(self, name: str) -> Function:
        """The kernel."""
        b, linear = self.b, self.linear
        inputs, o_c, begin, end = self.place()
        around = [linear.op.result]
        p_y, y_stride = inputs.result("y")
        static = inputs.static((linear.q, linear.k, linear.v, *self.factors(queries=True), *around))
        rates = static_rates(linear.terms, static)
        states = self._initial_states(inputs)
        steps = call("tl.range", begin, end, size("C"), tile=Tile("int32"), num_stages=size("STAGES"))
        b.space()
        with b.loop("t0", steps, Tile("int32")) as t0:
            chunk = self.chunk(inputs, static, rates, t0, o_c, end, around)
            beside = self._beside()
            scores = self._scores(inputs, chunk, t0) if self.ahead else None
            y = self._rows_of(chunk, states, scores, beside)
            self.advance(chunk, states)
            b.section("Output")
            chunk.lowering.bind(linear.op.result if beside is not None else linear.attend, y)
            address, mask = inputs.addresses(p_y, y_stride, "value", t0, o_c, chunk.rows.valid)
            b.helpers.add("store")
            result = chunk.lowering.value(linear.op.result)
            b.do(call("store", address, result, mask, size("MASKED"), tile=Tile("ptr")))
        self._final_states(inputs, states)
        doc = ("One program carries the state of one head and BV value channels along a sequence.",)
        return b.function(name, doc, self.arguments.parameters, jit=True)

    def _initial_states(self, inputs: Inputs) -> tuple[State, ...]:
        b = self.b
        b.section("State: what the keys and values before a position sum to")
        found: list[State] = []
        for number in range(len(self.linear.terms)):
            suffix = self.suffix(number)
            state = self.empty_state(number)
            matrix, keys = state.matrix, state.keys
            found.append(state)
            pointer = self.arguments.pointer(f"initial{suffix}", self.host.state(self.before, "matrix", number))
            with b.branch(pointer.given()):
                address, mask = inputs.state(pointer, "matrix", of_part=self.parts)
                b.set(matrix, call("tl.load", address, mask=mask, other=0.0, tile=matrix.tile))
            if keys is not None:
                pointer = self.arguments.pointer(f"initial_keys{suffix}", self.host.state(self.before, "keys", number))
                with b.branch(pointer.given()):
                    address, mask = inputs.state(pointer, "keys", of_part=self.parts)
                    b.set(keys, call("tl.load", address, mask=mask, other=0.0, tile=keys.tile))
        return tuple(found)

    def _final_states(self, inputs: Inputs, states: tuple[State, ...]) -> None:
        b = self.b
        b.space()
        last = None
        if inputs.part is not None:
            last = inputs.part.eq(self.arguments.integer("PARTS", self.host.parts) - 1)
        for number, state in enumerate(states):
            suffix = self.suffix(number)
            pointer = self.arguments.pointer(f"final{suffix}", self.host.state("final", "matrix", number))
            with b.branch(pointer.given()):
                b.do(inputs.keep_state(pointer, "matrix", state.matrix, only=last))
                if state.keys is not None:
                    pointer = self.host.state("final", "keys", number)
                    pointer = self.arguments.pointer(f"final_keys{suffix}", pointer)
                    b.do(inputs.keep_state(pointer, "keys", state.keys, only=last))

    def _scores(self, inputs: Inputs, chunk: Chunk, t0: E) -> E:
        """Q K^T of the chunk, [C, C], as it was made ahead."""
        groups = self.arguments.integer("G", self.host.groups)
        group = inputs.head // self.arguments.constant("G_SHARED", self.host.heads // self.host.groups)
        length = self.arguments.integer("T", self.host.sizes["time"])
        pointer = self.arguments.pointer("scores", self.host.scores)
        at = score_address(pointer, inputs.batch * groups + group, length, t0, chunk.rows.offsets)
        value = self.b.helper("load", at, chunk.rows.valid.col, size("MASKED"))
        return self.b.let("b_scores", value)

    def _rows_of(self, chunk: Chunk, states: tuple[State, ...], scores: E | None, beside: Expr | None) -> E:
        """The contraction's rows, [C, BV]; where they are a sum with `beside`, the sum."""
        b = self.b
        assert chunk.q is not None
        b.section("Pairs with the keys before the chunk, through the state")
        y, norm = self._through_states(chunk, states)
        if beside is not None:
            b.set(y, y + chunk.lowering.value(beside))
        b.section("Pairs inside the chunk")
        if scores is None:
            scores = b.let("b_scores", dot(chunk.q, trans(chunk.k)))
        b.set(scores, self.weighted(scores, chunk))
        b.set(y, dot(scores.to("dot"), chunk.v, y))
        if norm is not None:
            b.set(norm, norm + reduce_sum(scores, 1))
        outer = [] if self.several else chunk.paths[0].row_factors
        if outer:
            b.set(y, scaled(y, outer, column=True))
        if norm is None:
            return y
        if outer:
            b.set(norm, scaled(norm, outer, column=False))
        return self._divide(y, norm)

    def _beside(self) -> Expr | None:
        """x where the result is the contraction plus x, and x can be added before the last product: no divisor."""
        result, linear = self.linear.op.result, self.linear
        if not (isinstance(result, Apply) and result.fn == "add" and linear.attend in result.args):
            return None
        others = [arg for arg in result.args if arg is not linear.attend]
        if linear.normalize != "none" or len(others) != 1 or not {"time", "value"} <= set(others[0].axes):
            return None
        gated = all(term.gates and all(is_positive(factor) for factor in term.row) for term in linear.terms)
        return others[0] if (gated or self.several) and linear.attend not in postorder(others) else None

    def weighted(self, scores: E, chunk: Chunk) -> E:
        """Scores times the weights of the pairs, 0 where a query does not see a key."""
        first = chunk.paths[0]
        if not self.several and first.row is None and not first.col_factors:
            return where(first.support(chunk.rows), scores, 0.0)
        total: E | None = None
        for number, path in enumerate(chunk.paths):
            decay = path.between(chunk.rows)
            ones = where(path.support(chunk.rows), 1.0, 0.0)
            weight = self.b.let(f"b_w{self.suffix(number)}", ones if decay is None else decay)
            factors = scaled(weight, path.col_factors, column=False)
            if self.several:
                factors = scaled(factors, path.row_factors, column=True)
            if path.col_factors or (self.several and path.row_factors):
                self.b.set(weight, factors)
            total = weight if total is None else total + weight
        assert total is not None
        return scores * total

    def _through_states(self, chunk: Chunk, states: tuple[State, ...]) -> tuple[E, E | None]:
        b = self.b
        assert chunk.q is not None
        y: E | None = None
        norm: E | None = None
        for number, (path, state) in enumerate(zip(chunk.paths, states, strict=True)):
            suffix = self.suffix(number)
            decay = path.from_start()
            factors = [b.let(f"b_in{suffix}", decay)] if decay is not None else []
            if self.several:
                factors += path.row_factors
            rows = scaled(dot(chunk.q, state.matrix.to("dot")), factors, column=True)
            if y is None:
                y = b.let("b_y", rows)
            else:
                b.set(y, y + rows)
            if state.keys is not None:
                sums = reduce_sum(chunk.q.to("fp32") * state.keys.row, 1)
                sums = scaled(sums, factors, column=False)
                if norm is None:
                    norm = b.let("b_n", sums)
                else:
                    b.set(norm, norm + sums)
        assert y is not None
        return y, norm

    def _divide(self, y: E, norm: E) -> E:
        """Rows over the sum of their weights: 0 where it is 0 (`sum`); over at least 1 in size (`max1`)."""
        b = self.b
        if self.linear.normalize == "max1":
            floor = pointwise("tl.maximum", pointwise("tl.abs", norm), 1.0)
            b.set(y, y / floor.col)
        else:
            b.set(norm, where(norm.eq(0.0), 0.0, 1.0 / norm))
            b.set(y, y * norm.col)
        return y


def score_address(pointer: E, place: E, length: E, t0: E, rows: E) -> E:
    """Where Q K^T of a chunk is kept, for one of [B, G]."""
    return pointer + (place * length + t0) * size("C") + (rows.col * size("C") + rows.row)


def program(axis: int) -> E:
    """The index of this program along one axis of the grid."""
    return call("tl.program_id", axis, tile=Tile("int32"))
