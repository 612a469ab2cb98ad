"""Which positions a program has: those of a row of a batch, or of one sequence of a pack.

A pack is a batch of one row that holds sequences one after another; `cu_seqlens` says where each begins, and the end.
Nothing is read on the host: a program finds its sequence by itself. Arrays with an entry for each chunk have, for a
pack, T // C + S slots: a sequence s that begins at position b has those from b // C + s on, which never overlap.
"""

from __future__ import annotations

from dataclasses import dataclass

from sma_compiler.kernel.arguments import Arguments
from sma_compiler.kernel.build import Builder, E, call, size
from sma_compiler.kernel.host import Host, Tensors, suffix
from sma_compiler.kernel.nodes import Name, Tile
from sma_compiler.kernel.walk import Walk


@dataclass(frozen=True)
class Span:
    """The positions `begin` to `end` that a program works on.

    batch: the row of the batch that holds them. sequence: which sequence they are of, by which states are kept.
    slot: of the first chunk, in arrays with an entry for each chunk.
    """

    batch: E
    sequence: E
    begin: E
    end: E
    slot: E


def sequence(b: Builder, arguments: Arguments, host: Host, index: E, chunk: E | None = None) -> Span:
    """A whole sequence. index: which, int64. chunk: positions that each slot holds, C by default."""
    batch, begin, end, slot = _names(b, ("i_b", "int64"), ("begin", "int32"), ("end", "int32"), ("slot", "int32"))
    _call(
        b,
        "sequence",
        (batch, begin, end, slot),
        _pack(arguments, host),
        index,
        _length(arguments, host),
        chunk or size("C"),
    )
    return Span(batch, index, begin, end, slot)


def chunk(b: Builder, arguments: Arguments, host: Host, slot: E, index: E, extent: str = "C") -> Span:
    """One chunk: `begin` is its first position, `end` that of its sequence. index: of the batch's row, int64.

    extent: the size that says how many positions a chunk has.
    """
    of, begin, end = _names(b, ("i_s", "int64"), ("t0", "int32"), ("end", "int32"))
    count = arguments.integer("S", host.sequences)
    given = (_pack(arguments, host), index, slot, _length(arguments, host), count)
    _call(b, "find_chunk", (of, begin, end), *given, size(extent))
    return Span(index, of, begin, end, slot)


def first_slot(b: Builder, arguments: Arguments, host: Host, span: Span) -> E:
    """The entry of a sequence's first chunk, where slots of the span are of something else."""
    unused = _names(b, ("i_b", "int64"), ("begin", "int32"), ("end", "int32"))
    (slot,) = _names(b, ("slot", "int32"))
    given = (_pack(arguments, host), span.sequence, _length(arguments, host))
    _call(b, "sequence", (*unused, slot), *given, size("C"))
    return slot


def slots(arguments: Arguments, host: Host) -> E:
    """How many entries arrays for each chunk have in a row of the batch."""
    return arguments.integer("SLOTS", host.slots)


def entry_of_slot(arguments: Arguments, host: Host, batch: E, slot: E, head: E) -> E:
    """The place of a chunk's entry for a head, in [B, slots, H]."""
    return (batch * slots(arguments, host) + slot) * arguments.integer("H", host.heads) + head


def _pack(arguments: Arguments, host: Host) -> E:
    return arguments.pointer("cu", host.pack)


def _length(arguments: Arguments, host: Host) -> E:
    return arguments.integer("T", host.sizes["time"])


def _names(b: Builder, *wanted: tuple[str, str]) -> tuple[E, ...]:
    return tuple(E(Name(Tile(dtype), b.fresh(name))) for name, dtype in wanted)


def _call(b: Builder, helper: str, targets: tuple[E, ...], *args: E) -> None:
    b.helpers.add(helper)
    b.assign(targets, call(helper, *args, tile=Tile("int32")))


def lone(walk: Walk, tensors: Tensors, arguments: Arguments, span: Span) -> tuple[E, E]:
    """The only position of a whole sequence that pairs with itself alone, and whether no state comes before it."""
    last = walk.backward == (walk.lone == "rows")
    number = suffix(0, len(walk.terms))
    if walk.lone == "rows":
        state = arguments.pointer(f"initial{number}", tensors.initial["matrix", 0])
    else:
        state = arguments.pointer(f"final_keys{number}", tensors.final["vector", 0])
    return span.end - 1 if last else span.begin, state.missing()
