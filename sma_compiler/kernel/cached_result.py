"""What follows the parts of a cache: the kernel that sums them, and the one that keeps the new position."""

from __future__ import annotations

from sma_compiler.ir.nodes import Expr
from sma_compiler.kernel.build import MINUS_INFINITY, E, arange, call, exp2, lift, pointwise, size, where
from sma_compiler.kernel.cached_kernel import CachedKernel
from sma_compiler.kernel.cached_rows import Rows
from sma_compiler.kernel.inputs import EXTENT, Inputs, tensors_of
from sma_compiler.kernel.linear import varies
from sma_compiler.kernel.lower import Lowering
from sma_compiler.kernel.maker import program
from sma_compiler.kernel.nodes import Function, Tile


class Combine(CachedKernel):
    """Builds the kernel that sums the parts of rows and writes the result."""

    def build(self, name: str) -> Function:
        """The kernel."""
        b, names, decays = self.b, self.cache, bool(self.pairs.paths)
        own, inputs, _, side = self.row_side(output.expr for output in self.walk.outputs)
        y, norm, most = self.totals()
        offsets, valid = inputs.channels["value"]
        inside = b.let("m_y", own.valid.col & valid.row, show=False)
        b.section("Each part against the largest exponent so far, in the order of time")
        count = self.arguments.integer("PARTS", names.parts) + 1
        with b.loop("i_s", call("tl.range", count, tile=Tile("int32"), num_stages=2), Tile("int32")) as i_s:
            at = b.let("at", self.partial(own, i_s))

            def part(name: str, tensor: E) -> E:
                address = self.arguments.pointer(f"part_{name}", tensor) + at
                return b.let(
                    f"b_{name}_part", call("tl.load", address, mask=own.valid, other=0.0, tile=Tile("fp32", ("BM",)))
                )

            if decays:
                b.set(most, most + part("decay", names.decay))
            largest = part("max", names.most)
            new = b.let("b_new", pointwise("tl.maximum", most, largest))
            base = b.let("b_base", where(new.eq(MINUS_INFINITY), 0.0, new))
            before, now = b.let("b_before", exp2(most - base)), b.let("b_now", exp2(largest - base))
            address = self.arguments.pointer("part_y", names.y) + (at.col * size("V") + offsets.row)
            loaded = call("tl.load", address, mask=inside, other=0.0, tile=Tile("fp32", ("BM", "BV")))
            b.set(y, y * before.col + b.let("b_y_part", loaded) * now.col)
            b.set(norm, norm * before + part("norm", names.norm) * now)
            b.set(most, new)
        if self.cached.whole:
            self._guard(own, norm)
        self._finish(inputs, side, y, norm, most)
        doc = ("One program sums the parts of the rows of one head of the cache.",)
        return b.function(name, doc, self.arguments.parameters, jit=True)

    def _guard(self, own: Rows, norm: E) -> None:
        """Rows whose cache is full are NaN: the new position would take the place of one that is seen."""
        b, places = self.b, self.cache.guard
        b.section("No slot is left for the new position: NaN")
        pointer = self.arguments.pointer("guard", places)
        with b.branch(pointer.given()):
            seen = self.seen(own)
            slots = self.arguments.integer("SLOTS", self.cache.slots)
            at = pointer + own.batch * self.arguments.stride("pos", "batch", self.cache.places, 0)
            b.helpers.add("oldest_slot")
            slot = call("oldest_slot", at, seen, slots, tile=Tile("int32"))
            slot = b.let("slot", slot.to("int64"))
            taken = call(
                "tl.load", at + slot * self.arguments.stride("pos", "time", self.cache.places, 1), tile=Tile("int64")
            )
            b.set(norm, where(taken >= 0, call("float", "nan", tile=Tile("fp32")), norm))


class Append(CachedKernel):
    """Builds the kernel that puts one new position into the cache, after the others have read it."""

    def build(self, name: str) -> Function:
        """The kernel: one program a query head; the first of those that share an entry writes it."""
        b, names, cached = self.b, self.cache, self.cached
        b.section("Which head and sequence")
        i_h = b.let("i_h", program(0).to("int64"))
        i_b = b.let("i_b", program(1).to("int64"))
        inputs = Inputs(b, self.arguments, self.host, i_b, i_h, i_b)
        for axis in ("key", "value"):
            offsets = b.let(f"o_{axis[0]}", arange(EXTENT[axis]), show=False)
            inputs.use_channels(axis, offsets, b.let(f"m_{axis[0]}", offsets < size(axis[0].upper()), show=False))
        inputs.masked = lift(True)
        own = Rows(i_b, i_h, i_h, i_h, i_h)
        seen = self.seen(own)
        slot = self.oldest(own, seen)
        places = names.places
        at = self.arguments.pointer("pos", places) + i_b * self.arguments.stride("pos", "batch", places, 0)
        at = b.let("p_pos", at + slot.to("int64") * self.arguments.stride("pos", "time", places, 1))
        if cached.whole:
            b.comment("A slot that holds an earlier position is kept")
            held = b.let("held", call("tl.load", at, tile=Tile("int64")))
            with b.branch((held >= 0) & held.ne(seen)):
                b.give(None)
        exprs = tuple(expr for expr in cached.held.values() if expr not in cached.counts.values())
        b.section("Where the rows of this head begin")
        static = inputs.static(exprs)
        b.section("The new position")
        for node in tensors_of(exprs):
            if varies(node):
                static.bind(node, inputs.tensor(node, inputs.base(node.name)))
        for held_name, expr in cached.held.items():
            self._write(inputs, static, held_name, expr, slot)
        with b.branch(i_h.eq(0)):
            b.do(call("tl.store", at, seen, tile=Tile("ptr")))
        doc = ("One program puts the new position of one head into the cache: after the newest, in a ring.",)
        return b.function(name, doc, self.arguments.parameters, jit=True)

    def _write(self, inputs: Inputs, static: Lowering, name: str, expr: Expr, slot: E) -> None:
        """Write what the cache holds of the position, at this program's head."""
        b, tensor = self.b, self.cache.held[name]
        address = self.arguments.pointer(f"held_{name}", tensor)
        address = address + inputs.batch * self.arguments.stride(f"held_{name}", "batch", tensor, 0)
        address = address + slot.to("int64") * self.arguments.stride(f"held_{name}", "time", tensor, 1)
        share: E = self.arguments.integer("H", self.host.heads)
        if "head" in expr.axes:
            share = self.arguments.constant(f"{name.upper()}_HEADS", self.host.heads // tensor.attr("shape").at(2))
            address = address + inputs.head // share * self.arguments.stride(f"held_{name}", "head", tensor, 2)
        with b.branch((inputs.head % share).eq(0)):
            turns = next((turns for turns, held in self.cached.counts.items() if held is expr), None)
            if turns is not None:
                x = call(
                    "tl.load",
                    self.arguments.pointer("count", self.cache.counts[turns]) + inputs.batch,
                    tile=Tile("int64"),
                )
            else:
                x = static.value(expr)
            channel = next((axis for axis in ("key", "value") if axis in expr.axes), None)
            if channel is None:
                b.do(call("tl.store", address, x, tile=Tile("ptr")))
            else:
                offsets, valid = inputs.channels[channel]
                b.do(call("tl.store", address + offsets, x, mask=valid, tile=Tile("ptr")))
