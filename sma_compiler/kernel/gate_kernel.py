"""The kernel that makes the paths of varying gates ahead of the others; see `ahead.py`."""

from __future__ import annotations

from sma_compiler.kernel import rows as rows_of
from sma_compiler.kernel.ahead import address, parts, split
from sma_compiler.kernel.build import arange, call, pointwise, size
from sma_compiler.kernel.gates import Path, Rows, path_of, static_rates
from sma_compiler.kernel.host import Host, suffix
from sma_compiler.kernel.inputs import Inputs
from sma_compiler.kernel.linear import Term
from sma_compiler.kernel.maker import Maker, program
from sma_compiler.kernel.nodes import Function, Tile


class Gates(Maker):
    """Builds it: one program for each chunk of each head. streams: told by time."""

    def __init__(self, streams: tuple[Term, ...], host: Host, reserved: frozenset[str]) -> None:
        super().__init__(host, reserved)
        self.splits = tuple(split(term) for term in streams)

    def build(self, name: str) -> Function:
        """The kernel."""
        b = self.b
        b.section("Which chunk, head and sequence")
        slot = b.let("slot", program(0))
        i_h = b.let("i_h", program(1).to("int64"))
        i_b = b.let("i_b", program(2).to("int64"))
        span = rows_of.chunk(b, self.arguments, self.host, slot, i_b)
        t0, slots = span.begin, rows_of.slots(self.arguments, self.host)
        inputs = Inputs(b, self.arguments, self.host, i_b, i_h, span.sequence)
        length = self.arguments.integer("T", self.host.sizes["time"])
        o_c = b.let("o_c", arange("C"), show=False)
        m_t = b.let("m_t", t0 + o_c < span.end, show=False)
        rows = Rows(o_c, m_t, pointwise("tl.minimum", span.end - t0, size("C"), dtype="int32"))
        terms = [made.ahead for made in self.splits if made is not None]
        exprs = [x for term in terms for x in (*term.row, *term.col, *(gate.log for gate in term.gates))]
        b.section("Where the rows of this head begin")
        static = inputs.static(exprs)
        rates = static_rates(tuple(terms), static)
        b.section("Gates and factors; what lies past the end is read as 0")
        lowering = inputs.chunk(exprs, static, t0, o_c, m_t, ())
        place = inputs.row()
        for number, made in enumerate(self.splits):
            if made is None:
                continue
            end = suffix(number, len(self.splits))
            b.section("Decay from the start of the chunk, as powers of 2")
            begun = Path(made.ahead.strict, wide=made.ahead.wide)
            path = path_of(made.ahead, rates, lowering, rows, end, begun)
            b.section("")
            for part, value in parts(path, made).items():
                pointer = self.arguments.pointer(f"{part}{end}", self.host.gates[number, part])
                at = address(pointer, part, place, t0, rows, length, slots, slot)
                if part.endswith("all"):
                    b.do(call("tl.store", at, value, tile=Tile("ptr")))
                else:
                    b.helpers.add("store")
                    b.do(call("store", at, value, m_t, size("MASKED"), tile=Tile("ptr")))
        return b.function(
            name, ("The decays inside every chunk, from the gates.",), self.arguments.parameters, jit=True
        )
