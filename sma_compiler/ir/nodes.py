"""The typed expression IR: what a checked spec means, before anything is known about its structure.

One kind of node serves tensors and masks. `axes` are the named axes an expression still has; `positions` says which of
`i` (query position), `j` (key position) and `t` (position along a path) it mentions. An expression with `i` or `j` is
a mask; one with a `time` axis is a tensor over time; one with neither is static. Nodes are made by `graph.Graph`
alone, which interns them: within one graph, two expressions are the same exactly when they are the same object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from enum import IntEnum

from sma_compiler.source import Span

AXES = ("batch", "time", "head", "key", "value", "mode", "lag", "level")
"""Every axis of the language, in the order dimensions have wherever they appear."""


class Kind(IntEnum):
    """What the elements are. The join of two kinds is the larger."""

    BOOL = 0
    INT = 1
    REAL = 2


@dataclass(frozen=True, eq=False)
class Expr:
    """Base of all nodes: element kind, axes in the order of `AXES` (renamed ones last), positions, place."""

    kind: Kind
    axes: tuple[str, ...]
    positions: frozenset[str]
    span: Span


@dataclass(frozen=True, eq=False)
class Const(Expr):
    """A finite number, or a truth value."""

    value: int | float | bool


@dataclass(frozen=True, eq=False)
class Param(Expr):
    """A parameter of the op: a tensor with its declared axes, or (`number`) a Python number given at the call."""

    name: str
    number: bool


@dataclass(frozen=True, eq=False)
class Size(Expr):
    """The size of an axis, used as a number."""

    axis: str


@dataclass(frozen=True, eq=False)
class Position(Expr):
    """The integer position `i`, `j` or `t`, counted from the start of the sequence."""

    name: str


@dataclass(frozen=True, eq=False)
class At(Expr):
    """`x[i]`, `x[j]`, `x[t]`: the tensor's time axis replaced by a position."""

    x: Expr
    position: str


@dataclass(frozen=True, eq=False)
class Lag(Expr):
    """`table[index]`: the table's `lag` axis looked up at an integer mask expression, 0 outside 0..length-1."""

    table: Expr
    index: Expr


@dataclass(frozen=True, eq=False)
class Apply(Expr):
    """A pointwise function of its arguments, broadcast by axis name.

    Operators: add sub mul div floordiv mod pow neg lt le gt ge eq ne and or not where(c, a, b). `mul` with a boolean
    factor selects: where it is false the product is 0 whatever the rest is, gradients included; `where` likewise.
    Functions: exp log log2 sqrt abs min max relu silu sigmoid logsigmoid softplus tanh elu gelu sin cos.
    """

    fn: str
    args: tuple[Expr, ...]


@dataclass(frozen=True, eq=False)
class Reduce(Expr):
    """`sum`, `mean` or `softmax` over a named axis other than `time` (softmax keeps the axis)."""

    fn: str
    x: Expr
    axis: str


@dataclass(frozen=True, eq=False)
class Rename(Expr):
    """The same values with one axis under a fresh name, so that two sums over one axis stay apart."""

    x: Expr
    old: str
    new: str


@dataclass(frozen=True, eq=False)
class Rope(Expr):
    """Rotary embedding of `x` along `key` by `angle`, whose `mode` counts the pairs (2n, 2n+1); the rest stays."""

    x: Expr
    angle: Expr


@dataclass(frozen=True, eq=False)
class PathSum(Expr):
    """Sum of `gate` (a function of `t`, or static) over start < t < end, each end closed (`<=`) or open; empty gives 0.

    `start` and `end` are `"j"`, `"i"` for `sum(g[t], j < t <= i)` and `"i"`, `"j"` for the other direction.
    """

    gate: Expr
    start: str
    end: str
    start_closed: bool
    end_closed: bool


@dataclass(frozen=True, eq=False)
class Levels(Expr):
    """`levels(w)`: w[row, l], l = 0 on the diagonal, else the bit length of row xor column; 0 beyond the level axis
    and for column > row. `row` is `"i"`, or `"j"` for the transpose."""

    weights: Expr
    row: str


@dataclass(frozen=True, eq=False)
class MaskProduct(Expr):
    """`L @ M`, the matrix product of two masks: sum over m of L[i, m] M[m, j]."""

    left: Expr
    right: Expr


@dataclass(frozen=True, eq=False)
class MaskTimes(Expr):
    """`L @ x`: sum over j of L[i, j] x[j], a tensor over time."""

    mask: Expr
    x: Expr


@dataclass(frozen=True, eq=False)
class Attend(Expr):
    """`attend(L, q, k, v, normalize, activation, scale)`; see §2 of the language for the meaning of each option.

    `normalize` is `"none"`, `"sum"`, `"softmax"` or `"max1"`; `activation` is `"none"` or a function of `Apply`.
    q, k and v are tensors over time or static; v may lack `value` and q and k may lack `key`: the result lacks `key`.
    """

    mask: Expr
    q: Expr
    k: Expr
    v: Expr
    normalize: str
    activation: str
    scale: Expr


@dataclass(frozen=True, eq=False)
class Solve(Expr):
    """`solve(L, a, b, u)` = (I + L o A B^T)^-1 U with L strictly lower (Yang et al. 2024, the delta rule)."""

    mask: Expr
    a: Expr
    b: Expr
    u: Expr


Contraction = Attend | MaskTimes | Solve
"""The nodes that mix positions."""


@dataclass(frozen=True)
class ParamDecl:
    """A declared parameter. `dims` are a tensor's dimensions as the caller passes them, `batch` first."""

    name: str
    kind: Kind
    number: bool
    dims: tuple[str, ...]
    span: Span


@dataclass(frozen=True)
class Op:
    """One checked op: parameters in order, the expression it returns, its docstring and its own text."""

    name: str
    doc: str
    params: tuple[ParamDecl, ...]
    result: Expr
    span: Span
    text: str

    @property
    def label(self) -> str:
        """Its place in the spec and its name, as errors begin: `mamba2.sma:2: mamba2`."""
        return f"{self.span.source.name}:{self.span.line}: {self.name}"


def children(expr: Expr) -> tuple[Expr, ...]:
    """The direct operands of a node, in the order of its fields."""
    found: list[Expr] = []
    for item in fields(expr):
        value = getattr(expr, item.name)
        if isinstance(value, Expr):
            found.append(value)
        elif item.name == "args":
            found.extend(value)
    return tuple(found)


def one_less_exp(one: Expr, other: Expr) -> Expr | None:
    """x of `one - other` where that is 1 - exp(x): for a small x such a difference has lost what -expm1(x) keeps."""
    if isinstance(one, Const) and one.value == 1 and isinstance(other, Apply) and other.fn == "exp":
        return other.args[0]
    return None


def postorder(roots: Iterable[Expr]) -> Iterator[Expr]:
    """Every node below the roots once, operands before users, without recursion."""
    seen: set[Expr] = set()
    stack = [(root, False) for root in reversed(tuple(roots))]
    while stack:
        node, ready = stack.pop()
        if ready:
            yield node
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((child, False) for child in reversed(children(node)) if child not in seen)
