"""Builds kernel IR: expressions by Python's own operators, statements in order, fresh names.

    b.let("b_o", dot(b_q, b_s.to(DOT)) * exp2(b_cum).col)

Shapes and elements are inferred at once, so that a tile that does not fit is an error at the line that built it.
"""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sma_compiler.kernel.nodes import (
    DTYPES,
    Assign,
    Attribute,
    Binary,
    Call,
    Choose,
    Comment,
    Do,
    Expr,
    For,
    Function,
    If,
    Literal,
    Name,
    Parameter,
    Raise,
    Return,
    Section,
    Sequence,
    Statement,
    Subscript,
    Tile,
    Unary,
)

COMPARISONS = frozenset({"<", "<=", ">", ">=", "==", "!="})


class TileError(Exception):
    """A kernel that the compiler built wrongly: shapes that do not fit, a name without a definition."""


@dataclass(frozen=True, eq=False)
class E:
    """An expression under construction; operators make larger ones."""

    node: Expr

    @property
    def tile(self) -> Tile:
        """The type inside a kernel."""
        if self.node.tile is None:
            raise TileError(f"{self.node} has no tile")
        return self.node.tile

    def __add__(self, other: Operand) -> E:
        return binary("+", self, other)

    def __radd__(self, other: Operand) -> E:
        return binary("+", other, self)

    def __sub__(self, other: Operand) -> E:
        return binary("-", self, other)

    def __rsub__(self, other: Operand) -> E:
        return binary("-", other, self)

    def __mul__(self, other: Operand) -> E:
        return binary("*", self, other)

    def __rmul__(self, other: Operand) -> E:
        return binary("*", other, self)

    def __truediv__(self, other: Operand) -> E:
        return binary("/", self, other)

    def __rtruediv__(self, other: Operand) -> E:
        return binary("/", other, self)

    def __floordiv__(self, other: Operand) -> E:
        return binary("//", self, other)

    def __mod__(self, other: Operand) -> E:
        return binary("%", self, other)

    def __and__(self, other: Operand) -> E:
        return binary("&", self, other)

    def __or__(self, other: Operand) -> E:
        return binary("|", self, other)

    def __pow__(self, other: Operand) -> E:
        return binary("**", self, other)

    def __lt__(self, other: Operand) -> E:
        return binary("<", self, other)

    def __le__(self, other: Operand) -> E:
        return binary("<=", self, other)

    def __gt__(self, other: Operand) -> E:
        return binary(">", self, other)

    def __ge__(self, other: Operand) -> E:
        return binary(">=", self, other)

    def __neg__(self) -> E:
        return E(Unary(self.node.tile, "-", self.node))

    def eq(self, other: Operand) -> E:
        """`self == other`."""
        return binary("==", self, other)

    def either(self, other: E) -> E:
        """`self or other`, on the host."""
        return E(Binary(None, "or", self.node, other.node))

    def both(self, other: E) -> E:
        """`self and other`, on the host."""
        return E(Binary(None, "and", self.node, other.node))

    def given(self) -> E:
        """`self is not None`."""
        return E(Binary(None, "is not", self.node, Literal(None, None)))

    def missing(self) -> E:
        """`self is None`."""
        return E(Binary(None, "is", self.node, Literal(None, None)))

    def ne(self, other: Operand) -> E:
        """`self != other`."""
        return binary("!=", self, other)

    @property
    def col(self) -> E:
        """A vector as a column, [C, 1]: it varies with the first axis of a tile. Scalars stay."""
        return self._expand(0)

    @property
    def row(self) -> E:
        """A vector as a row, [1, C]. Scalars stay."""
        return self._expand(1)

    def _expand(self, axis: int) -> E:
        shape = self.tile.shape
        if not shape:
            return self
        if len(shape) != 1:
            raise TileError(f"only a vector becomes a row or a column, not {self.tile}")
        none = Literal(None, None)
        new = (shape[0], "1") if axis == 0 else ("1", shape[0])
        index = (None, none) if axis == 0 else (none, None)
        return E(Subscript(Tile(self.tile.dtype, new), self.node, index))

    def among(self, extents: Iterable[str]) -> E:
        """A tile whose axes are some of these, in their order, with an axis of one entry for each of the others."""
        shape = self.tile.shape
        order = tuple(extents)
        if not shape or len(shape) == len(order):
            return self
        none = Literal(None, None)
        index = tuple(None if name in shape else none for name in order)
        new = tuple(name if name in shape else "1" for name in order)
        return E(Subscript(Tile(self.tile.dtype, new), self.node, index))

    def to(self, dtype: str) -> E:
        """The same values as `fp32`, `fp64`, `int32`, `int64` or `dot`."""
        if self.tile.dtype == dtype:
            return self
        name = "DOT" if dtype == "dot" else f"tl.{dtype.replace('fp', 'float')}"
        return E(Call(Tile(dtype, self.tile.shape), Attribute(None, self.node, "to"), (path(name).node,)))

    # Host expressions

    def attr(self, name: str) -> E:
        """`self.name`."""
        return E(Attribute(None, self.node, name))

    def call(self, *args: Operand, **keywords: Operand) -> E:
        """`self(...)`."""
        given = tuple((name, lift(value).node) for name, value in keywords.items())
        return E(Call(None, self.node, tuple(lift(arg).node for arg in args), given))

    def at(self, *index: Operand) -> E:
        """`self[...]`."""
        return E(Subscript(None, self.node, tuple(lift(item).node for item in index)))


Operand = E | int | float | bool | str | None


def lift(value: Operand) -> E:
    """A constant as an expression."""
    if isinstance(value, E):
        return value
    if isinstance(value, bool):
        return E(Literal(Tile("bool"), value))
    if isinstance(value, int):
        return E(Literal(Tile("int32"), value))
    if isinstance(value, float):
        return E(Literal(Tile("fp32"), value))
    return E(Literal(None, value))


def path(dotted: str) -> E:
    """`tl.float32`, `torch.empty`: a module-level name with attributes."""
    first, *rest = dotted.split(".")
    found: Expr = Name(None, first)
    for part in rest:
        found = Attribute(None, found, part)
    return E(found)


def sequence(items: Iterable[Operand], bracket: str = "(") -> E:
    """A tuple, or with "[" a list."""
    return E(Sequence(None, tuple(lift(item).node for item in items), bracket))


def choose(condition: E, yes: Operand, no: Operand) -> E:
    """`yes if condition else no`."""
    return E(Choose(None, condition.node, lift(yes).node, lift(no).node))


def binary(op: str, left: Operand, right: Operand) -> E:
    """An infix operator on tiles that broadcast."""
    a, b = lift(left), lift(right)
    if a.node.tile is None or b.node.tile is None:
        return E(Binary(None, op, a.node, b.node))
    dtype = "bool" if op in COMPARISONS else _promote(op, a.tile.dtype, b.tile.dtype)
    return E(Binary(Tile(dtype, broadcast(a.tile.shape, b.tile.shape)), op, a.node, b.node))


def _promote(op: str, a: str, b: str) -> str:
    if "ptr" in (a, b):
        return "ptr"
    if op == "/":
        return "fp32"
    return max(a, b, key=DTYPES.index)


def broadcast(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, ...]:
    """The shape of two tiles together; scalars go with anything, other ranks must agree."""
    if not a or not b:
        return a or b
    if len(a) != len(b):
        raise TileError(f"[{', '.join(a)}] and [{', '.join(b)}] have different ranks")
    for x, y in zip(a, b, strict=True):
        if x != y and "1" not in (x, y):
            raise TileError(f"[{', '.join(a)}] and [{', '.join(b)}] do not broadcast")
    return tuple(y if x == "1" else x for x, y in zip(a, b, strict=True))


def call(fn: str, *args: Operand, tile: Tile, **keywords: Operand) -> E:
    """A call inside a kernel whose result has this type."""
    given = tuple((name, lift(value).node) for name, value in keywords.items())
    return E(Call(tile, path(fn).node, tuple(lift(arg).node for arg in args), given))


def pointwise(fn: str, *args: Operand, dtype: str = "fp32") -> E:
    """A pointwise function of tiles that broadcast."""
    shape: tuple[str, ...] = ()
    for arg in args:
        shape = broadcast(shape, lift(arg).tile.shape)
    return call(fn, *args, tile=Tile(dtype, shape))


def exp2(x: E) -> E:
    """2 ** x."""
    return pointwise("tl.exp2", x)


def where(condition: E, yes: Operand, no: Operand) -> E:
    """Selects."""
    a, b = lift(yes), lift(no)
    dtype = max(a.tile.dtype, b.tile.dtype, key=DTYPES.index)
    return pointwise("tl.where", condition, a, b, dtype=dtype)


MINUS_INFINITY = E(Unary(Tile("fp32"), "-", Call(Tile("fp32"), Name(None, "float"), (Literal(None, "inf"),))))


INFINITY = E(Call(Tile("fp32"), Name(None, "float"), (Literal(None, "inf"),)))


def zeros(*shape: str, dtype: str = "fp32") -> E:
    """A tile of zeros, `fp32` or `fp64`."""
    sizes = sequence((size(name) for name in shape), "[")
    return call("tl.zeros", sizes, tile=Tile(dtype, shape), dtype=path(f"tl.{dtype.replace('fp', 'float')}"))


def size(name: str) -> E:
    """A constant of the kernel that tiles are shaped by."""
    return E(Name(Tile("int32"), name))


def arange(extent: str) -> E:
    """0, 1, ... of a tile size."""
    return call("tl.arange", 0, size(extent), tile=Tile("int32", (extent,)))


def trans(x: E) -> E:
    """The transpose of a matrix."""
    rows, columns = x.tile.shape
    return call("tl.trans", x, tile=Tile(x.tile.dtype, (columns, rows)))


def dot(a: E, b: E, accumulate: E | None = None) -> E:
    """A matrix product with fp32 accumulation, at the launch's precision."""
    (m, n), (n2, p) = a.tile.shape, b.tile.shape
    if n != n2 or a.tile.dtype != "dot" or b.tile.dtype != "dot":
        raise TileError(f"dot of {a.tile.dtype} {a.tile} and {b.tile.dtype} {b.tile}")
    if accumulate is not None and accumulate.tile != Tile("fp32", (m, p)):
        raise TileError(f"{accumulate.tile} accumulates [{m}, {p}]")
    args = (a, b) if accumulate is None else (a, b, accumulate)
    return call("tl.dot", *args, tile=Tile("fp32", (m, p)), input_precision=path("PRECISION"))


def reduce_sum(x: E, axis: int) -> E:
    """The sum over one axis."""
    shape = tuple(name for n, name in enumerate(x.tile.shape) if n != axis)
    return call("tl.sum", x, axis, tile=Tile(x.tile.dtype, shape))


def cumsum(x: E, axis: int = 0, *, reverse: bool = False) -> E:
    """The running sum along an axis, from its start or from its end."""
    return call("tl.cumsum", x, axis, tile=x.tile, **({"reverse": True} if reverse else {}))


def _name(variable: E) -> Name:
    """The name of a variable."""
    assert isinstance(variable.node, Name)
    return variable.node


class Builder:
    """Collects the statements of one function; `let` gives every variable a name of its own."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)
        self._blocks: list[list[Statement]] = [[]]
        self._bound: list[str] = []
        self.helpers: set[str] = set()

    def fresh(self, wanted: str) -> str:
        """A name like `wanted` that nothing else in the function has, and that Python allows."""
        name, number = wanted, 1
        while name in self._taken or keyword.iskeyword(name):
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        return name

    def emit(self, statement: Statement) -> None:
        """Append a statement."""
        self._blocks[-1].append(statement)

    def named(self, name: str, value: E) -> E:
        """The value as a variable: itself where it is one, or a scalar constant, already."""
        return value if isinstance(value.node, Name | Literal) else self.let(name, value)

    def helper(self, fn: str, *args: Operand, dtype: str = "fp32") -> E:
        """A call of a leaf helper on tiles that broadcast; the file will hold its source."""
        self.helpers.add(fn)
        return pointwise(fn, *args, dtype=dtype)

    def section(self, title: str) -> None:
        """Start a group of statements."""
        self.emit(Section(title))

    def space(self) -> None:
        """Leave a blank line."""
        self.emit(Section(""))

    def comment(self, text: str) -> None:
        """Add a line of comment."""
        self.emit(Comment(text))

    def let(self, name: str, value: Operand, show: bool | None = None) -> E:
        """Bind a new variable; vectors and matrices get their shape as a comment unless `show` is False."""
        expr = lift(value)
        tile = expr.node.tile
        target = Name(tile, self.fresh(name))
        self._bound.append(target.name)
        shown = bool(tile and tile.shape) if show is None else show
        self.emit(Assign((target,), expr.node, shown))
        return E(target)

    def set(self, variable: E, value: E) -> None:
        """Give a variable a new value of the same type; nothing where it is the variable itself."""
        name = _name(variable)
        if name.tile is not None and value.tile != variable.tile:
            raise TileError(f"{name.name} is {variable.tile}, its new value {value.tile}")
        if value.node != name:
            self.emit(Assign((name,), value.node))

    def assign(self, variables: Iterable[E], value: E) -> None:
        """Give several variables of the host the items of a tuple."""
        self.emit(Assign(tuple(_name(variable) for variable in variables), value.node))

    def do(self, value: E) -> None:
        """Evaluate for the effect."""
        self.emit(Do(value.node))

    def give(self, value: E | None) -> None:
        """Return."""
        self.emit(Return(value.node if value is not None else None))

    def fail(self, value: E) -> None:
        """Raise."""
        self.emit(Raise(value.node))

    @contextmanager
    def loop(self, variable: str, iterable: E, tile: Tile | None = None) -> Iterator[E]:
        """A loop; the block becomes its body."""
        name = Name(tile, self.fresh(variable))
        self._bound.append(name.name)
        self._blocks.append([])
        yield E(name)
        body = tuple(self._blocks.pop())
        self.emit(For(name, iterable.node, body))

    @contextmanager
    def scope(self) -> Iterator[None]:
        """What is bound in this block is not used after it, and leaves its names free."""
        before = len(self._bound)
        yield
        self._taken.difference_update(self._bound[before:])
        del self._bound[before:]

    @contextmanager
    def branch(self, condition: E) -> Iterator[None]:
        """An `if`; the block becomes its body."""
        self._blocks.append([])
        yield
        body = tuple(self._blocks.pop())
        self.emit(If(condition.node, body))

    @contextmanager
    def otherwise(self) -> Iterator[None]:
        """The `else` of the `if` just built."""
        last = self._blocks[-1].pop()
        assert isinstance(last, If)
        self._blocks.append([])
        yield
        body = tuple(self._blocks.pop())
        self.emit(If(last.condition, last.body, body))

    def function(self, name: str, doc: Iterable[str], parameters: Iterable[Parameter], jit: bool) -> Function:
        """The function that the statements make."""
        (body,) = self._blocks
        return Function(name, tuple(doc), tuple(parameters), tuple(body), jit)
