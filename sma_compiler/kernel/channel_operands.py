"""The operands of a walk whose gates differ by the inner channels: made ahead, or decayed by the walk itself.

A walk decays them itself where heads are so small that few programs share one, and would write more than they read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sma_compiler.kernel.build import Builder, E, cumsum, size
from sma_compiler.kernel.channels import ChannelPath
from sma_compiler.kernel.gates import Rows
from sma_compiler.kernel.lower import Lowering, wide_operand
from sma_compiler.kernel.rows import slots
from sma_compiler.kernel.walk import Walk

if TYPE_CHECKING:
    from sma_compiler.kernel.chunk import Chunked, Place


def loaded(kernel: Chunked, place: Place, t0: E, rows: Rows) -> tuple[E, E, E]:
    """p and s of a chunk, decayed to where states come in and go out, and the decay of a state; made ahead."""
    b, walk, inputs, host = kernel.b, kernel.walk, place.inputs, kernel.host
    inner = walk.inner
    found: list[E] = []
    for part, name in zip(("early", "late") if walk.backward else ("late", "early"), walk.names, strict=False):
        begin = inputs.made(part, kernel.arguments.pointer(part, host.decayed[part]), inner)
        at, mask = inputs.addresses(*begin, inner, t0, rows.offsets, rows.valid)
        value = b.helper("load", at, mask, size("MASKED"), dtype="in")
        found.append(b.let(f"b_{name}", value.to("dot")))
    pointer = kernel.arguments.pointer("across", host.decayed["across"])
    index = inputs.row() * slots(kernel.arguments, host) + kernel.slot(place, t0)
    offsets, valid = inputs.channels[inner]
    at = pointer + index * size(inner[0].upper()) + offsets
    return found[0], found[1], b.let("b_across", b.helper("load", at, valid, size("MASKED")))


def decayed(
    b: Builder, walk: Walk, path: ChannelPath, lowering: Lowering, inside: E, rows: bool
) -> tuple[E | None, E, E]:
    """p and s of a chunk, and the decay of a state; without `rows`, s alone, decayed to where the state goes out.

    Else both count from the chunk's start, where no power of 2 leaves the range of bf16: with a state that is there
    too, scores, rows and states are products of these two alone.
    """
    across = b.let("b_across", path.across())
    if not rows:
        s = wide_operand(b, walk.s, walk.names[1], lowering, inside) * path.to_end()
        return None, b.let(f"b_{walk.names[1]}", s.to("dot")), across
    powers = path.powers(b.let("b_sums", cumsum(path.steps)))
    found: list[E] = []
    ends = reversed(powers) if walk.backward else powers
    for expr, name, power in zip((walk.p, walk.s), walk.names, ends, strict=False):
        wide = wide_operand(b, expr, name, lowering, inside)
        found.append(b.let(f"b_{name}", (wide * power).to("dot")))
    return found[0], found[1], across
