"""The backward launcher of an emitted file: `op_backward`, the gradients of every tensor that an op takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace

from sma_compiler.ir.nodes import ParamDecl
from sma_compiler.kernel.backward import Backward, Piece, needs_whole
from sma_compiler.kernel.build import E, Operand, choose, lift, path, sequence
from sma_compiler.kernel.chain import sums_of
from sma_compiler.kernel.check import UNUSED
from sma_compiler.kernel.config import Config
from sma_compiler.kernel.host import SIZES, Host, Tensors, local_states, states_of
from sma_compiler.kernel.maker import pinned
from sma_compiler.kernel.nodes import Function, Parameter
from sma_compiler.kernel.prepare import Kernel, Launch, either, name_of, shape_of, size_of
from sma_compiler.kernel.walk import Walk, forward_walk

COUNTING = ("net", "inter", "rows", "columns", "states", "vectors", "late")
"""Sums that the walk of dq writes; that of dk writes the others, and reads the states."""
MET = ("anchors", "through")
"""Sums that are made where the states of both directions meet."""
STACKED = ("batch", "slot", "head")
"""The axes of parts of gradients that lie in one tensor, where there are several."""

States = dict[tuple[str, int], E]


@dataclass(frozen=True)
class Named:
    """Names in a backward launcher. walks: what each one's pointers stand for; chain: those of the chain kernel.

    initial: the state the op began with; before: its gradient; after: the cotangent of the state it left.
    tiles: how many tiles the outer axis of a walk has, by axis. anchors: how many those of `MET` are.
    """

    walks: dict[str, Tensors]
    chain: Tensors
    initial: States
    before: States
    after: States
    tiles: dict[str, E]
    anchors: E


def named(made: Backward, host: Host, cut: bool = False, *, apart: bool = True) -> Named:
    """Name everything that the walks of a backward pass read and write.

    cut: whether several programs share a sequence. apart: see `ChainKernel`.
    """
    fresh = host.builder.fresh
    forward = forward_walk(made.linear)
    initial, before, after = (states_of(forward, fresh, letter) for letter in ("s0", "ds0", "ds1"))
    asked = (("states", 0), ("late", 0)) if made.gated else sums_of(made, apart=apart)
    sums = {key: path(fresh(f"{key[0]}{key[1] if len(forward.terms) > 1 else ''}")) for key in asked}
    written = {piece.tensor: path(fresh(piece.tensor)) for piece in made.pieces}
    written |= {decl.name: host.parameters[decl.name] for decl in made.reads}
    tiles = {axis: path(fresh(f"tiles_{axis[0]}")) for axis in ("key", "value")}
    parts, span = path(fresh("parts")), path(fresh("span"))

    def tensors(walk: Walk, start: States, end: States, kinds: Iterable[str] = ()) -> Tensors:
        outputs = {name: written[name] for output in walk.outputs for name in (output.name, output.plus) if name}
        if made.gated:
            kinds = ("states", "late") if walk.sums is not None else ()
        asked = {key: x for key, x in sums.items() if key[0] in kinds}
        local = local_states(walk, fresh, f"_{walk.name}") if cut else {}
        return Tensors(parts, span, outputs, start, end, local, asked)

    def only(states: States, part: str) -> States:
        return {key: x for key, x in states.items() if key[0] == part}

    walks = {
        "dq": tensors(made.dq, initial, {}, COUNTING),
        "dk": tensors(made.dk, after, only(before, "vector"), ("through", "states", "vectors", "anchors", "across")),
        made.dv.name: tensors(made.dv, only(after, "matrix"), only(before, "matrix")),
    }
    if made.solved:
        walks[made.dv.name] = replace(walks[made.dv.name], inverse=path(fresh("inverse")))
    if made.before is not None:
        walks[made.before.name] = tensors(made.before, initial, {})
    outputs = {output.name: written[output.name] for output in made.chain.outputs} if made.chain else {}
    return Named(walks, Tensors(parts, span, outputs, sums=sums), initial, before, after, tiles, tiles["key"])


class BackwardLauncher(Launch):
    """Builds the launcher."""

    by_chunk = False
    """Whether walks keep something for every chunk."""
    states = True
    """Whether a state comes in and goes out."""

    def __init__(self, made: Backward, host: Host, names: Named) -> None:
        super().__init__(made.linear, host)
        self.made = made
        self.names = names
        fresh = host.builder.fresh
        self.initial, self.dstate = path(fresh("initial_state")), path(fresh("dstate"))
        self.needs, self.precision = path(fresh("needs")), path(fresh("precision"))
        self.need = {decl.name: path(fresh(f"need_{decl.name}")) for decl in self.tensors}
        self.by_chain = path(fresh("need_sums"))
        pieces = [piece for piece in made.pieces if piece.axes == STACKED and self._decl(piece).dims == STACKED[-1:]]
        alone = [piece for piece in pieces if len(made.pieces_of(piece.param)) == 1]
        self.stacked = {piece.tensor: number for number, piece in enumerate(alone)} if alone[1:] else {}
        self.statics = path(fresh("statics"))
        self.rounds = True

    def build(self, name: str, kernels: Mapping[str, Kernel], config: Config, each: Mapping[str, Config]) -> Function:
        """The launcher. kernels: by walk, `chain`, and where there are any `gates`."""
        b = self.b
        self.rounds = any("PRECISION" in kernel.uses for kernel in kernels.values())
        self.sizes()
        self.checks()
        self._cotangents()
        constants = self._constants(config, each)
        self._needs()
        self._stack()
        self._given_states()
        if self.made.before is not None or self.linear.normalize != "none":
            self._again()
        if "gates" in kernels:
            self.gates(kernels["gates"], constants)
        if "scores" in kernels and any(walk.decayed for walk in self.made.walks):
            term = self.linear.terms[0]
            wide = {f"B{axis[0].upper()}": self.whole[axis] for axis in ("key", "value")}
            walk = next(walk for walk in self.made.walks if walk.decayed)
            self.decayed(kernels, term, (walk.p, walk.s), {**constants, **wide}, config)
        if config.programs:
            self.cut(self.names.chain, lift(constants["C"]), self.names.tiles["key"], config)
            b.space()
        self._walks(kernels, constants, each)
        if self.made.chain is not None:
            self._chain(kernels["chain"], constants)
        self._give()
        return b.function(name, self._doc(), self._parameters(), jit=False)

    def _parameters(self) -> list[Parameter]:
        host, none = self.host, lift(None).node
        given = [host.parameters[decl.name] for decl in (self.made.reads[0], *self.linear.op.params)]
        inverse = self.names.walks[self.made.dv.name].inverse
        options = [host.parameters[decl.name] for decl in self.made.reads[1:] if self._takes(decl)]
        options += [self.initial, self.dstate] if self.states else []
        options += [self.needs, host.pack]
        return [
            *(Parameter(name_of(x)) for x in (*given, *([inverse] if inverse is not None else []))),
            *(Parameter(name_of(x), default=none, keyword=True) for x in options),
            *([Parameter(name_of(self.precision), default=lift("ieee").node, keyword=True)] if self.rounds else []),
        ]

    @property
    def others(self) -> E | None:
        """The share of each row that all but its largest weight have, where the kernels take it."""
        return None

    def _takes(self, decl: ParamDecl) -> bool:
        """Whether the caller may give a tensor of the forward pass; else it is made again."""
        return all(output.name != decl.name for walk in self.made.walks for output in walk.outputs)

    def _cotangents(self) -> None:
        b, decl = self.b, self.made.reads[0]
        dy = self.host.parameters[decl.name]
        shape = sequence(self.host.sizes[axis] for axis in decl.dims)
        with b.branch(dy.attr("shape").ne(shape)):
            b.fail(path("ValueError").call(f"{name_of(dy)} must be {shape_of(decl, grouped=False)}"))
        b.set(dy, path("dense").call(dy))

    def _walks(
        self, kernels: Mapping[str, Kernel], constants: Mapping[str, Operand], each: Mapping[str, Config]
    ) -> None:
        for walk in self.made.walks:
            self._walk(walk, kernels, constants, each[walk.name])

    def _constants(self, config: Config, each: Mapping[str, Config]) -> dict[str, Operand]:
        """Name the tiles of the walks, and what their kernels are compiled for besides."""
        b, host = self.b, self.host
        b.section("Positions of a chunk, and tiles: a program has all channels of one axis and a tile of the other")
        chunk = b.let("C", config.chunk)
        self.sequences()
        decayed = any(walk.decayed for walk in self.made.walks)
        if host.gates or self.made.chain is not None or self.made.gated or self.by_chunk or decayed:
            self.slots(chunk)
        sizes = {axis: host.sizes[axis] for axis in ("key", "value")}
        self.whole = {
            axis: b.let(f"all_{axis[0]}", path("max").call(16, path("triton.next_power_of_2").call(size)))
            for axis, size in sizes.items()
        }
        self.tile: dict[str, E] = {}
        ragged = [(host.sizes["time"] % chunk).ne(0)]
        for axis, size in sizes.items():
            walks = [walk for walk in self.made.walks if walk.outer == axis]
            whole = any(needs_whole(walk) for walk in walks)
            tile = self.whole[axis] if whole else lift(self._outer(axis, config, each))
            self.tile[axis] = b.let(f"tile_{axis[0]}", tile)
            b.set(self.names.tiles[axis], path("triton.cdiv").call(size, self.tile[axis]))
            ragged += [size.ne(self.whole[axis]), (size % self.tile[axis]).ne(0)]
        masked = b.let("masked", either(host.pack.given(), *ragged))
        products: dict[str, Operand] = {}
        if self.rounds:
            operand = b.let("operand", path("coarsest").call(*self.operands()))
            products = {"DOT": operand, "PRECISION": self.precision}
        return {
            "C": chunk,
            "K": sizes["key"],
            "V": sizes["value"],
            "MASKED": masked,
            "PINNED": pinned(config, self.first),
            **products,
            "STAGES": config.stages,
        }

    def _needs(self) -> None:
        b = self.b
        counted = self.made.chain is not None or self.made.gated
        sums = ", and whether sums over pairs are needed for them" if counted else ""
        b.section(f"Which gradients are asked for{sums}")
        with b.branch(self.needs.missing()):
            b.set(self.needs, sequence([lift(True)]) * len(self.tensors))
        b.assign((self.need[x.name] if self.made.pieces_of(x.name) else path(UNUSED) for x in self.tensors), self.needs)
        if self.made.chain is not None:
            outputs = {output.name for output in self.made.chain.outputs}
            b.set(self.by_chain, either(*self._needed(outputs)))
        elif self.made.gated:
            b.set(self.by_chain, either(*(self.need[param] for param in self.made.gated)))

    def _stack(self) -> None:
        """Make one tensor for what chunks bring to parameters of heads: one launch sums all of it."""
        if self.stacked:
            host = self.host
            shape = [lift(len(self.stacked)), *(host.sizes["batch"], host.slots, host.heads)]
            self.b.section("What every chunk brings to parameters of heads")
            self.b.set(self.statics, self._new(either(*self._needed(self.stacked)), shape, path("torch.float32")))

    def _needed(self, tensors: Iterable[str]) -> list[E]:
        """Whether the gradients that some tensors are parts of are needed."""
        wanted = set(tensors)
        params = dict.fromkeys(piece.param for piece in self.made.pieces if piece.tensor in wanted)
        return [self.need[param] for param in params]

    def _given_states(self) -> None:
        b, names = self.b, self.names
        b.section("States: what came before, its gradient, and the cotangent of what was left")
        for given, states in ((self.initial, names.initial), (self.dstate, names.after)):
            parts = list(states.values())
            if len(parts) == 1:
                b.set(parts[0], given)
            else:
                with b.branch(given.missing()):
                    b.set(given, sequence([lift(None)]) * len(parts))
                b.assign(parts, given)
            for state in parts:
                with b.branch(state.given()):
                    b.set(state, self.taken(state))
        for (part, _), state in names.before.items():
            shape = self.shape_of_state(part)
            b.set(state, self._new(self._first_state.given(), shape, path("torch.float32")))

    @property
    def _first_state(self) -> E:
        """Given exactly where an initial state is."""
        return next(iter(self.names.initial.values()))

    def _new(self, wanted: E, shape: list[E], dtype: Operand) -> E:
        return path("new").call(wanted, sequence(shape), dtype, self.first.attr("device"))

    def _again(self) -> None:
        """Have y and the divisors of rows, where they are not given."""
        if self.linear.normalize == "none":
            return
        b, host, op = self.b, self.host, self.linear.op
        y, norm = (host.parameters[decl.name] for decl in self.made.reads[1:])
        b.section("")
        given = [host.parameters[decl.name] for decl in op.params]
        kept = "return_lse" if self.linear.normalize == "softmax" else "return_norm"
        options: dict[str, Operand] = {"initial_state": self.initial} if self.states else {}
        options |= {kept: True}
        options |= {"precision": self.precision} if self.rounds else {}
        options |= {"return_others": True} if self.others is not None else {}
        call = path(op.name).call(*given, cu_seqlens=host.pack, **options)
        if self._takes(self.made.reads[1]):
            with b.branch(either(y.missing(), norm.missing())):
                b.assign((y, norm) if self.others is None else (y, norm, self.others), call)
            b.set(y, path("dense").call(y))
        else:
            with b.branch(norm.missing()):
                b.assign((path(UNUSED), norm), call)

    def _outer(self, axis: str, config: Config, each: Mapping[str, Config]) -> int:
        """Channels of a tile along an axis."""
        return config.outer

    def _walk(
        self,
        walk: Walk,
        kernels: Mapping[str, Kernel],
        constants: Mapping[str, Operand],
        config: Config,
        also: Iterable[E] = (),
    ) -> None:
        """Launch a walk, where one of the gradients is needed that it leads to, or `also` something else."""
        b, host, tensors = self.b, self.host, self.names.walks[walk.name]
        b.section(TITLES[walk.name] + (SUMS if walk.sums is not None else ""))
        wanted = [*self._needed(output.name for output in walk.outputs), *also]
        for output in walk.outputs:
            self._output(output.name)
        if walk.sums is not None:
            wanted.append(self.by_chain)
            for key, tensor in tensors.sums.items():
                if walk.sums.pairs or key[0] not in COUNTING:
                    b.set(tensor, self._new(self.by_chain, *self._sum(key[0])))
        if tensors.final:
            wanted.append(self._first_state.given())
        given = {**constants, **self._tiles(walk.outer), "STAGES": config.stages}
        tiles, rows = self.names.tiles[walk.outer], host.sequences
        always = any(output.name in {decl.name for decl in self.made.reads} for output in walk.outputs)
        with nullcontext() if always else b.branch(either(*dict.fromkeys(wanted))):
            if config.programs:
                rows = self.begin(kernels[f"local_{walk.name}"], walk, tensors, given, tiles, config)
            grid = sequence([host.heads * tiles, rows])
            if f"{walk.name}_narrow" in kernels:
                self.again(walk.name, kernels, grid, self.linear.terms[0], (walk.p, walk.s), given, config)
            b.do(kernels[walk.name].launch(grid, given, config.warps))

    def _tiles(self, outer: str) -> dict[str, E]:
        """The channels that a program has: a tile of the outer axis, all of the other."""
        wide = {f"B{axis[0].upper()}": self.whole[axis] for axis in ("key", "value")}
        return {**wide, f"B{outer[0].upper()}": self.tile[outer]}

    def _heads(self, tensor: str) -> E:
        """How many heads a tensor that a walk writes has."""
        return self.host.heads

    def _output(self, tensor: str) -> None:
        """Make a tensor for a part of a gradient."""
        host = self.host
        piece = next((piece for piece in self.made.pieces if piece.tensor == tensor), None)
        sizes = {**host.sizes, "tile": self.names.tiles["value"], "slot": host.slots, **self._more_sizes()}
        sizes["head"] = self._heads(tensor)
        if piece is None:
            value = host.parameters[tensor]
            shape = [host.sizes[axis] for axis in self.made.reads[0].dims]
            self.b.set(value, self.empty(shape, self.first.attr("dtype")))
            return
        if "tile" in piece.axes:
            walk = next(walk for walk in self.made.walks if any(output.name == tensor for output in walk.outputs))
            sizes["tile"] = self._tiles_of(walk)
        param = host.parameters[piece.param]
        alone = len(self.made.pieces_of(piece.param)) == 1
        rounded = alone and {"batch", "time"} <= set(self._decl(piece).dims) and "tile" not in piece.axes
        rounded = rounded and not piece.added and piece.param not in self.linear.handed
        dtype = param.attr("dtype") if rounded else self._wide(piece, param)
        written = self._written(tensor)
        if tensor in self.stacked:
            entry = self.statics.at(self.stacked[tensor])
            self.b.set(written, choose(self.need[piece.param], entry, lift(None)))
            return
        self.b.set(written, self._new(self.need[piece.param], [sizes[axis] for axis in piece.axes], dtype))

    def _tiles_of(self, walk: Walk) -> E:
        """How many programs share the channels that a walk writes."""
        return self.names.tiles[walk.outer]

    def _wide(self, piece: Piece, param: E) -> E:
        """The dtype of a part of a gradient that is to be summed."""
        return path("torch.float32")

    def _more_sizes(self) -> dict[str, E]:
        """The sizes of further axes of parts of gradients."""
        return {}

    def _written(self, tensor: str) -> E:
        every = [*self.names.walks.values(), self.names.chain]
        return next(tensors.outputs[tensor] for tensors in every if tensor in tensors.outputs)

    def _decl(self, piece: Piece) -> ParamDecl:
        return self.host.decls[piece.param]

    def _sum(self, kind: str) -> tuple[list[E], E]:
        """Shape and dtype of a sum, or of the states that meet for it."""
        host = self.host
        batch, time, heads, key, value = (host.sizes[axis] for axis in SIZES)
        if kind in ("states", "vectors"):
            channels = [key, value] if kind == "states" else [key]
            return [batch, heads, host.slots, *channels], self.first.attr("dtype")
        if kind == "late":
            (axis,) = self.linear.terms[0].axes
            return [batch, time, heads, host.sizes[axis]], path("torch.float32")
        tiles = self.names.anchors if kind in MET else self.names.tiles["key"]
        return [tiles, batch, heads, host.slots if kind == "anchors" else time], path("torch.float32")

    def _chain(self, kernel: Kernel, constants: Mapping[str, Operand]) -> None:
        b, host, chain = self.b, self.host, self.made.chain
        assert chain is not None
        b.section("From sums over pairs to the parameters of gates and factors")
        for output in chain.outputs:
            self._output(output.name)
        wide = {f"B{axis[0].upper()}": self.whole[axis] for axis in ("key", "value")}
        channels = not {"BK", "BV"}.isdisjoint(kernel.uses)
        grid = sequence([host.slots, host.heads, host.sizes["batch"]])
        with b.branch(self.by_chain):
            self._ends()
            b.do(kernel.launch(grid, {**constants, **wide}, 4 if channels else 1))

    def _ends(self) -> None:
        """Make what the chain rule begins with, where kernels have not made it."""

    def _give(self) -> None:
        """Add the parts of each gradient, and sum what several entries share."""
        b = self.b
        b.section("Gradients of what heads, positions or sequences share are summed")
        found: list[E] = []
        if self.stacked:
            with b.branch(either(*self._needed(self.stacked))):
                rows = self.statics.attr("flatten").call(1, 2)
                b.set(self.statics, path("total").call(rows, 1, path("torch.float32")))
        for decl in self.tensors:
            pieces = self.made.pieces_of(decl.name)
            if not pieces:
                found.append(lift(None))
                continue
            dtype = self.host.parameters[decl.name].attr("dtype")
            dtype = path("torch.float32") if decl.name in self.linear.handed else dtype
            total, *others = (self._reduced(piece, decl, None if pieces[1:] else dtype) for piece in pieces)
            gradient = self._written(pieces[0].tensor)
            found.append(gradient)
            if others or total.node != gradient.node:
                with b.branch(self.need[decl.name]):
                    for other in others:
                        b.set(gradient, total + other)
                        total = gradient
                    b.set(gradient, total.attr("to").call(dtype) if others else total)
        gradients = b.let("gradients", sequence(found))
        if self.states:
            states = [self.given(state) for state in self.names.before.values()]
            carried = states[0] if len(states) == 1 else sequence(states)
            with b.branch(self._first_state.given()):
                b.set(gradients, gradients + sequence([carried]))
        b.give(gradients)

    def _reduced(self, piece: Piece, decl: ParamDecl, dtype: E | None) -> E:
        """A part of a gradient with the axes of its parameter. dtype: of its sum; None: it is not all of it."""
        if piece.tensor in self.stacked and dtype is not None:
            return self.statics.at(self.stacked[piece.tensor]).attr("to").call(dtype)
        value = self._written(piece.tensor)
        if "head" in decl.dims and decl.name in self.host.shared:
            value = path("of_groups").call(value, size_of(self.host, decl, "head"))
        over = [n for n, axis in enumerate(piece.axes) if axis not in decl.dims]
        if over and dtype is not None and over == list(range(len(over))):
            rows = value.attr("flatten").call(0, over[-1]) if over[1:] else value
            value = path("total").call(rows, 0, dtype)
        elif over:
            value = value.attr("sum").call(sequence(over) if over[1:] else over[0])
            value = value if dtype is None else value.attr("to").call(dtype)
        left = [axis for axis in piece.axes if axis in decl.dims]
        if left != list(decl.dims):
            value = value.attr("permute").call(*(left.index(axis) for axis in decl.dims))
        return value

    def _doc(self) -> list[str]:
        """The launcher's docstring."""
        op, host, made = self.linear.op, self.host, self.made
        dy = name_of(host.parameters[made.reads[0].name])
        names = ", ".join(decl.name for decl in self.tensors)
        lines = [f"The gradients of {op.name}.", "", "Args:", f"    {dy}: the cotangent of its result, [B, T, H, V]."]
        for decl in op.params:
            grouped = decl.name in host.shared and "head" in decl.dims
            lines.append(f"    {decl.name}: {'a number' if decl.number else shape_of(decl, grouped)}.")
        lines += [f"    inverse: as {op.name} returned it."] if made.solved else []
        for decl in made.reads[1:]:
            if self._takes(decl):
                what = "its result" if decl is made.reads[1] else "what it divided rows by"
                lines.append(f"    {name_of(host.parameters[decl.name])}: {what}; None: it is computed again.")
        if self.states:
            lines += [
                f"    {name_of(self.initial)}: as {op.name} took it.",
                f"    {name_of(self.dstate)}: the cotangent of the state that it returned; None: 0.",
            ]
        end = ";" if self.states else "."
        lines += [
            f"    {name_of(self.needs)}: of which tensors gradients are needed, a bool for each; None: of all.",
            f"    {name_of(host.pack)}: as {op.name} took it.",
            *([f'    {name_of(self.precision)}: of fp32 matrix products, "ieee" or "tf32".'] if self.rounds else []),
            "",
            "Returns:",
            f"    A tuple: the gradients of {names}, each None where it is not needed{end}",
        ]
        return [*lines, "    then, where there was an initial state, its gradient."] if self.states else lines


SUMS = ", and sums over pairs for gates and factors"
TITLES = {
    "again": "What needs the contraction itself, from the start once more",
    "dq": "Queries",
    "dk": "Keys",
    "dv": "Values",
    "adjoint": "The adjoint system, from the end: the cotangent of the right-hand side, and what follows from it alone",
}
"""What each walk makes."""
