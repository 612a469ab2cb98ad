"""The launcher of new positions after those of a cache."""

from __future__ import annotations

from collections.abc import Mapping

from sma_compiler.ir.nodes import Expr
from sma_compiler.kernel.build import Operand, choose, lift, path, sequence
from sma_compiler.kernel.cached import Cached
from sma_compiler.kernel.cached_kernel import CacheNames
from sma_compiler.kernel.config import CACHED, PairConfig
from sma_compiler.kernel.host import SIZES, Host, Tensors
from sma_compiler.kernel.launch_pairs import Ahead
from sma_compiler.kernel.nodes import Function, Parameter
from sma_compiler.kernel.pair_places import PairNames
from sma_compiler.kernel.prepare import Kernel, Launch, either, name_of, shape_of


def cache_names(cached: Cached, host: Host) -> CacheNames:
    """Name what the kernels of a launcher read beside the op's parameters."""
    fresh = host.builder.fresh
    held = {name: path(fresh(f"held_{name}")) for name in cached.held}
    rest = ("places", "seen", "guard", "capacity", "parts", "span", "part_y", "part_norm", "part_max", "part_decay")
    counts = {turns: path(fresh("counts")) for turns in cached.counts}
    places, seen, guard, slots, parts, span, y, norm, most, decay = (path(fresh(name)) for name in rest)
    return CacheNames(held, places, seen, guard, slots, parts, span, y, norm, most, decay, counts)


class CachedLauncher(Launch):
    """Builds the launcher. tensors: the result and the log-sum-exp."""

    def __init__(self, cached: Cached, host: Host, names: CacheNames, named: Tensors, name: str) -> None:
        super().__init__(cached.pairs.linear, host)
        self.cached = cached
        self.names = names
        self.named = named
        self.name = name
        fresh = self.b.fresh
        self.cache, self.inplace, self.asked = (path(fresh(x)) for x in ("cache", "inplace", "return_lse"))

    def build(self, kernels: Mapping[str, Kernel], config: PairConfig) -> Function:
        """The launcher. kernels: `cached`, `combine` and `append`."""
        b, host, names, op = self.b, self.host, self.names, self.linear.op
        no = lift(False).node
        precision = path(b.fresh("precision"))
        parameters = [
            *(Parameter(name_of(host.parameters[decl.name])) for decl in op.params),
            Parameter(name_of(self.cache)),
            Parameter(name_of(names.seen)),
            *(Parameter(name_of(counts)) for counts in names.counts.values()),
            Parameter(name_of(self.inplace), default=no, keyword=True),
            Parameter(name_of(self.asked), default=no, keyword=True),
            Parameter(name_of(precision), default=lift("ieee").node, keyword=True),
        ]
        self.sizes()
        self.checks()
        self._cache()
        batch, time, heads, _, value = (host.sizes[axis] for axis in SIZES)
        constants = Ahead(self, self.cached.pairs, PairNames(), columns=False).constants(precision, config, kernels)
        b.section("Rows of a tile: the heads that share one of the cache, at new positions")
        cdiv = path("triton.cdiv")
        rows = time * (heads // host.groups)
        wide = path("triton.next_power_of_2").call(rows)
        tile = b.let("BM", path("min").call(config.rows, path("max").call(16, wide)))
        tiles = b.let("tiles", host.groups * cdiv.call(rows, tile))
        b.section("Parts of the slots: as many as keep the device busy, of at least two tiles")
        wanted = b.let("wanted", path("max").call(1, lift(CACHED) // (batch * tiles)))
        many = cdiv.call(cdiv.call(names.slots, config.columns), wanted)
        b.set(names.span, lift(config.columns) * path("max").call(2, many))
        b.set(names.parts, cdiv.call(names.slots, names.span))
        fp32, device = path("torch.float32"), self.first.attr("device")
        shape = [names.parts + 1, batch, time, heads]
        b.set(names.y, self.empty([*shape, value], fp32))
        sums = [names.norm, names.most, *([names.decay] if self.cached.pairs.paths else [])]
        for tensor in sums:
            b.set(tensor, self.empty(shape, fp32))
        b.section("")
        y, norm = self.named.outputs["y"], self.named.norm
        assert norm is not None
        b.set(y, self.empty([batch, time, heads, value], self.first.attr("dtype")))
        b.set(norm, path("new").call(self.asked, sequence([batch, time, heads]), fp32, device))
        given: dict[str, Operand] = {**constants, "BM": tile, "BN": config.columns, "STAGES": config.stages}
        b.do(kernels["cached"].launch(sequence([names.parts + 1, tiles, batch]), given, config.warps))
        b.do(kernels["combine"].launch(sequence([lift(1), tiles, batch]), given, config.warps))
        with b.branch(self.inplace):
            b.do(kernels["append"].launch(sequence([heads, batch]), given, 1))
        b.give(choose(self.asked, sequence([y, norm]), y))
        return b.function(self.name, self._doc(), parameters, jit=False)

    def _cache(self) -> None:
        """Take the tensors of the cache, and refuse what cannot be one."""
        b, host, names = self.b, self.host, self.names
        b.assign([names.places, *names.held.values()], self.cache)
        b.set(names.slots, names.places.attr("shape").at(1))
        heads = [names.held[name].attr("shape").at(2) for name in ("k", "v") if "head" in self.cached.held[name].axes]
        b.set(host.groups, path("max").call(*heads) if len(heads) > 1 else heads[0] if heads else lift(1))
        if self.cached.whole:
            b.set(names.guard, choose(self.inplace, names.places, None))
        batch = host.sizes["batch"]
        with b.branch(names.seen.attr("shape").ne(sequence([batch]))):
            b.fail(path("ValueError").call(f"{name_of(names.seen)} must be [B]"))
        for name, tensor in (("", names.places), *names.held.items()):
            axes = self._axes(name)
            sizes = [
                batch,
                names.slots,
                *(tensor.attr("shape").at(2) if a == "head" else host.sizes[a] for a in axes[2:]),
            ]
            with b.branch(tensor.attr("shape").ne(sequence(sizes))):
                shape = f"[{', '.join(self._letters(name))}]"
                b.fail(path("ValueError").call(f"{name or 'positions'} of a cache must be {shape}"))
        channels = [x for name, x in names.held.items() if {"key", "value"} & set(self._axes(name))]
        apart = either(*(x.attr("stride").call(-1).ne(1) for x in channels))
        with b.branch(apart):
            b.fail(path("ValueError").call("the channels of a cache must have stride 1"))
        with b.branch(self.inplace.both(either(host.sizes["time"].ne(1), names.slots.eq(0)))):
            b.fail(path("ValueError").call("in place one position goes into a cache that has slots"))

    def _axes(self, name: str) -> tuple[str, ...]:
        return stored(self.cached.held[name]) if name else ("batch", "slots")

    def _letters(self, name: str) -> list[str]:
        letters = {**SIZES, "slots": "slots", "head": "G" if name in ("k", "v") else "H"}
        return [letters[axis] for axis in self._axes(name)]

    def _doc(self) -> list[str]:
        op, names = self.linear.op, self.names
        lines = [f"{op.name} at new positions, after those of a cache.", "", "Args:"]
        for decl in op.params:
            grouped = "head" in decl.dims and bool({"key", "value"} & set(decl.dims))
            lines.append(f"    {decl.name}: {'a number' if decl.number else shape_of(decl, grouped)}.")
        kept = ", ".join(f"{name or 'positions'} [{', '.join(self._letters(name))}]" for name in ("", *names.held))
        lines += [
            f"    {name_of(self.cache)}: a ring of slots: {kept};",
            "        the oldest position lies behind the newest; empty slots have the position -1.",
            f"    {name_of(names.seen)}: int64, [B], how many positions came before.",
            *(
                f"    {name_of(x)}: int64, [B, T], how many runs began up to each position."
                for x in names.counts.values()
            ),
            f"    {name_of(self.inplace)}: put the new position, of which there must be one, into the cache.",
            f"    {name_of(self.asked)}: whether to return the log-sum-exp of each row, fp32, [B, T, H].",
            '    precision: of fp32 matrix products, "ieee" or "tf32".',
            "",
            "Returns:",
            f"    y: [B, T, H, V], in the dtype of {self.tensors[0].name}.",
        ]
        return lines


def stored(expr: Expr) -> tuple[str, ...]:
    """The dimensions of what a cache holds of an expression."""
    return ("batch", "slots", *(axis for axis in expr.axes if axis not in ("batch", "time")))
