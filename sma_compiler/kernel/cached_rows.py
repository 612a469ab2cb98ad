"""Reads parameters for rows that are pairs of a new position and a query head, and for columns that all of them see.

The heads that share a head of the cache are rows of one tile, so that what a program reads of the cache serves them
all: row m is head m % SHARE of the group at new position m // SHARE.
"""

from __future__ import annotations

from dataclasses import dataclass

from sma_compiler.ir.nodes import Param
from sma_compiler.kernel.arguments import Arguments
from sma_compiler.kernel.build import Builder, E, arange, call, size
from sma_compiler.kernel.host import Host
from sma_compiler.kernel.inputs import EXTENT, Inputs, elements
from sma_compiler.kernel.maker import program
from sma_compiler.kernel.nodes import Tile


@dataclass(frozen=True)
class Rows:
    """The rows of a program. group: the head of the cache; times: new positions, from 0; heads; valid; [BM] each."""

    batch: E
    group: E
    times: E
    heads: E
    valid: E


def rows(b: Builder, arguments: Arguments, host: Host) -> Rows:
    """Say which rows this program has, by axes 1 (tile and group) and 2 (row of the batch) of the grid."""
    groups = arguments.integer("G", host.groups)
    i_b = b.let("i_b", program(2).to("int64"))
    i_g = b.let("i_g", (program(1) % groups).to("int64"))
    share = arguments.constant("SHARE", host.heads // host.groups)
    o_m = b.let("o_m", program(1) // groups * size("BM") + arange("BM"), show=False)
    t_m = b.let("t_m", o_m // share)
    h_m = b.let("h_m", i_g * share + o_m % share)
    v_m = b.let("v_m", t_m < arguments.integer("T", host.sizes["time"]), show=False)
    return Rows(i_b, i_g, t_m, h_m, v_m)


class RowInputs(Inputs):
    """The parameters at rows: bases are addresses of each row's head, positions those of the rows."""

    def __init__(self, builder: Builder, arguments: Arguments, host: Host, rows: Rows) -> None:
        super().__init__(builder, arguments, host, rows.batch, rows.heads, rows.batch)
        self.rows = rows

    def tensor(self, node: Param, address: E) -> E:
        if not address.tile.shape:
            return super().tensor(node, address)
        channel = next((axis for axis in ("key", "value") if axis in node.axes), None)
        if channel is None:
            value = call("tl.load", address, mask=self.rows.valid, other=0, tile=Tile("in", address.tile.shape))
        else:
            offsets, held = self.channels[channel]
            mask = self.rows.valid.col & held.row
            value = call(
                "tl.load", address.col + offsets.row, mask=mask, other=0, tile=Tile("in", ("BM", EXTENT[channel]))
            )
        return self.builder.let(f"b_{node.name}", elements(node, value, operand=False))

    def addresses(self, base: E, stride: E, channel: str | None, t0: E, rows: E, valid: E) -> tuple[E, E]:
        at = base + self.rows.times.to("int64") * stride
        if channel is None:
            return at, self.rows.valid
        offsets, _ = self.channels[channel]
        return at.col + offsets.row, self.inside[channel]


class ColumnInputs(Inputs):
    """What a mask reads of new columns: tiles over rows, where each head has its own, and columns, [BM or 1, BN]."""

    def __init__(self, builder: Builder, arguments: Arguments, host: Host, rows: Rows) -> None:
        super().__init__(builder, arguments, host, rows.batch, rows.heads, rows.batch)
        self.rows = rows

    def tensor(self, node: Param, address: E) -> E:
        if not address.tile.shape:
            return super().tensor(node, address)
        value = call("tl.load", address, mask=self.rows.valid, other=0, tile=Tile("in", address.tile.shape))
        return self.builder.let(f"b_{node.name}", elements(node, value, operand=False).col)

    def addresses(self, base: E, stride: E, channel: str | None, t0: E, rows: E, valid: E) -> tuple[E, E]:
        assert channel is None
        at = base.col if base.tile.shape else base
        mask = valid.row & self.rows.valid.col if base.tile.shape else valid.row
        return at + (t0 + rows).to("int64").row * stride, mask
