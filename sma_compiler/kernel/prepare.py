"""What the launchers of a file share: sizes and checks of arguments, and launches of the kernels that work ahead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sma_compiler.ir.nodes import Expr, ParamDecl, Reduce, postorder
from sma_compiler.kernel.arguments import Arguments
from sma_compiler.kernel.build import E, Operand, choose, lift, path, sequence
from sma_compiler.kernel.config import Config
from sma_compiler.kernel.host import SIZES, TABLES, Host, Tensors
from sma_compiler.kernel.inputs import tensors_of
from sma_compiler.kernel.linear import STATE_ROWS, Linear, Term
from sma_compiler.kernel.nodes import Function
from sma_compiler.kernel.walk import Walk

RUN = 16
"""Chunks of which one program sees whether there is anything to do."""
ALONE = 128
"""Channels that one warp holds of the rows of a chunk."""
WIDE = 8
"""Warps of the kernels whose pairs are summed by halves, of which each adds tiles."""


@dataclass(frozen=True)
class Kernel:
    """A kernel that a launcher starts. uses: every name its body mentions."""

    function: Function
    arguments: Arguments
    uses: frozenset[str]

    def launch(self, grid: E, constants: Mapping[str, Operand], warps: Operand, registers: int = 0) -> E:
        """The expression that starts it; of the constants it takes those that it uses. registers: see `Config`."""
        for name, given in constants.items():
            if name in self.uses:
                self.arguments.give(name, given)
        limit = {"maxnreg": registers} if registers else {}
        return self.arguments.launch(self.function.name, grid, num_warps=warps, **limit)


class Launch:
    """The statements that launchers of one op share, in the order in which a launcher has them."""

    def __init__(self, linear: Linear, host: Host) -> None:
        self.linear = linear
        self.host = host
        self.b = host.builder
        self.tensors = [decl for decl in linear.op.params if not decl.number]

    @property
    def turned(self) -> bool:
        """Whether kernels have matrices of states as [V, K]."""
        return False

    @property
    def first(self) -> E:
        """The first tensor, whose device and dtype the results have."""
        return self.host.parameters[self.tensors[0].name]

    def empty(self, shape: list[E], dtype: Operand) -> E:
        """A new tensor."""
        return path("torch.empty").call(sequence(shape), dtype=dtype, device=self.first.attr("device"))

    def taken(self, state: E) -> E:
        """A state that was given, as kernels read it."""
        made = state.attr("float").call()
        return (made.attr("transpose").call(-1, -2) if self.turned else made).attr("contiguous").call()

    def given(self, state: E) -> E:
        """A state that kernels wrote, as it is given back."""
        return state.attr("transpose").call(-1, -2).attr("contiguous").call() if self.turned else state

    def shape_of_state(self, part: str) -> list[E]:
        """The shape of the states of all sequences."""
        channels = ("key",) if part != "matrix" else ("value", "key") if self.turned else ("key", "value")
        return [self.host.sequences, *(self.host.sizes[axis] for axis in ("head", *channels))]

    def sizes(self) -> None:
        """B, T, H, K and V, each from the first tensor that has the axis; H is the largest."""
        b, host = self.b, self.host
        for axis in host.sizes:
            holders = [decl for decl in self.tensors if axis in decl.dims]
            if not holders and axis == "head":
                b.set(host.sizes[axis], lift(1))
            if not holders and axis == "key" and self.linear.stabilised:
                b.comment("A state is four rows: numerators, divisors, the logarithm of their unit, and nothing")
                b.set(host.sizes[axis], lift(STATE_ROWS))
            if not holders:
                continue
            sizes = [size_of(host, decl, axis) for decl in holders[: len(holders) if axis == "head" else 1]]
            b.set(host.sizes[axis], path("max").call(*sizes) if len(sizes) > 1 else sizes[0])

    def checks(self) -> None:
        """Refuse wrong shapes, and make channels contiguous."""
        b, host = self.b, self.host
        for decl in self.tensors:
            tensor = host.parameters[decl.name]
            grouped = "head" in decl.dims and bool({"key", "value"} & set(decl.dims))
            expected = [size_of(host, decl, a) if a == "head" and grouped else host.sizes[a] for a in decl.dims]
            wrong = tensor.attr("shape").ne(sequence(expected))
            if grouped:
                wrong = either(wrong, (host.heads % size_of(host, decl, "head")).ne(0))
            with b.branch(wrong):
                b.fail(path("ValueError").call(f"{decl.name} must be {shape_of(decl, grouped)}"))
        channels = [host.parameters[decl.name] for decl in self.tensors if {"key", "value"} & set(decl.dims)]
        for tensor in channels:
            b.set(tensor, path("dense").call(tensor))
        b.section("")

    def sequences(self) -> None:
        """How many sequences there are."""
        b, host = self.b, self.host
        with b.branch(host.pack.given().both(host.sizes["batch"].ne(1))):
            b.fail(path("ValueError").call("a pack must have B = 1"))
        b.set(host.sequences, host.sizes["batch"])
        with b.branch(host.pack.given()):
            b.set(host.sequences, host.pack.attr("shape").at(0) - 1)

    def slots(self, chunk: E) -> None:
        """How many chunks a row of the batch has, without reading where the sequences of a pack begin."""
        b, host = self.b, self.host
        b.set(host.slots, path("triton.cdiv").call(host.sizes["time"], chunk))
        with b.branch(host.pack.given()):
            b.set(host.slots, host.sizes["time"] // chunk + host.sequences)

    def operands(self) -> list[E]:
        """The tensors whose dtypes decide that of matrix products."""
        attend = self.linear.attend
        return [self.host.parameters[node.name] for node in tensors_of((attend.q, attend.k, attend.v))]

    def groups(self) -> None:
        """How many groups of heads have a q and k of their own."""
        host = self.host
        groups = [
            size_of(host, host.decls[node.name], "head")
            for node in tensors_of((self.linear.q, self.linear.k))
            if "head" in node.axes
        ]
        self.b.set(host.groups, path("max").call(1, *groups))
        if len(groups) > 1:
            with self.b.branch(either(*((host.groups % held).ne(0) for held in groups))):
                self.b.set(host.groups, host.heads)

    def scores(self, kernel: Kernel, constants: Mapping[str, Operand]) -> None:
        """Make Q K^T of every chunk."""
        b, host = self.b, self.host
        batch, time = host.sizes["batch"], host.sizes["time"]
        b.section("Scores inside every chunk, once for the heads that share q and k")
        self.groups()
        shape = [batch, host.groups, time, lift(constants["C"])]
        b.set(host.scores, self.empty(shape, path("dtype_of").call(constants["DOT"])))
        b.do(kernel.launch(sequence([host.slots, host.groups, batch]), constants, 4))
        b.section("")

    def inverse(self, kernel: Kernel, constants: Mapping[str, Operand]) -> None:
        """Invert what a `solve` has inside every chunk, with one warp where it holds the operands: no thread waits."""
        b, host = self.b, self.host
        batch, time, heads, _, _ = (host.sizes[axis] for axis in SIZES)
        b.section("What the pairs of every chunk are solved by")
        shape = [batch, heads, time, lift(constants["C"])]
        b.set(host.scores, self.empty(shape, path("dtype_of").call(constants["DOT"])))
        warps = choose(lift(constants["BK"]) <= ALONE, 1, 2)
        b.do(kernel.launch(sequence([host.slots, heads, batch]), constants, warps))
        b.section("")

    def decayed(
        self,
        kernels: Mapping[str, Kernel],
        term: Term,
        operands: Iterable[Expr],
        constants: Mapping[str, Operand],
        config: Config,
    ) -> None:
        """Make the weighted scores of every chunk, and its late and early operands decayed to its ends.

        Kernels for what few chunks need have runs of them. config: of a walk. With 168 registers a thread, three
        programs wait for memory at a time.
        """
        b, host = self.b, self.host
        batch, time, heads, _, _ = (host.sizes[axis] for axis in SIZES)
        channels = host.sizes[term.axes[0]]
        b.section("Weighted scores inside every chunk, and the operands decayed to its start and to its end")
        fp32, operand = path("torch.float32"), path("dtype_of").call(constants["DOT"])
        b.set(host.scores, self.empty([batch, heads, time, lift(constants["C"])], operand))
        for part in ("late", "early"):
            b.set(host.decayed[part], self.empty([batch, time, heads, channels], operand))
        b.set(host.decayed["across"], self.empty([batch, heads, host.slots, channels], fp32))
        axis = term.axes[0]
        extent = f"B{axis[0].upper()}"
        if not any(isinstance(node, Reduce) and node.axis == axis for node in postorder(operands)):
            constants = {**constants, extent: path("min").call(64, constants[extent])}
        if "scores" in kernels:
            b.set(host.decayed["widest"], self.empty([batch, heads, host.slots], fp32))
            grid = sequence([host.slots, heads, batch])
            with b.branch(lift(constants["DOT"]).eq(path("tl.bfloat16"))):
                b.do(kernels["scores"].launch(grid, constants, 4, 168 if config.assembly else 0))
        self.runs(kernels["scores_wide"], None, constants)
        b.section("")

    def runs(self, kernel: Kernel, tiles: E | None, constants: Mapping[str, Operand]) -> None:
        """Launch a kernel of which a program has a run of chunks, long where others may have written most.

        tiles: of how many each has one.
        """
        b, host = self.b, self.host
        run = b.let("run", choose(lift(constants["DOT"]).eq(path("tl.bfloat16")), RUN, 1))
        count = path("triton.cdiv").call(host.slots, run)
        grid = sequence([count if tiles is None else count * tiles, host.heads, host.sizes["batch"]])
        b.do(kernel.launch(grid, {**constants, "RUN": run}, WIDE))

    def again(
        self,
        name: str,
        kernels: Mapping[str, Kernel],
        grid: E,
        term: Term,
        operands: Iterable[Expr],
        constants: Mapping[str, Operand],
        config: Config,
    ) -> None:
        """Launch a walk that decays operands by itself, and what makes them ahead for the one after it."""
        b, host = self.b, self.host
        b.set(host.decayed["reach"], self.empty([host.sequences, host.heads], path("torch.float32")))
        with b.branch(lift(constants["DOT"]).eq(path("tl.bfloat16"))):
            b.do(kernels[f"{name}_narrow"].launch(grid, {**constants, "STAGES": 1}, config.warps))
        self.decayed(kernels, term, operands, constants, config)

    def gates(self, kernel: Kernel, constants: Mapping[str, Operand]) -> None:
        """Make the decays of every chunk."""
        b, host = self.b, self.host
        batch, time, heads, _, _ = (host.sizes[axis] for axis in SIZES)
        b.section("Decays inside every chunk")
        sums = "torch.float64" if any(term.wide for term in self.linear.terms) else "torch.float32"
        for (_, part), array in host.gates.items():
            dtype = path("torch.int32" if part.startswith("cut") else sums)
            b.set(array, self.empty([batch, heads, host.slots if part.endswith("all") else time], dtype))
        b.do(kernel.launch(sequence([host.slots, heads, batch]), constants, 1))
        b.section("")

    def parts(
        self, kernel: Kernel, walk: Walk, tensors: Tensors, constants: Mapping[str, Operand], tiles: E, config: Config
    ) -> E:
        """Cut sequences so that enough programs run at once, and make the state that each part begins with.

        Returns how many programs walk along the sequences of one head and tile.
        """
        self.cut(tensors, lift(constants["C"]), tiles, config)
        return self.begin(kernel, walk, tensors, constants, tiles, config)

    def cut(self, tensors: Tensors, chunk: E, tiles: E, config: Config) -> None:
        """Choose how many parts a sequence has, and how long they are."""
        b, host = self.b, self.host
        batch, time, heads, _, _ = (host.sizes[axis] for axis in SIZES)
        b.section("As many parts of each sequence as the device runs at once, of at least 4 chunks")
        wanted = b.let("wanted", path("max").call(1, lift(config.programs) // (batch * heads * tiles)))
        per_part = path("triton.cdiv").call(path("triton.cdiv").call(time, chunk), wanted)
        b.set(tensors.span, chunk * path("max").call(4, per_part))
        b.set(tensors.parts, path("max").call(1, path("triton.cdiv").call(time, tensors.span)))
        with b.branch(host.pack.given()):
            b.assign((tensors.span, tensors.parts), sequence([time, lift(1)]))

    def begin(
        self,
        kernel: Kernel,
        walk: Walk,
        tensors: Tensors,
        constants: Mapping[str, Operand],
        tiles: E,
        config: Config,
        others: Iterable[tuple[Walk, Tensors]] = (),
    ) -> E:
        """Make the state that each part begins with; returns what `parts` does.

        others: further walks, which have the same decays; the kernel serves them unless sums are kept in units.
        """
        b, host = self.b, self.host
        batch, _, heads, key, value = (host.sizes[axis] for axis in SIZES)
        states = {
            name_of(x): (part, x, n, own)
            for own in (tensors, *(y for _, y in others))
            for (part, n), x in own.local.items()
        }
        for part, state, number, own in states.values():
            b.set(state, own.initial.get((part, number), lift(None)))
        with b.branch(tensors.parts > 1):
            shapes = {"matrix": [heads, key, value], "vector": [heads, key]}
            shapes["decay"] = shapes["matrix"] if self.apart else [heads]
            for part, state, *_ in states.values():
                b.set(state, self.empty([batch, tensors.parts, *shapes[part]], path("torch.float32")))
            grid = sequence([heads * tiles, batch * tensors.parts])
            b.do(kernel.launch(grid, constants, config.warps))
            for each, own in ((walk, tensors), *(() if self.linear.stabilised else others)):
                self.join(each, own)
        return host.sequences * tensors.parts

    @property
    def apart(self) -> bool:
        """Whether each number of a state has a decay of its own."""
        return self.linear.stabilised or len(self.linear.channels) > 1

    def join(self, walk: Walk, tensors: Tensors) -> None:
        """From the states of parts alone, those that parts begin with."""
        host = self.host
        batch, _, heads, key, value = (host.sizes[axis] for axis in SIZES)
        for (part, number), state in tensors.local.items():
            if part == "decay":
                continue
            count = key * value if part == "matrix" else key
            decay = tensors.local.get(("decay", number), lift(None))
            before = tensors.initial.get((part, number), lift(None))
            if self.linear.stabilised and not walk.backward:
                scan = path("scan_sums_kernel").at(sequence([path("triton.cdiv").call(value, 128), batch]))
                self.b.do(scan.call(state, decay, before, value, tensors.parts, BLOCK=128))
                continue
            grid = sequence([path("triton.cdiv").call(count, 1024), heads, batch])
            scan = path("scan_parts_kernel").at(grid)
            kind = {"BACKWARD": walk.backward, "APART": self.apart}
            options = {name: True for name, wanted in kind.items() if wanted}
            self.b.do(scan.call(state, decay, before, heads, count, tensors.parts, BLOCK=1024, **options))


def either(*conditions: E) -> E:
    """Whether any of some conditions of the host holds."""
    found = conditions[0]
    for condition in conditions[1:]:
        found = found.either(condition)
    return found


def name_of(x: E) -> str:
    """The name of a variable."""
    node = x.node
    name = getattr(node, "name", None)
    assert isinstance(name, str)
    return name


def size_of(host: Host, decl: ParamDecl, axis: str) -> E:
    """The size of one axis of a tensor."""
    return host.parameters[decl.name].attr("shape").at(decl.dims.index(axis))


def shape_of(decl: ParamDecl, grouped: bool) -> str:
    """A shape in letters; `grouped`: several heads may share one entry."""
    letters = {**SIZES, **TABLES, "head": "G" if grouped else "H"}
    shape = f"[{', '.join(letters[axis] for axis in decl.dims)}]"
    return f"{shape}, G a divisor of H" if grouped else shape
