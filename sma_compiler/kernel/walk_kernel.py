"""The kernel of a walk, fused: one program carries the state of one head and a tile of outer channels."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sma_compiler.ir.nodes import Apply, Expr, postorder
from sma_compiler.kernel.ahead import rates_inside
from sma_compiler.kernel.build import E, call, dot, pointwise, reduce_sum, size, trans, where, zeros
from sma_compiler.kernel.build import path as named
from sma_compiler.kernel.channel_sums import ChannelSums
from sma_compiler.kernel.channels import ChannelPath
from sma_compiler.kernel.chunk import Chunk, Chunked, Place, State
from sma_compiler.kernel.gates import is_folded, scaled
from sma_compiler.kernel.host import Host, Tensors
from sma_compiler.kernel.nodes import Function, Tile
from sma_compiler.kernel.rows import lone
from sma_compiler.kernel.score_kernel import NARROW, score_address
from sma_compiler.kernel.sums import PathSums
from sma_compiler.kernel.walk import Output, Walk

NO_ROWS: Mapping[str, tuple[E, E]] = MappingProxyType({})


class WalkKernel(Chunked):
    """Builds the kernel."""

    keeps = True
    """Whether it may leave states for other kernels."""

    def __init__(self, walk: Walk, host: Host, tensors: Tensors, reserved: frozenset[str], parts: bool) -> None:
        super().__init__(walk, host, tensors, reserved, parts)
        self.ahead = tensors.scores or walk.decayed

    def build(self, name: str) -> Function:
        """The kernel."""
        b, walk = self.b, self.walk
        place = self.place()
        if self.tensors.again:
            self._unless_right(place)
        around = [output.expr for output in walk.outputs]
        around += [walk.sums.other] if walk.sums is not None else []
        rows = {output.name: self._rows(place, output) for output in walk.outputs if not output.optional}
        static = place.inputs.static((walk.p, walk.s, walk.x, *self.factors(rows=True), *around))
        rates = rates_inside(walk, static)
        sums: PathSums | ChannelSums | None = None
        if walk.sums is not None:
            sums = ChannelSums(self, place) if self.wide else PathSums(self, place)
        states = self.initial_states(place)
        reach = b.let("b_reach", zeros(self.inner)) if self.alone else None
        b.space()
        with b.loop("t0", self.steps(place), Tile("int32")) as t0:
            chunk = self.chunk(place, static, rates, t0, around)
            for number in range(len(states) if walk.scales_keys else 0):
                self.grown(chunk, number)
            if reach is not None and chunk.within is not None:
                b.set(reach, pointwise("tl.maximum", reach, chunk.within.reach()))
            if sums is not None:
                sums.meet(chunk, states)
            beside = self.beside()
            y = self.rows_of(place, chunk, states, beside, sums)
            self.advance(chunk, states)
            self.write(place, chunk, beside, y, rows)
        if reach is not None:
            b.section(
                "How far powers of 2 reach: where they leave the range of bf16, other kernels write all of it again"
            )
            at = self.arguments.pointer("reach", self.host.decayed["reach"]) + place.inputs.place()
            b.do(call("tl.store", at, call("tl.max", reach, 0, tile=Tile("fp32")), tile=Tile("ptr")))
        self.final_states(place, states)
        carries = f"carries the state of one head and {self.outer} {walk.outer} channels along a sequence"
        doc = f"One program {carries}{', from its end' if walk.backward else ''}."
        return b.function(name, (doc,), self.arguments.parameters, jit=True)

    def _unless_right(self, place: Place) -> None:
        """Leave what the walk that decays operands by itself has written right."""
        b = self.b
        reach = self.arguments.pointer("reach", self.host.decayed["reach"]) + place.inputs.place()
        narrow = call("tl.load", reach, tile=Tile("fp32")) < NARROW
        with b.branch(named("tl.bfloat16").eq(named("DOT")).both(narrow)):
            b.give(None)

    def _keep_state(self, place: Place, chunk: Chunk, state: State) -> None:
        """Keep the state that comes into the chunk, for kernels that work chunk by chunk."""
        b = self.b
        b.section("The state that comes into the chunk is kept")
        with b.branch(self.arguments.pointer("states", self.tensors.sums["states", 0]).given()):
            self.keep_of_chunk(place, chunk.t0, state)

    def _rows(self, place: Place, output: Output) -> tuple[E, E]:
        return place.inputs.result(output.name, self.tensors.outputs[output.name], output.axes)

    def write(
        self, place: Place, chunk: Chunk, beside: Expr | None, y: E, rows: Mapping[str, tuple[E, E]] = NO_ROWS
    ) -> None:
        """Write all outputs. y: the contraction's rows, or with `beside` the only output. rows: where some begin."""
        walk = self.walk
        self.b.section("Output")
        chunk.lowering.bind(walk.outputs[0].expr if beside is not None else walk.result, y)
        for output in walk.outputs:
            self.write_output(place, chunk, output, rows.get(output.name))

    def _scores(self, place: Place, chunk: Chunk) -> E:
        """P S^T of the chunk, [C, C], as it was made ahead."""
        host, inputs = self.host, place.inputs
        length = self.arguments.integer("T", host.sizes["time"])
        pointer = self.arguments.pointer("scores", host.scores)
        index = inputs.row()
        if not self.walk.decayed:
            groups = self.arguments.integer("G", host.groups)
            shared = self.arguments.constant("G_SHARED", host.heads // host.groups)
            index = inputs.batch * groups + inputs.head // shared
        at = score_address(pointer, index, length, chunk.t0, chunk.rows.offsets)
        value = self.b.helper("load", at, chunk.rows.valid.col, size("MASKED"), dtype="in")
        value = value.to("dot" if self.walk.decayed else "fp32")
        return self.b.let("b_scores", trans(value) if self.walk.backward else value)

    def _own_scores(self, chunk: Chunk) -> E:
        """The weighted scores of the chunk's pairs, [C, C], of operands that count from its start."""
        b, offsets = self.b, chunk.rows.offsets
        assert chunk.p is not None
        late, early = (offsets.row, offsets.col) if self.walk.backward else (offsets.col, offsets.row)
        b.section("Pairs inside the chunk")
        scores = b.let("b_scores", dot(chunk.p, trans(chunk.s)))
        seen = late > early if self.walk.terms[0].strict else late >= early
        return b.let("b_p", where(seen, scores, 0.0).to("dot"))

    def rows_of(
        self,
        place: Place,
        chunk: Chunk,
        states: tuple[State, ...],
        beside: Expr | None,
        sums: PathSums | ChannelSums | None,
    ) -> E:
        """The contraction's rows, [C, outer]; where they are a sum with `beside`, the sum."""
        b, walk = self.b, self.walk
        if chunk.channel is not None:
            assert not isinstance(sums, PathSums)
            return self._channel_rows(chunk, chunk.channel, states[0], sums)
        assert not isinstance(sums, ChannelSums)
        made = self._own_scores(chunk) if self.alone else self._scores(place, chunk) if self.ahead else None
        narrow = self.ahead and walk.normalize == "none"
        first = narrow or (sums is not None and sums.asked.pairs)
        scores = self._pairs(place, chunk, made, sums) if first else None
        if scores is not None and narrow and not walk.decayed:
            scores = b.let("b_p", scores.to("dot"))
        keeps = self.keeps and walk.sums is None and ("states", 0) in self.tensors.sums
        moved = self.alone and walk.backward
        if keeps and moved:
            self._keep_state(place, chunk, states[0])
        b.section(f"Pairs with what lies {'after' if walk.backward else 'before'} the chunk, through the state")
        if moved:
            _, across = self.leaving(chunk, 0)
            b.set(states[0].matrix, states[0].matrix * across)
        y, norm = self._through_states(chunk, states, sums)
        if keeps and not moved:
            self._keep_state(place, chunk, states[0])
        if beside is not None:
            b.set(y, y + chunk.lowering.value(beside))
        if scores is None:
            scores = self._pairs(place, chunk, made, sums)
        values = self.grown(chunk, 0)[1] if walk.decayed else chunk.x
        b.set(y, self.plus_product(y, scores if walk.decayed else scores.to("dot"), values, chunk.unit))
        if norm is not None:
            b.set(norm, norm + reduce_sum(scores, 1))
        outer = [] if self.several else list(chunk.paths[0].rows.factors)
        outer += [chunk.weight] if chunk.weight is not None else []
        if outer:
            b.set(y, scaled(y, outer, column=True))
        if norm is None:
            return y
        if outer:
            b.set(norm, scaled(norm, outer, column=False))
        self._keep_norm(place, chunk, norm)
        return self._divide(y, norm)

    def _channel_rows(self, chunk: Chunk, path: ChannelPath, state: State, sums: ChannelSums | None) -> E:
        """The same where gates differ by the outer channels."""
        b = self.b
        assert chunk.p is not None
        b.section(f"Pairs with what lies {'after' if self.walk.backward else 'before'} the chunk, through the state")
        factors = chunk.paths[0].rows.factors
        y = b.let("b_y", scaled(dot(chunk.p, state.matrix.to("dot")) * path.entering(), factors, column=True))
        b.section("Pairs inside the chunk")
        scores = b.let("b_scores", dot(chunk.p, trans(chunk.s)))
        weighted = scaled(scores, [*chunk.paths[0].columns.factors, *factors], column=False)
        if weighted is not scores:
            b.set(scores, weighted)
        own: E | None = None
        decay = path.own()
        if not path.strict:
            offsets = chunk.rows.offsets
            own = reduce_sum(where(offsets.col.eq(offsets.row), scores, 0.0), 1)
            own = b.let("b_diagonal", own).col * chunk.x
            own = b.let("b_own", own if decay is None else own * decay)
        if sums is not None:
            sums.weigh(chunk, path, y, scores, own)
        else:
            path.add_product(scores, chunk.x, y)
        if own is not None:
            b.set(y, y + own)
        return y

    def _pairs(self, place: Place, chunk: Chunk, made: E | None, sums: PathSums | None) -> E:
        """The weighted scores of the chunk's pairs, [C, C]. made: the scores, where they were made ahead."""
        b = self.b
        assert chunk.p is not None
        b.section("Pairs inside the chunk")
        scores = made or b.let("b_scores", dot(chunk.p, trans(chunk.s)))
        if self.walk.decayed:
            return scores
        if self.walk.offset is not None:
            more = _product(chunk.a, chunk.b)
            b.set(scores, scores - -more if self.exact else scores + more)
        if self.walk.lone and not self.parts:
            first, without_state = lone(self.walk, self.tensors, self.arguments, place.span)
            own = (chunk.t0 + chunk.rows.offsets).eq(first)
            with b.branch(without_state):
                b.set(scores, where(own.col if self.walk.lone == "rows" else own.row, 0.0, scores))
        decays = self._decays(chunk)
        if not self.several:
            if not decays and sums is None:  # factors first: of zeros times a factor ptxas 12.8 dies in fp64
                weighted = self._with_factors(chunk, scores, decays)
                b.set(scores, where(chunk.paths[0].support(chunk.rows), weighted, 0.0))
                return scores
            seen = scores * decays.pop() if decays else where(chunk.paths[0].support(chunk.rows), scores, 0.0)
            b.set(scores, seen)
        if sums is not None and sums.asked.pairs:
            sums.weigh(chunk, scores, decays)
        weighted = self._with_factors(chunk, scores, decays)
        if weighted is not scores:
            b.set(scores, weighted)
        return scores

    def beside(self) -> Expr | None:
        """x where the result is the contraction plus x, and x can be added before the last product: no divisor."""
        walk = self.walk
        result = walk.outputs[0].expr if len(walk.outputs) == 1 else None
        if not (isinstance(result, Apply) and result.fn == "add" and walk.result in result.args):
            return None
        others = [arg for arg in result.args if arg is not walk.result]
        last = self.wide or walk.normalize != "none" or walk.weight is not None
        if last or len(others) != 1 or not {"time", walk.outer} <= set(others[0].axes):
            return None
        gated = all(term.gates and all(is_folded(term, factor) for factor in term.row) for term in walk.terms)
        return others[0] if (gated or self.several) and walk.result not in postorder(others) else None

    def _decays(self, chunk: Chunk) -> list[E]:
        """The decays of pairs by stream, 0 where a row does not see a column; none where that is all there is."""
        if not self.several and chunk.paths[0].rows.exponent is None:
            return []
        found: list[E] = []
        for number, path in enumerate(chunk.paths):
            decay = path.between(chunk.rows)
            ones = where(path.support(chunk.rows), 1.0, 0.0)
            found.append(self.b.let(f"b_w{self.suffix(number)}", ones if decay is None else decay))
        return found

    def _with_factors(self, chunk: Chunk, scores: E, decays: list[E]) -> E:
        """Scores times the factors that are no exponents, and the decays of several streams.

        The rows of one stream alone have theirs at the end.
        """
        if not self.several:
            return scaled(scores, chunk.paths[0].columns.factors, column=False)
        total: E | None = None
        for path, weight in zip(chunk.paths, decays, strict=True):
            whole = scaled(scaled(weight, path.columns.factors, column=False), path.rows.factors, column=True)
            if path.columns.factors or path.rows.factors:
                self.b.set(weight, whole)
            total = weight if total is None else total + weight
        assert total is not None
        return scores * total

    def _through_states(self, chunk: Chunk, states: tuple[State, ...], sums: PathSums | None) -> tuple[E, E | None]:
        """What rows have through the states of all streams, and the sums of their weights.

        Vectors come first, so that fewer tiles are held while products wait for each other.
        """
        b = self.b
        assert chunk.p is not None
        y: E | None = None
        norm: E | None = None
        starts: list[tuple[list[E], E | None]] = []
        for number, (path, state) in enumerate(zip(chunk.paths, states, strict=True)):
            decay = path.entering()
            factors = [b.let(f"b_in{self.suffix(number)}", decay)] if decay is not None else []
            if self.several and sums is None:
                factors += path.rows.factors
            starts.append((factors, self._offset_rows(chunk, state, number)))
            if self.walk.normalize != "none" and state.vector is not None:
                divisors = scaled(reduce_sum(chunk.p.to("fp32") * state.vector.row, 1), factors, column=False)
                if norm is None:
                    norm = b.let("b_n", divisors)
                else:
                    b.set(norm, norm + divisors)
        self.advance_vectors(chunk, states)
        for number, (state, (factors, start)) in enumerate(zip(states, starts, strict=True)):
            rows = self._through_state(chunk, state, number, factors, start, sums)
            if y is None:
                y = b.named("b_y", rows)
            else:
                b.set(y, y + rows)
        assert y is not None
        return y, norm

    def _offset_rows(self, chunk: Chunk, state: State, number: int) -> E | None:
        """What rows [C, outer] have of the scores' rank-one addition through the state."""
        if self.walk.offset is None or state.vector is None:
            return None
        vector = state.vector.row
        rows = vector + zeros("C", self.outer) if chunk.a is None else chunk.a.col * vector
        return self.b.let(f"b_y{self.suffix(number)}", rows)

    def _through_state(
        self, chunk: Chunk, state: State, number: int, factors: list[E], start: E | None, sums: PathSums | None
    ) -> E:
        """What rows [C, outer] have through the state of one stream, with the factors; summed where that is asked."""
        assert chunk.p is not None
        matrix = state.matrix
        if chunk.unit is not None:
            up, down = self.unit(matrix)
            matrix, factors = matrix * up, [down, *factors]
            if start is not None:
                self.b.set(start, start * up)
        if start is not None:
            self.b.set(start, self.plus_product(start, chunk.p, matrix.to("dot")))
        rows = scaled(start or self.times_state(chunk.p, matrix), factors, column=True)
        if sums is None:
            return rows
        rows = self.b.named(f"b_y{self.suffix(number)}", rows)
        sums.through(chunk, number, rows)
        return scaled(rows, chunk.paths[number].rows.factors if self.several else [], column=True)

    def times_state(self, p: E, state: E) -> E:
        """An operand [C, inner] times a state, [C, outer]."""
        if not self.walk.fine:
            return dot(p, state.to("dot"))
        self.b.helpers.add("fine_dot")
        tile = Tile("fp32", (p.tile.shape[0], state.tile.shape[1]))
        return call("fine_dot", p, state, named("DOT"), named("PRECISION"), tile=tile)

    def _keep_norm(self, place: Place, chunk: Chunk, norm: E) -> None:
        """Write what rows are divided by, [B, T, H], once for all tiles."""
        if self.tensors.norm is None:
            return
        b, inputs = self.b, place.inputs
        pointer = self.arguments.pointer("norm", self.tensors.norm)
        heads = self.arguments.integer("H", self.host.heads)
        length = self.arguments.integer("T", self.host.sizes["time"])
        with b.branch(pointer.given()):
            at = pointer + (inputs.batch * length + (chunk.t0 + chunk.rows.offsets)) * heads + inputs.head
            b.do(call("tl.store", at, norm, mask=chunk.rows.valid & place.tile.eq(0), tile=Tile("ptr")))

    def _divide(self, y: E, norm: E) -> E:
        """Rows over the sum of their weights: 0 where it is 0 (`sum`); over at least 1 in size (`max1`)."""
        b = self.b
        if self.walk.normalize == "max1":
            floor = pointwise("tl.maximum", pointwise("tl.abs", norm), 1.0)
            b.set(y, y / floor.col)
        else:
            b.set(norm, where(norm.eq(0.0), 0.0, 1.0 / norm))
            b.set(y, y * norm.col)
        return y


def _product(a: E | None, b: E | None) -> E | float:
    """a_r b_c as a tile that broadcasts; None stands for 1."""
    if a is None or b is None:
        return b.row if b is not None else a.col if a is not None else 1.0
    return a.col * b.row
