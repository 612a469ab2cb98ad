"""What the kernels of the chunked plan share: which program has which tiles, the tiles of a chunk, how states advance.

A walk goes through a sequence chunk by chunk of C positions, with the state of one head in registers: the matrix S
[inner, outer], what the columns so far sum to. Per chunk, with S the state that comes in:

    A = (P S^T) * decay            the pairs inside the chunk
    Y = A X + decay (P S)          and those with what lies before it (after it, where the walk goes backward)
    S = decay S + S^T (decay X)
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

from sma_compiler.ir.nodes import Const, Expr
from sma_compiler.kernel.ahead import Split, address, fill, split
from sma_compiler.kernel.build import E, arange, call, dot, pointwise, reduce_sum, size, trans, zeros
from sma_compiler.kernel.channel_operands import decayed, loaded
from sma_compiler.kernel.channels import ChannelPath, channel_path
from sma_compiler.kernel.gates import Path, Rows, path_of, scaled, with_factors
from sma_compiler.kernel.host import Host, Tensors, suffix
from sma_compiler.kernel.inputs import EXTENT, Inputs
from sma_compiler.kernel.linear import is_tensor, plain
from sma_compiler.kernel.lower import Lowering, operand, wide_operand
from sma_compiler.kernel.maker import Maker, program
from sma_compiler.kernel.nodes import Tile
from sma_compiler.kernel.rows import Span, entry_of_slot, sequence, slots
from sma_compiler.kernel.walk import Output, Walk
from sma_compiler.mask.nodes import Gate

CHANNELS = {"key": "K", "value": "V"}
"""The size of each channel axis."""


@dataclass(frozen=True)
class State:
    """What one stream carries: the matrix [inner, outer], and the vector along `Walk.vector` where there is one."""

    matrix: E
    vector: E | None


@dataclass(frozen=True)
class Loaded:
    """The rows t0 .. t0 + C, and what was loaded of them."""

    t0: E
    rows: Rows
    lowering: Lowering


@dataclass(frozen=True)
class Chunk(Loaded):
    """The tiles of one chunk: its rows, operands [C, inner], [C, inner], [C, outer], and the path of every stream.

    t0: its first position. a, b: the factors of the scores' rank-one addition; None: 1, or no addition. weight: what
    rows are multiplied with; None: 1. other: the operand [C, outer] of `Walk.sums`. p, a, weight and other are missing
    where only columns count. unit: what `Walk.quotient` and b were multiplied with, and its inverse. channel: the path
    of a gate that differs by the outer channels; x and other are fp32 then. across [inner]: the decay of a state over
    the chunk where the gate differs by the inner ones; p and s are decayed then. within: its path, where the walk
    decays them itself.
    """

    p: E | None
    s: E
    x: E
    a: E | None
    b: E | None
    other: E | None
    paths: tuple[Path, ...]
    weight: E | None
    channel: ChannelPath | None = None
    across: E | None = None
    leaving: dict[int, tuple[list[E], E | None]] = field(default_factory=dict)
    grown: dict[int, E] = field(default_factory=dict)
    within: ChannelPath | None = None
    unit: tuple[E, E] | None = None


@dataclass(frozen=True)
class Place:
    """Which program this is: its tensors, the offsets of a chunk's rows, its sequence and what it has of it.

    tile: which tile of the outer channels. part: which part of the sequence, where programs share it. first, end: the
    positions it walks.
    """

    inputs: Inputs
    offsets: E
    span: Span
    tile: E
    part: E | None
    first: E
    end: E


class Chunked(Maker):
    """Builds a kernel that goes through the chunks of a walk.

    parts: whether several programs share a sequence, each with a part of it.
    """

    rounds = True
    """Whether products take x as it is loaded."""

    def __init__(self, walk: Walk, host: Host, tensors: Tensors, reserved: frozenset[str], parts: bool) -> None:
        super().__init__(host, reserved)
        self.walk = walk
        self.tensors = tensors
        self.parts = parts
        self.inner, self.outer = EXTENT[walk.inner], EXTENT[walk.outer]
        self.splits = tuple(split(term) for term in walk.paths)
        self.several = len(walk.terms) > 1
        self.exact = any(term.exact for term in walk.terms)
        self.wide = any(walk.outer in term.axes for term in walk.terms)
        """Whether gates differ by the outer channels."""
        self.alone = walk.decayed and tensors.alone
        self.guarded = walk.sums is not None
        """Whether what rows past the end have must be 0 although nothing is written there."""

    def place(self) -> Place:
        """Say which program this is."""
        b, outer = self.b, self.walk.outer
        letter, channels = outer[0], CHANNELS[outer]
        b.section(f"Which {outer} channels, head and sequence" + (", and which part of it" if self.parts else ""))
        tiles = b.let(f"n_{letter}", call("tl.cdiv", size(channels), size(self.outer), tile=Tile("int32")))
        tile = b.let(f"i_{letter}", program(0) % tiles)
        i_h = b.let("i_h", (program(0) // tiles).to("int64"))
        if not self.parts:
            part = None
            span = sequence(b, self.arguments, self.host, b.let("i_s", program(1).to("int64")), self.spacing())
            first, end = span.begin, span.end
        else:
            parts = self.arguments.integer("PARTS", self.tensors.parts)
            i_s = b.let("i_s", (program(1) // parts).to("int64"))
            span = sequence(b, self.arguments, self.host, i_s, self.spacing())
            part = b.let("i_p", program(1) % parts)
            width = self.arguments.integer("SPAN", self.tensors.span)
            first = b.let("first", span.begin + part * width)
            end = b.let("last", pointwise("tl.minimum", first + width, span.end, dtype="int32"))
        offsets = b.let("o_c", arange("C"), show=False)
        held = {axis: arange(EXTENT[axis]) for axis in CHANNELS}
        held[outer] = tile * size(self.outer) + held[outer]
        held = {axis: b.let(f"o_{axis[0]}", held[axis], show=False) for axis in CHANNELS}
        inputs = Inputs(b, self.arguments, self.host, span.batch, i_h, span.sequence)
        for axis, channel in held.items():
            inputs.use_channels(axis, channel, b.let(f"m_{axis[0]}", channel < size(CHANNELS[axis]), show=False))
        b.section("Where the rows of this head begin")
        return Place(inputs, offsets, span, tile, part, first, end)

    def slot(self, place: Place, t0: E) -> E:
        """The entry of a chunk in arrays with one for each."""
        return place.span.slot + (t0 - place.span.begin) // self.spacing()

    def spacing(self) -> E:
        """How many positions have an entry in arrays with one for each chunk."""
        return size("C")

    def state_of_part(self, place: Place) -> E:
        """The index of this program's state in [S, PARTS, H]."""
        inputs = place.inputs
        if place.part is None:
            return inputs.place()
        part = inputs.sequence * self.arguments.integer("PARTS", self.tensors.parts) + place.part
        return part * self.arguments.integer("H", self.host.heads) + inputs.head

    def suffix(self, number: int) -> str:
        """What tells the variables of several streams apart."""
        return suffix(number, len(self.walk.terms))

    def steps(self, place: Place) -> E:
        """Where chunks start, from the first or from the last."""
        start, stop, step = place.first, place.end, size("C")
        if self.walk.backward:
            count = call("tl.cdiv", place.end - place.first, size("C"), tile=Tile("int32"))
            start, stop, step = place.first + (count - 1) * size("C"), place.first - 1, -size("C")
        options = {"disable_licm": True} if self.alone else {}
        return call("tl.range", start, stop, step, tile=Tile("int32"), num_stages=size("STAGES"), **options)

    def factors(self, rows: bool) -> tuple[Expr, ...]:
        """What a kernel reads to weigh pairs, besides the products; without `rows`, what columns and paths need."""
        found: list[Expr] = []
        for term, path, made in zip(self.walk.terms, self.walk.paths, self.splits, strict=True):
            late, early = (path.row, path.col) if made is None else (made.row, made.col)
            at_rows, at_columns = (early, late) if self.walk.backward else (late, early)
            found += [*(at_rows if rows else ()), *at_columns]
            found += [gate.log for gate in term.gates] if made is None and (self.alone or not self.walk.decayed) else []
        if self.walk.offset is not None:
            found += self.walk.offset if rows else self.walk.offset[1:]
        return (*found, self.walk.weight) if rows and self.walk.weight is not None else tuple(found)

    def chunk(
        self,
        place: Place,
        static: Lowering,
        rates: dict[Gate, E],
        t0: E,
        around: Iterable[Expr],
        rows: bool = True,
    ) -> Chunk:
        """Load rows t0 .. t0 + C and make the paths.

        around: further expressions of the same rows. rows: False for what only the columns decide.
        """
        b, walk, inputs = self.b, self.walk, place.inputs
        beside = walk.sums.other if rows and walk.sums is not None else None
        scored = [*((walk.p,) if rows else ()), walk.s]
        operands = [*(scored if not walk.decayed else ()), walk.x, *((beside,) if beside is not None else ())]
        b.section("Rows t0 .. t0 + C; what lies past the end is read as 0")
        valid = b.let("m_t", t0 + place.offsets < place.end, show=False)
        found = Rows(place.offsets, valid, pointwise("tl.minimum", place.end - t0, size("C"), dtype="int32"))
        inputs.enter(valid)
        kept = {plain(x) for x in operands if is_tensor(x) and (self.rounds or x is not walk.x)}
        exprs = (*operands, *(scored if self.alone else ()), *self.factors(rows), *around)
        lowering = inputs.chunk(exprs, static, t0, place.offsets, valid, kept)
        p: E | None
        unit: tuple[E, E] | None = None
        across: E | None = None
        within: ChannelPath | None = None
        if self.alone:
            (term,) = walk.paths
            within = channel_path(term, False, lowering, found, inputs.inside[walk.inner])
            p, s, across = decayed(b, walk, within, lowering, inputs.inside[walk.inner], rows)
        elif walk.decayed:
            p, s, across = loaded(self, place, t0, found)
        else:
            p = operand(b, walk.p, walk.names[0], lowering, inputs.inside[walk.inner]) if rows else None
            if walk.quotient == "s":
                quotient = wide_operand(b, walk.s, walk.names[1], lowering, inputs.inside[walk.inner])
                s, unit = self.in_units(quotient, walk.names[1])
            else:
                s = operand(b, walk.s, walk.names[1], lowering, inputs.inside[walk.inner])
        along_outer = operand if self.rounds and not self.wide else wide_operand
        if walk.quotient == "x":
            quotient = wide_operand(b, walk.x, walk.names[2], lowering, inputs.inside[walk.outer])
            x, unit = self.in_units(quotient, walk.names[2])
        else:
            x = along_outer(b, walk.x, walk.names[2], lowering, inputs.inside[walk.outer])
        other = None
        if beside is not None and walk.sums is not None:
            other = along_outer(b, beside, walk.sums.name, lowering, inputs.inside[walk.outer])
        first, second = walk.offset or (None, None)
        a = self._offset(first, lowering, valid) if rows else None
        paths = self._paths(place, lowering, found, rates, t0, rows)
        channel = None
        if self.wide:
            (term,) = walk.paths
            channel = channel_path(term, walk.backward, lowering, found, inputs.inside[walk.outer])
        b_offset = self._offset(second, lowering, valid)
        if b_offset is not None and unit is not None:
            b.set(b_offset, b_offset * unit[0])
        weight = lowering.value(walk.weight) if rows and walk.weight is not None else None
        made = (p, s, x, a, b_offset, other, paths, weight, channel, across)
        return Chunk(t0, found, lowering, *made, within=within, unit=unit)

    def _offset(self, expr: Expr | None, lowering: Lowering, valid: E) -> E | None:
        if expr is None or (isinstance(expr, Const) and expr.value == 1):
            return None
        return self.b.let("b_offset", self.b.helper("keep", lowering.value(expr), valid, size("MASKED")))

    def _paths(
        self, place: Place, lowering: Lowering, rows: Rows, rates: dict[Gate, E], t0: E, at_rows: bool
    ) -> tuple[Path, ...]:
        """The path of every stream: loaded where it was made ahead."""
        if any(term.gates or term.row or term.col for term in self.walk.terms):
            self.b.section("Decay from the start of the chunk, as powers of 2")
        backward = self.walk.backward
        found: list[Path] = []
        for number, (term, made) in enumerate(zip(self.walk.paths, self.splits, strict=True)):
            suffix = self.suffix(number)
            path = Path(term.strict, backward, guarded=self.guarded, exact=term.exact)
            if term.axes:
                term = replace(term, gates=())
            late, early = (term.row, term.col) if made is None else (made.row, made.col)
            if not at_rows:
                late, early = (late, ()) if backward else ((), early)
            if made is None:
                seen = replace(term, row=late, col=early)
                found.append(path_of(seen, rates, lowering, rows, suffix, path))
            else:
                fill(path, self._loaded(place, made, number, rows, t0, at_rows))
                found.append(with_factors(path, late, early, lowering, rows, suffix))
        return tuple(found)

    def _loaded(self, place: Place, made: Split, number: int, rows: Rows, t0: E, at_rows: bool) -> dict[str, E]:
        """The arrays of a path. Exponents of late ends past the end of the sequence are -inf where it matters."""
        b, backward = self.b, self.walk.backward
        length = self.arguments.integer("T", self.host.sizes["time"])
        unused = "" if at_rows or not made.two_ended else "col" if backward else "row"
        found: dict[str, E] = {}
        for part in made.arrays:
            if unused and part.endswith(unused):
                continue
            pointer = self.arguments.pointer(f"{part}{self.suffix(number)}", self.host.gates[number, part])
            slot = self.slot(place, t0)
            count = slots(self.arguments, self.host)
            at = address(pointer, part, place.inputs.row(), t0, rows, length, count, slot)
            dtype = "int32" if part.startswith("cut") else "fp32"
            if part.endswith("all"):
                value = call("tl.load", at, tile=Tile(dtype))
            else:
                value = b.helper("load", at, rows.valid, size("MASKED"), dtype=dtype)
            found[part] = b.let(f"b_{part}{self.suffix(number)}", value)
        if "row" in found and (backward or self.guarded):
            late = b.helper("never", found["row"], rows.valid, size("MASKED"))
            if made.two_ended:
                b.set(found["row"], late)
            else:
                found["col"] = found["row"]
                found["row"] = b.let(f"b_late{self.suffix(number)}", late)
        return found

    def advance(self, chunk: Chunk, states: tuple[State, ...]) -> None:
        """Carry the matrices of the states over a chunk; after `advance_vectors`."""
        b = self.b
        b.section(f"State at the {'start' if self.walk.backward else 'end'} of the chunk")
        for number, state in enumerate(states):
            _, across = self.leaving(chunk, number)
            early = self.alone and chunk.p is not None
            matrix = state.matrix if across is None or early else state.matrix * across
            b.set(state.matrix, self.plus_product(matrix, *self.grown(chunk, number), chunk.unit))
            if early and not self.walk.backward and across is not None:
                b.set(state.matrix, state.matrix * across)

    def grown(self, chunk: Chunk, number: int) -> tuple[E, E]:
        """s^T and x as the state of a stream grows by their product, one with the factors of columns; named once."""
        keyed = self.walk.scales_keys
        if (found := chunk.grown.get(number)) is None:
            factors, _ = self.leaving(chunk, number)
            found = chunk.s if keyed else chunk.x
            if factors:
                whole = scaled(found.to("fp32"), factors, column=True)
                found = self.b.let(f"b_u{self.suffix(number)}", whole.to("dot"))
            chunk.grown[number] = found
        return (trans(found), chunk.x.to("dot")) if keyed else (trans(chunk.s), found.to("dot"))

    def advance_vectors(self, chunk: Chunk, states: tuple[State, ...]) -> None:
        """Carry the vectors of the states over a chunk."""
        for number, state in enumerate(states):
            if state.vector is not None:
                factors, across = self.leaving(chunk, number)
                summed, more = (chunk.s, []) if self.walk.offset is None else (chunk.x, [chunk.b] if chunk.b else [])
                grown = reduce_sum(scaled(summed.to("fp32"), [*more, *factors], column=True), 0)
                grown = grown * chunk.unit[1] if chunk.unit is not None and more else grown
                self.b.set(state.vector, (state.vector if across is None else state.vector * across) + grown)

    def leaving(self, chunk: Chunk, number: int) -> tuple[list[E], E | None]:
        """The factors of columns on their way out of a chunk, and the decay over all of it; named once."""
        if number not in chunk.leaving:
            path, suffix = chunk.paths[number], self.suffix(number)
            decay, across = path.leaving(), path.across()
            if chunk.channel is not None:
                decay, across = chunk.channel.leaving(), chunk.channel.across()
            factors = path.columns.factors
            if decay is not None:
                factors = [self.b.let(f"b_out{suffix}", decay), *factors]
            if across is not None:
                across = self.b.let(f"b_across{suffix}", across)
            if chunk.channel is not None and across is not None:
                across = across.row
            elif chunk.across is not None:
                across = chunk.across.col
            chunk.leaving[number] = factors, across
        return chunk.leaving[number]

    def plus_product(self, total: E, a: E, b: E, unit: tuple[E, E] | None = None) -> E:
        """A tile plus a product, whose operand may be in a unit; where it must be exact what Triton sees is no sum."""
        total = total if unit is None else total * unit[0]
        found = total - dot(a, -b) if self.exact else dot(a, b, total)
        return found if unit is None else found * unit[1]

    def empty_state(self, number: int) -> State:
        """A state of zeros."""
        b, suffix = self.b, self.suffix(number)
        matrix = b.let(f"b_s{suffix}", zeros(self.inner, self.outer))
        if not self.walk.vector:
            return State(matrix, None)
        return State(matrix, b.let(f"b_z{suffix}", zeros(EXTENT[self.walk.vector])))

    def initial_states(self, place: Place) -> tuple[State, ...]:
        """The states that the program begins with, from memory where there are any."""
        b, walk = self.b, self.walk
        given = self.tensors.local if self.parts else self.tensors.initial
        _, s, x = walk.names
        b.section(f"State: what {s} and {x} {'after' if walk.backward else 'before'} a position sum to")
        index = self.state_of_part(place)
        found: list[State] = []
        for number in range(len(walk.terms)):
            state = self.empty_state(number)
            found.append(state)
            if ("matrix", number) in given:
                pointer = self.arguments.pointer(f"initial{self.suffix(number)}", given["matrix", number])
                with b.branch(pointer.given()):
                    b.set(state.matrix, self.given_state(place, pointer, index, state.matrix))
            if state.vector is not None and ("vector", number) in given:
                pointer = self.arguments.pointer(f"initial_keys{self.suffix(number)}", given["vector", number])
                with b.branch(pointer.given()):
                    at, mask = place.inputs.vector(pointer, index)
                    b.set(state.vector, call("tl.load", at, mask=mask, other=0.0, tile=state.vector.tile))
        return tuple(found)

    def given_state(self, place: Place, pointer: E, index: E, state: E) -> E:
        """A matrix that the program begins with."""
        at, mask = place.inputs.matrix(pointer, index, self.walk.inner, self.walk.outer)
        return call("tl.load", at, mask=mask, other=0.0, tile=state.tile)

    def final_states(self, place: Place, states: tuple[State, ...]) -> None:
        """Write the states that the program ends with, where there is a place for them."""
        b, final = self.b, self.tensors.final
        b.space()
        last = None
        if place.part is not None:
            parts = self.arguments.integer("PARTS", self.tensors.parts)
            last = place.part.eq(0 if self.walk.backward else parts - 1)
        index = place.inputs.place()
        for number, state in enumerate(states):
            suffix = self.suffix(number)
            for part, name in (("matrix", "final"), ("vector", "final_keys")):
                if (part, number) in final:
                    pointer = self.arguments.pointer(f"{name}{suffix}", final[part, number])
                    with b.branch(pointer.given()):
                        self.keep_state(place, state, part, pointer, index, only=last)

    def keep_state(self, place: Place, state: State, part: str, pointer: E, index: E, only: E | None = None) -> None:
        """Write the matrix or the vector of a state to its place, where `only` holds."""
        value = state.matrix if part == "matrix" else state.vector
        assert value is not None
        if part == "matrix":
            at, mask = place.inputs.matrix(pointer, index, self.walk.inner, self.walk.outer)
        else:
            at, mask = place.inputs.vector(pointer, index)
        self.b.do(call("tl.store", at, value, mask=mask if only is None else mask & only, tile=Tile("ptr")))

    def keep_of_chunk(self, place: Place, t0: E, state: State) -> None:
        """Write the state that comes into a chunk to its place."""
        at, mask = self._address_of_chunk(place, t0)
        self.b.helpers.add("store")
        self.b.do(call("store", at, state.matrix, mask, size("MASKED"), tile=Tile("ptr")))

    def state_of_chunk(self, place: Place, t0: E) -> E:
        """The state that was kept of one chunk."""
        at, mask = self._address_of_chunk(place, t0)
        value = self.b.helper("load", at, mask, size("MASKED"), dtype="in")
        return self.b.let("b_kept", value)

    def _address_of_chunk(self, place: Place, t0: E) -> tuple[E, E]:
        """Where the state of a chunk is kept, of [B, H, slots, K, V]."""
        pointer = self.arguments.pointer("states", self.tensors.sums["states", 0])
        index = place.inputs.row() * slots(self.arguments, self.host) + self.slot(place, t0)
        return place.inputs.matrix(pointer, index, self.walk.inner, self.walk.outer)

    def row_of_tile(self, place: Place) -> E:
        """The index of this program's rows in [tiles, B, H]."""
        batches = self.arguments.integer("B", self.host.sizes["batch"])
        heads = self.arguments.integer("H", self.host.heads)
        return (place.tile * batches + place.inputs.batch) * heads + place.inputs.head

    def address_of_anchor(self, place: Place, pointer: E, t0: E) -> E:
        """Where this program keeps a number of a chunk, of [tiles, B, H, slots]."""
        return pointer + self.row_of_tile(place) * slots(self.arguments, self.host) + self.slot(place, t0)

    def write_row(self, place: Place, pointer: E, chunk: Loaded, value: E) -> None:
        """Write a number for each row of a chunk to [tiles, B, H, T]."""
        length = self.arguments.integer("T", self.host.sizes["time"])
        at = pointer + self.row_of_tile(place) * length + (chunk.t0 + chunk.rows.offsets)
        self.b.helpers.add("store")
        self.b.do(call("store", at, value, chunk.rows.valid, size("MASKED"), tile=Tile("ptr")))

    def write_output(self, place: Place, chunk: Loaded, output: Output, rows: tuple[E, E] | None) -> None:
        """Write an output: its tile, or what its tile sums to. rows: where, if that is known."""
        b, outer = self.b, self.walk.outer
        pointer = self.arguments.pointer(output.name, self.tensors.outputs[output.name])
        value = chunk.lowering.value(output.expr)
        with b.branch(pointer.given()) if output.optional else nullcontext():
            inside = place.inputs.inside[outer]
            if outer not in output.axes:
                value = b.helper("keep", value, inside, size("MASKED"))
                self.write_row(place, pointer, chunk, reduce_sum(value, 1))
            elif "slot" in output.axes:
                value = b.helper("keep", value, inside, size("MASKED"))
                slot = self.slot(place, chunk.t0)
                entry = entry_of_slot(self.arguments, self.host, place.inputs.batch, slot, place.inputs.head)
                offsets, valid = place.inputs.channels[outer]
                at = pointer + entry * size(CHANNELS[outer]) + offsets
                b.helpers.add("store")
                b.do(call("store", at, reduce_sum(value, 0), valid, size("MASKED"), tile=Tile("ptr")))
            else:
                rows = rows or place.inputs.made(output.name, pointer, outer)
                there = partial(place.inputs.addresses, t0=chunk.t0, rows=chunk.rows.offsets, valid=chunk.rows.valid)
                at, mask = there(*rows, outer)
                if output.plus:
                    earlier = self.arguments.pointer(output.plus, self.tensors.outputs[output.plus])
                    more, _ = there(*place.inputs.made(output.plus, earlier, outer), outer)
                    value = value + b.let("b_more", b.helper("load", more, mask, size("MASKED")))
                b.helpers.add("store")
                b.do(call("store", at, value, mask, size("MASKED"), tile=Tile("ptr")))
