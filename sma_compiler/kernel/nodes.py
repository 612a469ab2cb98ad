"""The tile-level kernel IR: expressions over tiles, statements, loops, kernels and the functions that launch them.

A `Tile` is the type of an expression inside a kernel: elements and a shape of named sizes; a scalar has no dimensions.
Host expressions (in launchers) have no tile. Comments and sections are nodes. Nodes are made by `build.Builder`, are
checked by `check.verify`, and are printed by `emit.triton`; none of them holds program text.
"""

from __future__ import annotations

from dataclasses import dataclass, field

DTYPES = ("bool", "int32", "int64", "in", "dot", "fp32", "fp64")
"""Elements, in the order they promote: `in` is a tensor's own dtype, `dot` what products take. `ptr` is apart."""


@dataclass(frozen=True)
class Tile:
    """Elements and a shape; a dimension is a name of the kernel's sizes, or "1"."""

    dtype: str
    shape: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"[{', '.join(self.shape)}]"


@dataclass(frozen=True)
class Expr:
    """Base of expressions."""

    tile: Tile | None = field(compare=False)


@dataclass(frozen=True)
class Name(Expr):
    """A variable, a parameter, or a module-level name."""

    name: str


@dataclass(frozen=True)
class Literal(Expr):
    """A number, a truth value, None or a string; printed by `repr`."""

    value: int | float | bool | str | None


@dataclass(frozen=True)
class Unary(Expr):
    """A prefix operator: `-`, `~` or `not`."""

    op: str
    x: Expr


@dataclass(frozen=True)
class Binary(Expr):
    """An infix operator: arithmetic, comparison, `&`, `|`, `and`, `or`."""

    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True)
class Call(Expr):
    """A call; `keywords` are pairs of name and value."""

    fn: Expr
    args: tuple[Expr, ...]
    keywords: tuple[tuple[str, Expr], ...] = ()


@dataclass(frozen=True)
class Attribute(Expr):
    """`x.name`."""

    x: Expr
    name: str


@dataclass(frozen=True)
class Subscript(Expr):
    """`x[index, ...]`; an index that is None is a full slice `:`."""

    x: Expr
    index: tuple[Expr | None, ...]


@dataclass(frozen=True)
class Sequence(Expr):
    """A list `[...]` or a tuple `(...)`."""

    items: tuple[Expr, ...]
    bracket: str


@dataclass(frozen=True)
class Choose(Expr):
    """`yes if condition else no`."""

    condition: Expr
    yes: Expr
    no: Expr


@dataclass(frozen=True)
class Statement:
    """Base of statements."""


@dataclass(frozen=True)
class Comment(Statement):
    """One line of comment."""

    text: str


@dataclass(frozen=True)
class Section(Statement):
    """A blank line and a comment that says what the next statements do."""

    title: str


@dataclass(frozen=True)
class Assign(Statement):
    """Binds names (several: a tuple is unpacked). `show` prints the tile's shape beside it."""

    targets: tuple[Name, ...]
    value: Expr
    show: bool = False


@dataclass(frozen=True)
class Do(Statement):
    """An expression for its effect: a store, a launch."""

    value: Expr


@dataclass(frozen=True)
class For(Statement):
    """A loop over `iterable`."""

    variable: Name
    iterable: Expr
    body: tuple[Statement, ...]


@dataclass(frozen=True)
class If(Statement):
    """A branch."""

    condition: Expr
    body: tuple[Statement, ...]
    orelse: tuple[Statement, ...] = ()


@dataclass(frozen=True)
class Return(Statement):
    """Returns a value; None ends the function."""

    value: Expr | None


@dataclass(frozen=True)
class Raise(Statement):
    """Raises an exception."""

    value: Expr


@dataclass(frozen=True)
class Parameter:
    """A parameter of a function. `constant` marks a `tl.constexpr`; `keyword` one that is passed by name only."""

    name: str
    constant: bool = False
    default: Expr | None = None
    keyword: bool = False


@dataclass(frozen=True)
class Function:
    """A kernel (`jit`) or a function of the host. `doc` is its docstring, line by line."""

    name: str
    doc: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    body: tuple[Statement, ...]
    jit: bool


def operands(expr: Expr) -> tuple[Expr, ...]:
    """The direct operands of an expression."""
    match expr:
        case Unary(x=x) | Attribute(x=x):
            return (x,)
        case Binary(left=left, right=right):
            return (left, right)
        case Call(fn=fn, args=args, keywords=keywords):
            return (fn, *args, *(value for _, value in keywords))
        case Subscript(x=x, index=index):
            return (x, *(item for item in index if item is not None))
        case Sequence(items=items):
            return items
        case Choose(condition=condition, yes=yes, no=no):
            return (condition, yes, no)
    return ()


def names(expr: Expr) -> frozenset[str]:
    """Every name that an expression mentions."""
    if isinstance(expr, Name):
        return frozenset({expr.name})
    return frozenset().union(*(names(x) for x in operands(expr)))
