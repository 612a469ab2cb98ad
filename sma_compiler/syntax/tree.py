"""What a spec says, as written: frozen nodes, each with its place. Places do not count when nodes are compared.

Chains of operators of one level are one flat node, so the depth of a tree is bounded by its brackets, its prefix
operators and its `**`, which `parse` bounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

from sma_compiler.source import NOWHERE, Span


@dataclass(frozen=True, kw_only=True)
class Node:
    """Base of all nodes."""

    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True)
class Name(Node):
    """A name that stands for a value."""

    id: str


@dataclass(frozen=True)
class Number(Node):
    """A literal; negative numbers are `Negative`. Finite, an integer at most 2**53."""

    value: int | float


@dataclass(frozen=True)
class Negative(Node):
    """`-x`."""

    x: Expr


@dataclass(frozen=True)
class Not(Node):
    """`not x`."""

    x: Expr


@dataclass(frozen=True)
class Chain(Node):
    """`first + a - b`, or `first * a / b // c % d @ e`: operators of one level, applied from the left."""

    first: Expr
    rest: tuple[tuple[str, Expr], ...]


@dataclass(frozen=True)
class Compare(Node):
    """`first <= a < b`: every neighbouring pair holds."""

    first: Expr
    rest: tuple[tuple[str, Expr], ...]


@dataclass(frozen=True)
class Logic(Node):
    """`a and b and c`, or the same of `or`."""

    op: str
    args: tuple[Expr, ...]


@dataclass(frozen=True)
class Power(Node):
    """`base ** exponent`."""

    base: Expr
    exponent: Expr


@dataclass(frozen=True)
class Index(Node):
    """`x[index]`."""

    x: Expr
    index: Expr


@dataclass(frozen=True)
class Option(Node):
    """`name=value` in a call."""

    name: str
    value: Expr


@dataclass(frozen=True)
class Call(Node):
    """`fn(args, options)`."""

    fn: str
    args: tuple[Expr, ...]
    options: tuple[Option, ...]
    fn_span: Span = field(default=NOWHERE, compare=False, repr=False)


Expr = Name | Number | Negative | Not | Chain | Compare | Logic | Power | Index | Call


@dataclass(frozen=True)
class Axis(Node):
    """The name of an axis in a parameter's annotation."""

    name: str


@dataclass(frozen=True)
class Param(Node):
    """A parameter as written: `q`, `w: int` (`axes` None), `x: [time]` (`kind` None) or `doc: int[time]`.

    A bare name has neither; whether it takes its axes from a later annotation is for the checker to say.
    """

    name: str
    kind: str | None = None
    axes: tuple[Axis, ...] | None = None


@dataclass(frozen=True)
class Bind(Node):
    """`name = value`."""

    name: str
    value: Expr
    name_span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True)
class Return(Node):
    """`return value`."""

    value: Expr


@dataclass(frozen=True)
class Op(Node):
    """`op name(params):` and its statements; `doc` is the comment above it.

    `lost` are the names whose statements do not parse, `return` among them: empty in all that `parse` returns.
    """

    name: str
    params: tuple[Param, ...]
    body: tuple[Bind | Return, ...]
    doc: str = ""
    lost: tuple[str, ...] = ()
    name_span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True)
class Define(Node):
    """`def name = value`, or `def name(params) = value`."""

    name: str
    params: tuple[Name, ...] | None
    value: Expr
    name_span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True)
class File(Node):
    """The items of a file in order."""

    items: tuple[Op | Define, ...]


def children(node: Node) -> Iterator[Node]:
    """The direct parts of a node, in the order of the text."""
    for item in fields(node):
        value = getattr(node, item.name)
        if isinstance(value, Node):
            yield value
        elif isinstance(value, tuple):
            for part in value:
                if isinstance(part, tuple):
                    yield part[1]
                elif isinstance(part, Node):
                    yield part


def walk(root: Node) -> Iterator[Node]:
    """The node and everything below it, parents first, in the order of the text, without recursion."""
    stack = [root]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(reversed(tuple(children(node))))
