"""How a kernel reads an op's parameters: base addresses of one head, static values, and the tiles of a chunk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from copy import copy
from dataclasses import replace

from sma_compiler.ir.nodes import (
    Apply,
    At,
    Const,
    Contraction,
    Expr,
    Kind,
    Param,
    ParamDecl,
    Reduce,
    children,
    postorder,
)
from sma_compiler.kernel.arguments import Arguments, strided
from sma_compiler.kernel.build import Builder, E, call, lift, path, size
from sma_compiler.kernel.host import Host
from sma_compiler.kernel.linear import plain, static_number, varies
from sma_compiler.kernel.lower import CHANNELS, Lowering
from sma_compiler.kernel.nodes import Tile

EXTENT = CHANNELS
"""The tile size of each channel axis."""


class Inputs:
    """The parameters of an op inside one kernel.

    batch, head: the row of the batch and the head that the program reads; sequence: by which it keeps states.
    heads: how many heads `head` counts, on the host; None: all.
    channels: offsets along `key` and `value`, and where they are valid. masked: whether loads are masked.
    """

    def __init__(
        self,
        builder: Builder,
        arguments: Arguments,
        host: Host,
        batch: E,
        head: E,
        sequence: E,
        heads: E | None = None,
    ) -> None:
        self.builder = builder
        self.host = host
        self.arguments = arguments
        self.batch = batch
        self.head = head
        self.sequence = sequence
        self.heads = heads or host.heads
        self.channels: dict[str, tuple[E, E]] = {}
        self.inside: dict[str, E] = {}
        self.masked = size("MASKED")
        self.cubic: frozenset[Param] = frozenset()
        self.turned = False
        """Tensors without time that are loaded as [1, BK, BV]: Triton lays out what meets them alike."""
        self._bases: dict[str, E] = {}
        self._strides: dict[str, E] = {}

    def use_channels(self, axis: str, offsets: E, valid: E) -> None:
        """Say which channels of `key` or `value` the program holds."""
        self.channels[axis] = (offsets, valid)

    def holding(self, axis: str, offsets: E, valid: E) -> Inputs:
        """The same with these channels of an axis."""
        found = copy(self)
        found.channels, found.inside = {**self.channels, axis: (offsets, valid)}, {}
        return found

    def enter(self, valid: E | None) -> None:
        """Make the masks of a chunk whose rows are valid where `valid` is; None: everywhere."""
        for axis, (_, held) in self.channels.items():
            inside = held.row if valid is None else self.builder.let(f"m_t{axis[0]}", valid.col & held.row, show=False)
            self.inside[axis] = inside

    def base(self, name: str) -> E:
        """The address of a tensor's entries for this program's sequence and head."""
        if name not in self._bases:
            self._bases[name] = self._base(name, self.host.decls[name], self.host.parameters[name])
        return self._bases[name]

    def stride(self, name: str) -> E:
        """How far apart a tensor's positions are; the base must exist."""
        return self._strides[name]

    def _base(self, name: str, decl: ParamDecl, host: E) -> E:
        address = self.arguments.pointer(name, host)
        for axis, dimension in strided(decl):
            step = self.arguments.stride(name, axis, host, dimension)
            if axis == "batch":
                address = address + self.batch * step
            elif axis == "time":
                self._strides[name] = step
            else:
                address = address + self._head(name, decl, host) * step
        return self.builder.let(f"p_{name}", address)

    def _head(self, name: str, decl: ParamDecl, host: E) -> E:
        """Which head of a tensor serves this program's: several share one where the tensor has fewer."""
        if name not in self.host.shared:
            return self.head
        shared = self.heads // host.attr("shape").at(decl.dims.index("head"))
        return self.head // self.arguments.constant(f"{name.upper()}_SHARED", shared)

    def static(self, exprs: Iterable[Expr], rows: str = "C") -> Lowering:
        """Take the addresses of every parameter that the expressions read, and load what does not vary in time.

        The numbers known at the launch are bound too: expressions of all these lower from the result. rows: the size
        that the first axis of tiles has, that of time or, at one position, of a channel.
        """
        exprs = tuple(exprs)
        lowering = Lowering(self.builder, {}, rows, shared_nodes(exprs))
        for node in maximal_numbers(exprs):
            lowering.bind(node, self._number(node))
        tensors = self.held(exprs)
        for node in tensors:
            self.base(node.name)
        still = [node for node in tensors if not varies(node)]
        if still:
            self.builder.section("What does not vary in time")
        for node in still:
            lowering.bind(node, self.tensor(node, self.base(node.name)))
        return lowering

    def held(self, exprs: Iterable[Expr]) -> list[Param]:
        """The tensors of the launcher that expressions read; a kernel may bind further leaves of its own."""
        return [node for node in tensors_of(exprs) if node.name in self.host.decls]

    def _number(self, node: Expr) -> E:
        name = node.name if isinstance(node, Param) else "factor"
        if node.kind <= Kind.INT:
            return self.arguments.integer(name, self.host.number(node))
        return self.arguments.real(name, path("float").call(self.host.number(node)))

    def tensor(self, node: Param, address: E) -> E:
        """Load what a tensor has at one position: a number, or the program's channels."""
        channel = next((axis for axis in ("key", "value") if axis in node.axes), None)
        if channel is None:
            value = call("tl.load", address, tile=Tile("in"))
        elif {"key", "value"} <= set(node.axes):
            value = self._square(node, address)
        else:
            offsets, valid = self.channels[channel]
            value = self.builder.helper("load", address + offsets, valid, self.masked, dtype="in")
        return self.builder.let(f"b_{node.name}", elements(node, value, operand=False))

    def _square(self, node: Param, address: E) -> E:
        """Load what a tensor has for every pair of the program's channels, [key, value]."""
        offsets, mask = self._pairs(node, cubic=node in self.cubic)
        return self.builder.helper("load", address + offsets, mask, size("MASKED"), dtype="in")

    def _pairs(self, node: Param, *, cubic: bool = False) -> tuple[E, E]:
        """Where a tensor has the pairs of the program's channels, and which there are, [BK, BV] or [1, BK, BV]."""
        (o_k, m_k), (o_v, m_v) = self.channels["key"], self.channels["value"]
        decl, host = self.host.decls[node.name], self.host.parameters[node.name]
        far = next(axis for axis in decl.dims if axis in ("key", "value"))
        stride = self.arguments.stride(node.name, far, host, decl.dims.index(far))
        rows, columns = (o_k * stride, o_v) if far == "key" else (o_k, o_v * stride)
        if cubic:
            order = ("1", *EXTENT.values())
            rows, columns, m_k, m_v = (x.among(order) for x in (rows, columns, m_k, m_v))
            return rows + columns, m_k & m_v
        return rows.col + columns.row, m_k.col & m_v.row

    def chunk(
        self, exprs: Iterable[Expr], static: Lowering, t0: E, rows: E, valid: E | None, operands: Container[Expr]
    ) -> Lowering:
        """Load the tiles of rows t0 + rows of every parameter that some expressions read.

        valid: which rows there are; None: all. operands: the parameters that matrix products take as they are.
        """
        lowering = static.extended()
        for node in self.held(exprs):
            if varies(node):
                lowering.bind(node, self._tile(node, t0, rows, valid, node in operands))
        return lowering

    def _tile(self, node: Param, t0: E, rows: E, valid: E | None, operand: bool) -> E:
        channel = next((axis for axis in ("key", "value") if axis in node.axes), None)
        base = self.base(node.name)
        if {"key", "value"} <= set(node.axes):
            address = self.cubes(base, self._strides[node.name], self._pairs(node)[0], t0, rows)
            value = self.builder.helper("load", address, self.inside["all"], self.masked, dtype="in")
            return self.builder.let(f"b_{node.name}", elements(node, value, operand))
        given = lift(True) if valid is None else valid
        address, mask = self.addresses(base, self._strides[node.name], channel, t0, rows, given)
        if channel is None and valid is None:
            value = call("tl.load", address, tile=Tile("in", address.tile.shape))
        else:
            value = self.builder.helper("load", address, mask, self.masked, dtype="in")
        wide = node.name in self.host.wide
        return self.builder.let(f"b_{node.name}", value.to("fp64") if wide else elements(node, value, operand))

    def enter_all(self, valid: E) -> E:
        """Make the masks of a tile of positions as well as that of all its channels together, [C, BK, BV]."""
        self.enter(valid)
        (extent,) = valid.tile.shape
        order = (extent, *EXTENT.values())
        held = [held.among(order) for held in (valid, *(self.channels[axis][1] for axis in EXTENT))]
        self.inside["all"] = self.builder.let("m_tkv", held[0] & held[1] & held[2], show=False)
        return self.inside["all"]

    def cubes(self, base: E, stride: E, matrix: E, t0: E, rows: E) -> E:
        """The addresses of positions t0 + rows of matrices of channels. matrix: offsets in each, [BK, BV]."""
        self.builder.helpers.add("cube")
        shape = (*rows.tile.shape, *matrix.tile.shape)
        return call("cube", base, t0, stride, rows, matrix, tile=Tile("ptr", shape))

    def addresses(self, base: E, stride: E, channel: str | None, t0: E, rows: E, valid: E) -> tuple[E, E]:
        """The addresses of a chunk's rows, and where they lie inside the tensor."""
        helpers = self.builder.helpers
        (extent,) = rows.tile.shape
        if channel is None:
            helpers.add("column")
            return call("column", base, t0, stride, rows, tile=Tile("ptr", (extent,))), valid
        helpers.add("tile")
        offsets, _ = self.channels[channel]
        shape = (extent, EXTENT[channel])
        return call("tile", base, t0, stride, rows, offsets, tile=Tile("ptr", shape)), self.inside[channel]

    def line(self, name: str, t0: E, rows: E) -> E:
        """The addresses of rows t0 + rows of a tensor."""
        self.builder.helpers.add("column")
        return call("column", self.base(name), t0, self._strides[name], rows, tile=Tile("ptr", rows.tile.shape))

    def result(self, name: str, host: E, axes: tuple[str, ...]) -> tuple[E, E]:
        """The address of this program's rows of an output with these axes, and the stride of its positions."""
        address = self.arguments.pointer(name, host)
        for axis, place in (("batch", self.batch), ("head", self.head)):
            if axis in axes:
                address = address + place * self.arguments.stride(name, axis, host, axes.index(axis))
        stride = self.arguments.stride(name, "time", host, axes.index("time"))
        return self.builder.let(f"p_{name}", address), stride

    def made(self, name: str, pointer: E, channel: str | None) -> tuple[E, E]:
        """The same of a contiguous tensor [B, T, H] or [B, T, H, channels], which need not be there otherwise."""
        heads = self.arguments.integer("H" if self.heads is self.host.heads else "G", self.heads)
        place = self.batch * self.arguments.integer("T", self.host.sizes["time"]) * heads + self.head
        width = size(channel[0].upper()) if channel is not None else None
        address = pointer + (place if width is None else place * width)
        return self.builder.let(f"p_{name}", address), heads if width is None else heads * width

    def matrix(self, pointer: E, place: E, inner: str, outer: str, *, along: str = "") -> tuple[E, E]:
        """The addresses of this program's part of a state, [..., K, V] and contiguous, as [inner, outer]; and a mask.

        place: the index of the state. along: the axis whose channels are next to each other; "": as they are `turned`.
        """
        (o_i, m_i), (o_o, m_o) = self.channels[inner], self.channels[outer]
        along = along or ("key" if self.turned else "value")
        length = size("V" if along == "value" else "K")
        rows = o_i.col if inner == along else o_i.col * length
        columns = o_o.row if outer == along else o_o.row * length
        address = pointer + place * (size("K") * size("V")) + (rows + columns)
        return address, m_i.col & m_o.row

    def vector(self, pointer: E, place: E) -> tuple[E, E]:
        """The addresses of this program's part of a vector along `key`, [..., K] and contiguous; and a mask."""
        o_k, m_k = self.channels["key"]
        return pointer + place * size("K") + o_k, m_k

    def place(self) -> E:
        """The index of this program's state in [S, H]."""
        return self.sequence * self.arguments.integer("H", self.host.heads) + self.head

    def row(self) -> E:
        """The index of this program's rows in [B, H]."""
        return self.batch * self.arguments.integer("H", self.host.heads) + self.head


def elements(node: Param, value: E, operand: bool) -> E:
    """What was loaded of a tensor as kernels compute with it: integers and truth values stay."""
    if node.kind is Kind.REAL:
        return value.to("dot" if operand else "fp32")
    kind = Tile("int64" if node.kind is Kind.INT else "bool", value.tile.shape)
    return E(replace(value.node, tile=kind))


def tensors_of(exprs: Iterable[Expr], but: Container[Expr] = ()) -> tuple[Param, ...]:
    """The tensor parameters of some expressions, not of contractions inside them, in the order they are mentioned.

    but: expressions whose own are left out.
    """
    found: dict[Param, None] = {}
    for node in _outside(exprs, stop=lambda node: node in but):
        if isinstance(node, Param) and not node.number:
            found[node] = None
    return tuple(found)


def maximal_numbers(exprs: Iterable[Expr]) -> tuple[Expr, ...]:
    """The largest subexpressions that are numbers known at the launch and no constants."""
    found: dict[Expr, None] = {}
    for node in _outside(exprs, stop=static_number):
        if static_number(node) and any(not isinstance(leaf, Const | Apply) for leaf in postorder((node,))):
            found[node] = None
    return tuple(found)


def shared_nodes(exprs: Iterable[Expr]) -> frozenset[Expr]:
    """The inner nodes that several expressions, or several nodes of them, read."""
    exprs = tuple(exprs)
    readers = Counter(plain(expr) for expr in exprs)
    for node in _outside(exprs):
        if not isinstance(node, At):
            readers.update(plain(child) for child in children(node))
    return frozenset(node for node, count in readers.items() if count > 1 and isinstance(node, Apply | Reduce))


def _outside(exprs: Iterable[Expr], stop: Callable[[Expr], bool] = lambda _: False) -> Iterator[Expr]:
    """Every node of some expressions once, without what lies inside contractions and below `stop`."""
    stack = list(exprs)[::-1]
    seen: set[Expr] = set()
    while stack:
        node = stack.pop()
        if node in seen or isinstance(node, Contraction):
            continue
        seen.add(node)
        yield node
        if not stop(node):
            stack.extend(reversed(children(node)))
