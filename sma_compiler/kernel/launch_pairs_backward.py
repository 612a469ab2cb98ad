"""The backward launcher of the quadratic plan: `op_backward`, the gradients of every tensor that an op takes."""

from __future__ import annotations

from collections.abc import Mapping

from sma_compiler.kernel.build import E, Operand, choose, lift, path, sequence
from sma_compiler.kernel.check import UNUSED
from sma_compiler.kernel.config import PairConfig
from sma_compiler.kernel.host import SIZES, Host, Tensors
from sma_compiler.kernel.inputs import tensors_of
from sma_compiler.kernel.launch_backward import BackwardLauncher, Named
from sma_compiler.kernel.launch_pairs import Ahead, shape_of_tiles
from sma_compiler.kernel.nodes import Function, Parameter
from sma_compiler.kernel.pair_backward import PairBackward, whole_groups
from sma_compiler.kernel.pair_gradients import PairTensors
from sma_compiler.kernel.pair_places import PairNames
from sma_compiler.kernel.pairs import Pairs
from sma_compiler.kernel.prepare import Kernel, either, name_of, size_of

ROWS = ("batch", "time", "head")
"""The axes of what a row has one of."""
SUMS = "sums"
"""The name under which sums over pairs are kept among the outputs of walks."""


def pair_tensors(back: PairBackward, host: Host) -> tuple[PairTensors, Named]:
    """Name everything that the kernels of a backward pass read and write."""
    fresh, made = host.builder.fresh, back.made
    written = {piece.tensor: path(fresh(piece.tensor)) for piece in made.pieces}
    written |= {decl.name: host.parameters[decl.name] for decl in made.reads}
    sums = {one.tensor: written.get(one.tensor) or path(fresh(one.tensor)) for one in (*back.sums, *back.lags)}
    leaves = back.delta, back.logs, back.rest, back.others, back.share, back.low, back.care
    handed = (lift(None) if x is None else host.parameters[x.name] for x in leaves)
    one = lift(1)
    walks = {
        walk.name: Tensors(one, one, {output.name: written[output.name] for output in walk.outputs})
        for walk in made.walks
    }
    walks[SUMS] = Tensors(one, one, sums)
    outputs = {output.name: written[output.name] for output in made.chain.outputs} if made.chain else {}
    named = Named(walks, Tensors(one, one, outputs), {}, {}, {}, {"key": one, "value": one}, one)
    delta, logs, rest, others, share, low, care = handed
    rows = delta, logs, rest, others, share, low, care
    return PairTensors(written, sums, *rows, path(fresh("groups")), path(fresh("dlse"))), named


class PairBackwardLauncher(BackwardLauncher):
    """Builds the launcher."""

    states = False

    def __init__(
        self, pairs: Pairs, back: PairBackward, host: Host, names: PairNames, tensors: PairTensors, named: Named
    ) -> None:
        super().__init__(back.made, host, named)
        self.back = back
        self.before = Ahead(self, pairs, names, columns=True)
        self.pair_names = tensors

    def launcher(self, name: str, kernels: Mapping[str, Kernel], configs: Mapping[str, PairConfig]) -> Function:
        """The launcher. kernels, configs: by walk ("again", "dq", "dkv"), and `chain` and `gates` where there are."""
        b, host = self.b, self.host
        self.sizes()
        self.checks()
        self._cotangents()
        self._cotangent_of_lse()
        self.sequences()
        constants = self.before.constants(self.precision, configs["dq"], kernels)
        self.whole = {axis: lift(constants[f"B{axis[0].upper()}"]) for axis in ("key", "value")}
        if host.gates or self.made.chain is not None:
            self.slots(lift(configs["dq"].chunk))
        self._needs()
        self._again()
        self._groups()
        self.before.make(kernels.get("gates"), constants)
        self._start(kernels, constants, configs)
        if self.made.chain is not None:
            self._chain(kernels["chain"], {**constants, "MASKED": self.before.ragged(constants)})
        self._give()
        return b.function(name, self._doc(), self._parameters(), jit=False)

    def _cotangent_of_lse(self) -> None:
        """Take the cotangents of what rows are divided by, which a softmax may return."""
        if not self.before.pairs.softmax:
            return
        b, dlse = self.b, self.pair_names.dlse
        with b.branch(dlse.given()):
            with b.branch(dlse.attr("shape").ne(sequence(self.host.sizes[axis] for axis in ROWS))):
                b.fail(path("ValueError").call(f"{name_of(dlse)} must be [B, T, H]"))
            b.set(dlse, dlse.attr("contiguous").call())

    @property
    def others(self) -> E | None:
        return None if self.back.others is None else self.pair_names.others

    def _parameters(self) -> list[Parameter]:
        found = super()._parameters()
        if self.others is not None:
            found.append(Parameter(name_of(self.others), default=lift(None).node, keyword=True))
        if self.before.pairs.softmax:
            found.append(Parameter(name_of(self.pair_names.dlse), default=lift(None).node, keyword=True))
        return found

    def _doc(self) -> list[str]:
        lines = super()._doc()
        if self.others is not None:
            what = "the share of each row that all but its largest weight have, as it returned that; None: enough."
            lines.insert(lines.index("Returns:") - 1, f"    {name_of(self.others)}: {what}")
        if self.before.pairs.softmax:
            what = "the cotangent of the logarithms that it returned, [B, T, H]; None: 0."
            lines.insert(lines.index("Returns:") - 1, f"    {name_of(self.pair_names.dlse)}: {what}")
        return lines

    def _needs(self) -> None:
        b = self.b
        b.section(
            "Which gradients are asked for" + (", and whether sums over pairs are needed" if self.back.sums else "")
        )
        with b.branch(self.needs.missing()):
            b.set(self.needs, sequence([lift(True)]) * len(self.tensors))
        made = {piece.param for piece in self.made.pieces}
        b.assign([need if name in made else path(UNUSED) for name, need in self.need.items()], self.needs)
        if self.back.sums:
            outputs = {output.name for output in self.made.chain.outputs} if self.made.chain is not None else set()
            b.set(self.by_chain, either(*self._needed({*outputs, *(one.tensor for one in self.back.sums)})))

    def _groups(self) -> None:
        """How many groups of heads have keys and values of their own."""
        host = self.host
        held = [node for node in tensors_of(whole_groups(self.back)) if "head" in node.axes]
        groups = self.pair_names.groups
        if any(node.name not in host.shared for node in held):
            self.b.set(groups, host.heads)
            return
        counts = [size_of(host, host.decls[node.name], "head") for node in held]
        self.b.set(groups, path("max").call(1, *counts))
        if len(counts) > 1:
            with self.b.branch(either(*((groups % count).ne(0) for count in counts))):
                self.b.set(groups, host.heads)

    def _heads(self, tensor: str) -> E:
        of_keys = (*self.made.dk.outputs, *self.made.dv.outputs)
        return self.pair_names.groups if tensor in {output.name for output in of_keys} else self.host.heads

    def _start(
        self, kernels: Mapping[str, Kernel], constants: Mapping[str, Operand], configs: Mapping[str, PairConfig]
    ) -> None:
        """Launch what goes over pairs."""
        b, host, made = self.b, self.host, self.made
        batch, time, heads, _, _ = (host.sizes[axis] for axis in SIZES)
        fp32, summed = path("torch.float32"), path("torch.float64" if self.before.pairs.wide else "torch.float32")

        def launch(role: str, along: int, count: E) -> None:
            config = configs[role]
            grid = sequence([self.before.tiles(along), count, batch])
            passes(role, grid, {**constants, **shape_of_tiles(config, columns=role == "dkv")}, config.warps)

        def passes(role: str, grid: E, known: Mapping[str, Operand], warps: int) -> None:
            """Launch a kernel, once more for what needs care where something may."""
            if self.back.care is None or role == "again":
                b.do(kernels[role].launch(grid, known, warps))
                return
            with b.scope(), b.loop("with_care", sequence([lift(False), lift(True)])) as care:
                b.do(kernels[role].launch(grid, {**known, "CARE": care}, warps))

        if made.before is not None:
            b.section("What needs the contraction itself, once more")
            for output in made.before.outputs:
                self._output(output.name)
            launch("again", configs["again"].rows, heads)
        b.section("Queries" + (", and what rows of pairs sum to" if self.back.at("i") else ""))
        for output in made.dq.outputs:
            self._output(output.name)
        for one in self.back.sums:
            shape = [batch, heads, time, *([] if one.table is None else [host.sizes["level"]])]
            b.set(self.pair_names.sums[one.tensor], self._new(self.by_chain, shape, summed))
        names = self.pair_names
        for tensor in (names.logs, names.rest, names.share, names.low, names.delta):
            if tensor.node != lift(None).node:
                dtype = summed if tensor is names.delta and self.before.pairs.softmax else fp32
                b.set(tensor, self.empty([batch, heads, time], dtype))
        if self.back.care is not None:
            given = {"dtype": path("torch.int32"), "device": self.first.attr("device")}
            b.set(names.care, path("torch.zeros").call(sequence([batch, names.groups]), **given))
        keys = (*made.dk.outputs, *made.dv.outputs)
        sums = [self.by_chain] if self.back.sums else []
        of_keys = [*self._needed(output.name for output in keys), *sums]
        of_queries = [*self._needed(output.name for output in made.dq.outputs), *sums]
        of_lags = self._needed(one.tensor for one in self.back.lags)
        first = [*of_queries, *([*of_keys, *of_lags] if self.back.delta is not None else ())]
        with b.branch(either(*dict.fromkeys(first))):
            launch("dq", configs["dq"].rows, heads)
        b.section("Keys and values" + (", and what columns of pairs sum to" if self.back.at("j") else ""))
        for output in keys:
            self._output(output.name)
        with b.branch(either(*dict.fromkeys(of_keys))):
            launch("dkv", configs["dkv"].columns, self.pair_names.groups)
        if not self.back.lags:
            return
        b.section("Taps, by distances")
        config, lags = configs["lags"], host.sizes["lag"]
        for one in self.back.lags:
            wanted = either(*self._needed([one.tensor]))
            b.set(self.pair_names.sums[one.tensor], self._new(wanted, [host.sequences, heads, lags], summed))
        with b.branch(either(*of_lags)):
            grid = sequence([path("triton.cdiv").call(lags, config.rows), heads, host.sequences])
            passes("lags", grid, {**constants, **shape_of_tiles(config)}, config.warps)

    def _give(self) -> None:
        b, sums = self.b, {one.tensor for one in self.back.sums}
        pieces = [piece for piece in self.made.pieces if piece.tensor in sums]
        if self.made.chain is not None or len(pieces) > 1:  # sums are made together, where any of them is needed
            for piece in pieces:
                made = self._written(piece.tensor)
                b.set(made, choose(self.need[piece.param], made, None))
        super()._give()

    def _ends(self) -> None:
        b, host, sums = self.b, self.host, self.pair_names.sums
        for leaf, tensor in self.back.ends:
            b.set(host.parameters[leaf.name], sums[tensor].attr("transpose").call(1, 2))
        for gate in self.back.paths:
            closed = gate.along.gate
            ends = sums[gate.late], sums[gate.early]
            total = path("along_paths").call(*ends, closed.query_closed, closed.key_closed)
            b.set(host.parameters[gate.leaf.name], total)
