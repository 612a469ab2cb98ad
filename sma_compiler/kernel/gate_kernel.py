"""The kernel that makes the paths of varying gates ahead of the others; see `ahead.py`."""

from __future__ import annotations

from sma_compiler.kernel.ahead import address, parts
from sma_compiler.kernel.build import arange, call, pointwise, size
from sma_compiler.kernel.chunk import Chunked, program
from sma_compiler.kernel.gates import Rows, path_of, static_rates
from sma_compiler.kernel.inputs import Inputs
from sma_compiler.kernel.nodes import Function, Tile


class Gates(Chunked):
    """Builds it: one program for each chunk of each head."""

    def build(self, name: str) -> Function:
        """The kernel."""
        b = self.b
        b.section("Which chunk, head and sequence")
        t0 = b.let("t0", program(0) * size("C"))
        i_h = b.let("i_h", program(1).to("int64"))
        i_b = b.let("i_b", program(2).to("int64"))
        inputs = Inputs(b, self.arguments, self.linear.op, self.host, i_b, i_h)
        length = self.arguments.integer("T", self.host.sizes["time"])
        o_c = b.let("o_c", arange("C"), show=False)
        m_t = b.let("m_t", t0 + o_c < length, show=False)
        rows = Rows(o_c, m_t, pointwise("tl.minimum", length - t0, size("C"), dtype="int32"))
        terms = [made.ahead for made in self.splits if made is not None]
        exprs = [x for term in terms for x in (*term.row, *term.col, *(gate.log for gate in term.gates))]
        b.section("Where the rows of this head begin")
        static = inputs.static(exprs)
        rates = static_rates(tuple(terms), static)
        b.section("Gates and factors; what lies past the end is read as 0")
        lowering = inputs.chunk(exprs, static, t0, o_c, m_t, ())
        place = i_b * self.arguments.integer("H", self.host.heads) + i_h
        for number, made in enumerate(self.splits):
            if made is None:
                continue
            suffix = self.suffix(number)
            b.section("Decay from the start of the chunk, as powers of 2")
            path = path_of(made.ahead, rates, lowering, rows, suffix)
            b.section("")
            for part, value in parts(path, made).items():
                pointer = self.arguments.pointer(f"{part}{suffix}", self.host.gates[number, part])
                at = address(pointer, part, place, t0, rows, length)
                if part.endswith("all"):
                    b.do(call("tl.store", at, value, tile=Tile("ptr")))
                else:
                    b.helpers.add("store")
                    b.do(call("store", at, value, m_t, size("MASKED"), tile=Tile("ptr")))
        return b.function(
            name, ("The decays inside every chunk, from the gates.",), self.arguments.parameters, jit=True
        )
