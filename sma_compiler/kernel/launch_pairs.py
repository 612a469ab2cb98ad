"""The launcher of the quadratic plan: the function that is named after the op and takes its parameters."""

from __future__ import annotations

from collections.abc import Mapping

from sma_compiler.kernel.build import E, Operand, choose, lift, path, sequence
from sma_compiler.kernel.check import UNUSED
from sma_compiler.kernel.config import PairConfig
from sma_compiler.kernel.host import SIZES, Host, Tensors, suffix
from sma_compiler.kernel.inputs import tensors_of
from sma_compiler.kernel.maker import pinned
from sma_compiler.kernel.nodes import Function, Parameter
from sma_compiler.kernel.pair_paths import chunked, end_of
from sma_compiler.kernel.pair_places import PairNames
from sma_compiler.kernel.pairs import Along, Pairs
from sma_compiler.kernel.prepare import Kernel, Launch, either, name_of, shape_of
from sma_compiler.kernel.support import Run

WIDTH = 32
"""Threads of a warp."""


def pair_names(pairs: Pairs, host: Host) -> PairNames:
    """Name what the kernels of a launcher read beside the op's parameters."""
    fresh = host.builder.fresh
    runs = {
        (turns, end): path(fresh("run_end" if end else "run_start")) for turns in pairs.turns for end in (False, True)
    }
    whole = {}
    for number, part in host.gates:
        if not part.endswith("all"):
            name = f"{part}{suffix(number, len(pairs.linear.terms))}"
            two = not (pairs.wide or part.startswith("cut"))
            whole[number, part] = path(fresh(f"whole_{name}")), path(fresh(f"low_{name}") if two else UNUSED)
    within = {}
    for along in pairs.paths:
        for late in (True, False) if chunked(pairs, along) else ():
            name = f"{'late' if late else 'early'}{suffix(along.number, len(pairs.linear.terms))}"
            within[along.number, late] = path(fresh(name))
    fading = {} if pairs.fading is None else {False: path(fresh("since")), True: path(fresh("until"))}
    return PairNames(runs, whole, within, fading)


class Ahead:
    """What the launchers of the quadratic plan do before their kernels."""

    def __init__(self, launch: Launch, pairs: Pairs, names: PairNames, *, columns: bool) -> None:
        """columns: whether kernels go over rows, too, for each tile of columns."""
        self.launch = launch
        self.runs = {*pairs.support.runs, *(pairs.support.transposed(pairs.graph).runs if columns else ())}
        self.host = launch.host
        self.b = launch.b
        self.pairs = pairs
        self.names = names
        self.columns = columns

    def make(self, gates: Kernel | None, constants: Mapping[str, Operand]) -> None:
        """Make what kernels read beside the parameters: where runs begin and end, and the decays of paths."""
        b, host = self.b, self.host
        for turns in self.pairs.turns:
            b.section("Where the run of each position begins and ends")
            tensor = host.parameters[turns.tensor.name]
            ends = [
                self.names.runs[turns, end] if Run(turns, end) in self.runs else path(UNUSED) for end in (False, True)
            ]
            b.assign(ends, path("runs").call(tensor, turns.resets, host.sizes["batch"], host.pack))
        if gates is not None:
            self.launch.gates(gates, {**constants, "MASKED": self.ragged(constants)})
            b.section("The same from the first position on")
            for along in self.pairs.paths:
                for end in ("row", "col"):
                    if (along.number, end) in self.names.whole:
                        self._whole(along, end, constants)
            self._fading(constants)
            b.section("")

    def _whole(self, along: Along, end: str, constants: Mapping[str, Operand]) -> None:
        """Make what kernels read of one end of a path."""
        gates, names, cut, unused = self.host.gates, self.names, f"cut_{end}", path(UNUSED)
        given = [gates.get((along.number, part), lift(None)) for part in (end, "all", cut, "cut_all")]
        made = [*names.whole[along.number, end], names.whole.get((along.number, cut), (unused,))[0]]
        wanted = []
        for late in (True, False):
            visited = self.columns or late == (along.early != "j")
            wanted.append(visited and chunked(self.pairs, along) and end_of(self.pairs, along, late) == end)
            made.append(names.within[along.number, late] if wanted[-1] else unused)
        self.b.assign(made, path("whole").call(*given, constants["C"], *wanted, self.host.pack))

    def _fading(self, constants: Mapping[str, Operand]) -> None:
        """Make the bounds of pairs of which a path leaves something."""
        pairs, host, whole = self.pairs, self.host, self.names.whole
        if pairs.fading is None:
            return
        self.b.section("Between which positions it leaves anything that fp32 holds")
        number = pairs.fading.number
        made = [self.names.fading[False], self.names.fading[True] if self.columns else path(UNUSED)]
        operands = [host.parameters[node.name] for x in (pairs.linear.q, pairs.linear.k) for node in tensors_of((x,))]
        cut, _ = whole.get((number, "cut_row"), (lift(None), None))
        given = [*operands, host.number(pairs.scale), whole[number, "row"][0], cut]
        self.b.assign(made, path("fading").call(*given, constants["C"], self.columns, host.pack))

    def ragged(self, constants: Mapping[str, Operand]) -> E:
        """Whether some chunk may be short."""
        return either(self.host.pack.given(), (self.host.sizes["time"] % lift(constants["C"])).ne(0))

    def constants(self, precision: E, config: PairConfig, kernels: Mapping[str, Kernel]) -> dict[str, Operand]:
        """Name the tiles of channels, and give what kernels are compiled for."""
        b, host = self.b, self.host
        b.section("Tiles: all channels of a head, rows by columns")
        key, value = host.sizes["key"], host.sizes["value"]
        wide_k = b.let("BK", path("max").call(config.least, path("triton.next_power_of_2").call(key)))
        wide_v = b.let("BV", path("max").call(config.least, path("triton.next_power_of_2").call(value)))
        masked = either(key.ne(wide_k), value.ne(wide_v))
        if any("MASKED" in kernel.uses for role, kernel in kernels.items() if role not in ("gates", "chain")):
            masked = b.let("masked", masked)
        operand = b.let("operand", path("coarsest").call(*self.launch.operands()))
        return {
            "C": config.chunk,
            "BK": wide_k,
            "BV": wide_v,
            "K": key,
            "V": value,
            "MASKED": masked,
            "PINNED": pinned(config, self.launch.first),
            "DOT": operand,
            "PRECISION": precision,
        }

    def tiles(self, extent: int) -> E:
        """How many tiles of a size a row of the batch has, without reading where the sequences of a pack begin."""
        host = self.host
        time = host.sizes["time"]
        packed = time // extent + host.sequences
        return self.b.let("tiles", choose(host.pack.missing(), path("triton.cdiv").call(time, extent), packed))


def shape_of_tiles(config: PairConfig, *, columns: bool = False) -> dict[str, Operand]:
    """What a kernel with a configuration is compiled for. columns: whether programs own columns and go over rows."""
    visited = config.rows if columns else config.columns
    repeats = max(1, WIDTH * config.warps // visited)
    tile = {"BM": config.rows, "BN": config.columns, "STAGES": config.stages}
    return {**tile, "REPEATS": repeats, "HELD": config.held}


class PairLauncher(Launch):
    """Builds the launcher of the forward kernel."""

    def __init__(self, pairs: Pairs, host: Host, names: PairNames, named: Tensors) -> None:
        super().__init__(pairs.linear, host)
        self.pairs = pairs
        self.before = Ahead(self, pairs, names, columns=False)
        self.named = named
        fresh = self.b.fresh
        self.asked = path(fresh("return_lse" if pairs.softmax else "return_norm")) if named.norm is not None else None
        self.keeps = path(fresh("return_others")) if named.others is not None else None

    def build(self, kernels: Mapping[str, Kernel], config: PairConfig) -> Function:
        """The launcher. kernels: `forward`, and where gates vary in time `gates`."""
        b, host, op = self.b, self.host, self.linear.op
        none, no = lift(None).node, lift(False).node
        precision = path(b.fresh("precision"))
        parameters = [
            *(Parameter(name_of(host.parameters[decl.name])) for decl in op.params),
            *(Parameter(name_of(x), default=no, keyword=True) for x in (self.asked, self.keeps) if x is not None),
            Parameter(name_of(host.pack), default=none, keyword=True),
            Parameter(name_of(precision), default=lift("ieee").node, keyword=True),
        ]
        self.sizes()
        self.checks()
        self.sequences()
        batch, time, heads, _, value = (host.sizes[axis] for axis in SIZES)
        constants = self.before.constants(precision, config, kernels)
        if host.gates:
            self.slots(lift(config.chunk))
        y, norm = self.named.outputs["y"], self.named.norm
        b.set(y, self.empty([batch, time, heads, value], self.first.attr("dtype")))
        if norm is not None and self.asked is not None:
            b.set(
                norm,
                path("new").call(
                    self.asked, sequence([batch, time, heads]), path(f"torch.{self._kept()}"), self.first.attr("device")
                ),
            )
        if self.named.others is not None and self.keeps is not None:
            given = sequence([batch, heads, time]), path("torch.float32"), self.first.attr("device")
            b.set(self.named.others, path("new").call(self.keeps, *given))
        self.before.make(kernels.get("gates"), constants)
        grid = sequence([self.before.tiles(config.rows), heads, batch])
        b.do(kernels["forward"].launch(grid, {**constants, **shape_of_tiles(config)}, config.warps))
        if self.keeps is not None and self.named.others is not None:
            with b.branch(self.keeps):
                b.give(sequence([y, norm, self.named.others]))
        if norm is None or self.asked is None:
            b.give(y)
        else:
            b.give(choose(self.asked, sequence([y, norm]), y))
        return b.function(op.name, self.doc(), parameters, jit=False)

    def _kept(self) -> str:
        """The dtype of what rows are divided by."""
        return "float64" if self.pairs.softmax and self.pairs.wide else "float32"

    def doc(self) -> list[str]:
        """The launcher's docstring."""
        lines = [f"{self.linear.op.name}: quadratic, of the tiles that hold live pairs.", "", "Args:"]
        lines += self.doc_of_parameters()
        if self.asked is not None:
            what = (
                "the logarithm of the sum of each row's weights" if self.pairs.softmax else "what rows are divided by"
            )
            lines.append(f"    {name_of(self.asked)}: whether to return {what}, {self._kept()}, [B, T, H].")
        if self.keeps is not None:
            what = "whether to return, besides, the share of each row that all but its largest weight have"
            lines.append(f"    {name_of(self.keeps)}: {what}, float32, [B, H, T].")
        lines += [
            f"    {name_of(self.host.pack)}: a pack: [S + 1], where each of S sequences begins, and the end.",
            '    precision: of fp32 matrix products, "ieee" or "tf32".',
            "",
            "Returns:",
            f"    y: [B, T, H, V], in the dtype of {self.tensors[0].name}.",
        ]
        return lines

    def doc_of_parameters(self) -> list[str]:
        """A line for each parameter of the op."""
        lines = []
        for decl in self.linear.op.params:
            grouped = "head" in decl.dims and bool({"key", "value"} & set(decl.dims))
            lines.append(f"    {decl.name}: {'a number' if decl.number else shape_of(decl, grouped)}.")
        return lines
