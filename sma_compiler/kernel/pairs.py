"""Recognises what the quadratic kernels compute: one contraction whose mask is a number for each pair of positions.

    y = f(sum over j of  w_ij v_j, ...)      w_ij = L_ij g(scale q_i . k_j), or exp of the score under a softmax

A mask is told by its support (`support.py`), by a condition where that is not all, and by the weight of live pairs: an
expression of leaves that a tile is given for, the positions, what tensors have at either end, and sums along paths.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from sma_compiler.facts.bounds import bounds
from sma_compiler.ir.graph import Graph
from sma_compiler.ir.nodes import (
    Apply,
    At,
    Attend,
    Const,
    Contraction,
    Expr,
    Kind,
    Lag,
    Levels,
    Op,
    Param,
    PathSum,
    Position,
    children,
    postorder,
)
from sma_compiler.kernel.errors import NoTritonKernel
from sma_compiler.kernel.linear import FUNCTIONS, Linear, Term, axes_refused, foreign, is_tensor, static_number
from sma_compiler.kernel.support import Run, Several, Shift, Support, Turns, support, turns_of
from sma_compiler.mask.algebra import by_distance, constant
from sma_compiler.mask.guards import Guard, Guards, Piece
from sma_compiler.mask.nodes import Gate
from sma_compiler.mask.pieces import Splitter
from sma_compiler.mask.streams import is_small
from sma_compiler.plan.choose import Plans

LARGEST = 256
"""The most channels of a head: those of a tile's rows are held at once."""


@dataclass(frozen=True)
class End:
    """What a tensor has at one end of a pair: `leaf` stands for `x` at position `end`, "i" or "j"."""

    leaf: Param
    x: Expr
    end: str


@dataclass(frozen=True)
class Along:
    """A sum of log gates along the path of a pair: `leaf` stands for it. early: "j" or "i", where the path begins.

    number: the index of its stream in `Linear.terms`, by which its arrays are named.
    gate: `query_closed` is whether the path holds its late end, `key_closed` its early one.
    one_sided: whether the early end of every live pair comes first, so that the path is never empty by direction.
    """

    leaf: Param
    gate: Gate
    early: str
    number: int
    one_sided: bool


@dataclass(frozen=True)
class Table:
    """What a tensor has for a pair, looked up along `axis`: "lag" or "level"; 0 beyond it. `leaf` stands for it.

    index: an expression of positions; None: the level of the pair. row: the end whose position the tensor has besides;
    "": none. alike: whether pairs of a tile that is live as a whole have the same level: all lie on one side.
    """

    leaf: Param
    x: Param
    axis: str
    index: Expr | None
    row: str
    alike: bool = False


@dataclass(frozen=True)
class Pairs:
    """An op that the quadratic kernels compute.

    linear: the op and its operands, with one stream for each path of gates that vary in time. weight: of live pairs,
    its logarithm under a softmax; None: 1. condition: whether a pair is live, where the support does not say; None: it
    does. scale: static. activation: a function of the score, or "none". i, j: the leaves of positions; score: that of
    scaled scores. taken: names of leaves.
    vanishing: whether a tensor is a factor of the weight that may be 0 where a pair is live, under a softmax.
    wide: whether kernels take care to round as little as fp32 can: paths, the logarithms of rows and sums over pairs
    are fp64, so that both kernels of gradients weigh a pair alike and what cancels in their sums does. exact: whether
    products of operands are summed in fp64, too.
    """

    linear: Linear
    graph: Graph
    support: Support
    weight: Expr | None
    condition: Expr | None
    scale: Expr
    activation: str
    i: Param
    j: Param
    score: Param
    ends: tuple[End, ...] = ()
    paths: tuple[Along, ...] = ()
    tables: tuple[Table, ...] = ()
    taken: frozenset[str] = field(default_factory=frozenset)
    vanishing: bool = False
    wide: bool = False
    exact: bool = False

    @property
    def op(self) -> Op:
        """The op."""
        return self.linear.op

    @property
    def softmax(self) -> bool:
        """Whether rows are divided by the sum of exponentials."""
        return self.linear.normalize == "softmax"

    @property
    def traits(self) -> dict[str, bool]:
        """What configurations of kernels are chosen by: see `config.pairs`."""
        operands = self.linear.q, self.linear.k, self.linear.v
        computed = not all(is_tensor(x) for x in operands)
        return {"weighed": self.weight is not None, "paths": bool(self.paths), "computed": computed}

    @property
    def cancels(self) -> bool:
        """Whether kernels of gradients go once more over rows that one pair dominates: these nearly cancel, and what is
        left would be of what was rounded. In fp32 they go over all rows once more.
        """
        return self.softmax and not self.wide and self.op.result is self.linear.attend

    @property
    def near(self) -> bool:
        """Whether columns are seen by rows near to them only."""
        lo = self.support.lo
        bound = any(isinstance(one, Shift | Run) for one in (lo.bounds if isinstance(lo, Several) else (lo,)))
        return bound or self.fading is not None

    @property
    def fading(self) -> Along | None:
        """The path that leaves nothing of far pairs, and whose gates say where: it alone weighs pairs under a softmax,
        none of its gates is above 1, a row that sees anything sees itself, and the lengths of operands bound scores.
        """
        hi, linear = self.support.hi, self.linear
        if self.wide or not (self.softmax and self.support.exact and self.paths and isinstance(hi, Shift)):
            return None
        along, gate = self.paths[0], self.paths[0].gate
        behind = along.early == "j" and (gate.query_closed, gate.key_closed) == (True, False)
        axes = {"batch", "time", "head", "key"}
        alone = self.weight is along.leaf and all(is_tensor(x) and set(x.axes) == axes for x in (linear.q, linear.k))
        sees_itself = constant(hi.by) == 1
        return along if behind and alone and sees_itself and bounds(gate.log)[1] <= 0 else None

    @property
    def exprs(self) -> tuple[Expr, ...]:
        """What tiles of pairs are computed from."""
        found = (self.weight, self.condition, *(table.index for table in self.tables))
        return tuple(x for x in found if x is not None)

    @property
    def turns(self) -> tuple[Turns, ...]:
        """What the runs of the support are told by."""
        return tuple(dict.fromkeys(run.turns for run in self.support.runs))


def pairs(op: Op, plans: Plans, *, wide: bool = False, exact: bool = False) -> Pairs:
    """The op as the quadratic kernels compute it. wide, exact: see `Pairs`.

    Raises:
        NoTritonKernel: there are none for it.
    """
    return replace(_Reader(op, plans, wide).pairs(), exact=exact)


class _Reader:
    """Builds a `Pairs`."""

    def __init__(self, op: Op, plans: Plans, wide: bool) -> None:
        self.op = op
        self.plans = plans
        self.wide = wide
        self.graph = plans.graph
        self.taken = {decl.name for decl in op.params}
        self.leaves: dict[Expr, Expr] = {}
        self.ends: list[End] = []
        self.paths: list[Along] = []
        self.tables: list[Table] = []
        self.terms: list[Term] = []
        self.down: int | None = None
        self.up: int | None = None
        self.vanishing = False

    def refuse(self, reason: str) -> NoTritonKernel:
        return NoTritonKernel(self.op.name, "quadratic", reason)

    def pairs(self) -> Pairs:
        op, graph = self.op, self.graph
        around = _around(op.result)
        contractions = [node for node in around if isinstance(node, Contraction)]
        attend = contractions[0] if len(contractions) == 1 else None
        if not isinstance(attend, Attend):
            raise self.refuse("kernels exist for one `attend` without shifts, sums over time or `solve` around it")
        if attend.activation != "none" and attend.activation not in FUNCTIONS:
            raise self.refuse(f"`{attend.activation}` has no tile form")
        why = foreign(around) or axes_refused(op, attend)
        if why:
            raise self.refuse(why)
        if {"key", "value"} & set(attend.mask.axes):
            raise self.refuse("the mask has a gate or a factor for each channel")
        pieces = self._pieces(attend.mask)
        if not pieces:
            raise self.refuse("the mask is 0 everywhere")
        guards = tuple(piece.guard for piece in pieces)
        seen = support(graph, guards)
        i, j = (self._leaf(name, Kind.INT, ()) for name in "ij")
        self.leaves |= {graph.position("i"): i, graph.position("j"): j}
        self.down, self.up = _direction(guards)
        value, disjoint = self._value(pieces)
        condition = None if seen.exact else self._condition(guards)
        if attend.normalize == "softmax":
            if not disjoint:
                condition = graph.apply("gt", value, graph.const(0.0))
                seen = replace(seen, exact=False)
                value = graph.apply("where", condition, value, graph.const(1.0))
            value = self._logarithm(value)
        weight = self._read(value)
        condition = None if condition is None else self._read(condition)
        scale, q = attend.scale, attend.q
        if not static_number(scale):
            scale, q = graph.const(1), graph.apply("mul", scale, q)
        linear = Linear(op, attend, q, attend.k, attend.v, tuple(self.terms), attend.normalize, False)
        neutral = graph.const(0.0) if attend.normalize == "softmax" else graph.const(1)
        known = constant(weight) if not isinstance(weight, Const) else weight.value
        return Pairs(
            linear,
            graph,
            seen,
            None if known is not None and known == neutral.value else weight,
            condition,
            scale,
            attend.activation,
            i,
            j,
            self._leaf("score", Kind.REAL, ()),
            tuple(self.ends),
            tuple(self.paths),
            tuple(self.tables),
            frozenset(self.taken),
            self.vanishing,
            self.wide,
        )

    def _pieces(self, mask: Expr) -> tuple[Piece, ...]:
        if is_small(mask):
            return Splitter(self.graph).pieces(mask)
        parts = self.plans.of(self.plans.choices[0].site.node).site.analysis.parts
        return tuple(part.piece for part in parts)

    def _leaf(self, name: str, kind: Kind, axes: Iterable[str]) -> Param:
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return self.graph.param(name, kind, axes, False)

    def _value(self, pieces: tuple[Piece, ...]) -> tuple[Expr, bool]:
        """The value of live pairs, and whether it is positive wherever a pair is live under a softmax."""
        graph = self.graph
        values = tuple(dict.fromkeys(piece.value for piece in pieces))
        if len(values) == 1 and _apart(graph, pieces):
            return values[0], True
        guards = Guards(graph)
        conditions = [self._told(guards, piece.guard) for piece in pieces]
        if _apart(graph, pieces):
            found = pieces[-1].value
            for piece, condition in zip(reversed(pieces[:-1]), reversed(conditions[:-1]), strict=True):
                found = graph.apply("where", condition, piece.value, found)
            return found, True
        zero = graph.const(0.0)
        total: Expr | None = None
        for piece, condition in zip(pieces, conditions, strict=True):
            part = graph.apply("where", condition, piece.value, zero)
            total = part if total is None else graph.apply("add", total, part)
        assert total is not None
        return total, False

    def _told(self, guards: Guards, guard: Guard) -> Expr:
        """A guard as a condition of pairs, for which runs have no tile form."""
        if any(turns_of(self.graph, segment) is not None for segment in guard.segments):
            raise self.refuse("runs of equal ids meet other conditions in a way that has no interval")
        return guards.expression(guard)

    def _condition(self, guards: tuple[Guard, ...]) -> Expr:
        """Whether a pair is live."""
        made = Guards(self.graph)
        found = self._told(made, guards[0])
        for guard in guards[1:]:
            found = self.graph.apply("or", found, self._told(made, guard))
        return found

    def _logarithm(self, x: Expr) -> Expr:
        """log(x) of what is positive, or 0, where pairs are live."""
        graph, log = self.graph, self._logarithm
        match x:
            case Const(value=value):
                return graph.const(math.log(value) if value > 0 else 0.0)
            case Apply(fn="mul", args=(a, b)) if Kind.BOOL not in (a.kind, b.kind):
                return graph.apply("add", log(a), log(b))
            case Apply(fn="div", args=(a, b)):
                return graph.apply("sub", log(a), log(b))
            case Apply(fn="sqrt", args=(a,)):
                return graph.apply("mul", graph.const(0.5), log(a))
            case Apply(fn="exp", args=(a,)):
                return a
            case Apply(fn="pow", args=(a, b)):
                return graph.apply("mul", b, graph.apply("log", a))
            case Apply(fn="where", args=(c, a, b)) if not any(
                isinstance(case, Const) and case.value == 0 for case in (a, b)
            ):
                return graph.apply("where", c, log(a), log(b))
            case Apply(fn="sigmoid", args=(a,)):
                return graph.apply("logsigmoid", a)
            case Lag(table=Apply()):
                return log(self._inside(x))
        self.vanishing |= bounds(x)[0] <= 0 and _reads_outside_exponents(x)
        return graph.apply("log", x)

    def _read(self, expr: Expr) -> Expr:
        """An expression of positions as one of leaves."""
        graph = self.graph
        stack, seen = [expr], set()
        while stack:
            node = stack.pop()
            if node in seen or node in self.leaves:
                continue
            seen.add(node)
            match node:
                case At(x=x, position=position):
                    self._check(x)
                    name = x.name if isinstance(x, Param) else "x"
                    leaf = self._leaf(f"{name}_{position}", node.kind, node.axes)
                    self.leaves[node] = leaf
                    self.ends.append(End(leaf, x, position))
                case PathSum():
                    self._path(node)
                case Lag(table=table) if _looked_up(table) is None:
                    self.leaves[node] = self._read(self._inside(node))
                case Lag(table=table, index=index):
                    self._table(node, table, "lag", self._read(index))
                case Levels(weights=weights, row=row):
                    self._table(node, graph.at(weights, row), "level", None)
                case Apply(fn="floordiv" | "mod" as fn):
                    if node.kind is Kind.REAL:
                        raise self.refuse(f"`{fn}` of real numbers has no tile form")
                    stack.extend(children(node))
                case Apply(fn=fn) if fn not in FUNCTIONS:
                    raise self.refuse(f"`{fn}` has no tile form")
                case Apply() | Const() | Param() | Position():
                    stack.extend(children(node))
                case _ if not static_number(node):
                    raise self.refuse(f"`{type(node).__name__.lower()}` in a mask has no tile form")
        return graph.replace(expr, self.leaves)

    def _inside(self, node: Lag) -> Expr:
        """f(x)[i - j] as f(x[i - j]): where it lies beyond the table no pair is live."""
        graph, table = self.graph, node.table
        powers = by_distance(graph, node.index)
        if not isinstance(table, Apply) or powers is None or constant(powers.get(1, graph.const(0))) not in (1, -1):
            raise self.refuse("a table over `lag` is no tensor")
        args = (graph.lag(x, node.index) if "lag" in x.axes else x for x in table.args)
        return graph.apply(table.fn, *args)

    def _table(self, node: Expr, table: Expr, axis: str, index: Expr | None) -> None:
        """What is looked up in a tensor, as a leaf."""
        x, row = _looked_up(table) or (None, "")
        if x is None or x.kind is not Kind.REAL:
            raise self.refuse(f"a table over `{axis}` is no tensor of real numbers")
        leaf = self._leaf(f"{x.name}_{axis}", Kind.REAL, node.axes)
        self.leaves[node] = leaf
        one_sided = self.down if row == "i" else self.up
        alike = axis == "level" and one_sided is not None and one_sided >= 0
        self.tables.append(Table(leaf, x, axis, index, row, alike))

    def _check(self, x: Expr) -> None:
        """Refuse a tensor that tiles cannot be given."""
        nodes = tuple(postorder((x,)))
        if any(isinstance(node, Contraction) for node in nodes):
            raise self.refuse("a mask reads a contraction: runs of equal ids have tiles, other sums over time none")
        why = foreign(nodes)
        if why:
            raise self.refuse(why)

    def _path(self, node: PathSum) -> None:
        """A path as a leaf; of a static gate as its length times the gate."""
        graph = self.graph
        both, neither = node.start_closed and node.end_closed, not (node.start_closed or node.end_closed)
        first = self.down if node.start == "j" else self.up
        one_sided = first is not None and first >= int(neither)
        if not node.gate.positions:
            ends = [self.leaves[graph.position(name)] for name in (node.end, node.start)]
            steps = graph.apply("sub", *ends)
            if both or neither:
                steps = graph.apply("add" if both else "sub", steps, graph.const(1))
            if not one_sided:
                steps = graph.apply("max", steps, graph.const(0))
            self.leaves[node] = graph.apply("mul", node.gate, steps)
            return
        self._check(node.gate)
        leaf = self._leaf("path", Kind.REAL, node.axes)
        self.leaves[node] = leaf
        gate = Gate(node.gate, node.start_closed, node.end_closed)
        self.paths.append(Along(leaf, gate, node.start, len(self.terms), one_sided))
        self.terms.append(Term((), (), (gate,), False, wide=self.wide))


def adds(exponent: Expr, leaf: Expr) -> bool:
    """Whether an exponent is a leaf and something else that does not read it."""
    if exponent is leaf:
        return True
    match exponent:
        case Apply(fn="add", args=(a, b)):
            return (adds(a, leaf) and leaf not in postorder((b,))) or (adds(b, leaf) and leaf not in postorder((a,)))
        case Apply(fn="sub", args=(a, b)):
            return adds(a, leaf) and leaf not in postorder((b,))
    return False


def _around(result: Expr) -> tuple[Expr, ...]:
    """Every node of an op that no mask holds."""
    found: dict[Expr, None] = {}
    stack = [result]
    while stack:
        node = stack.pop()
        if node not in found:
            found[node] = None
            stack.extend(child for child in children(node) if not (isinstance(node, Attend) and child is node.mask))
    return tuple(found)


def _looked_up(table: Expr) -> tuple[Param, str] | None:
    """The tensor of a table, and the end at whose position it is read; None: it is an expression."""
    row = table.position if isinstance(table, At) else ""
    x = table.x if isinstance(table, At) else table
    return (x, row) if isinstance(x, Param) and not x.number else None


def _reads_outside_exponents(x: Expr) -> bool:
    """Whether a value reads a tensor otherwise than in exponents, which have no derivative where the value is 0."""
    stack = [x]
    while stack:
        node = stack.pop()
        if isinstance(node, Param) and not node.number and node.kind is Kind.REAL:
            return True
        if not (isinstance(node, Apply) and node.fn in ("exp", "sigmoid", "pow")):
            stack.extend(children(node))
    return False


def _direction(guards: tuple[Guard, ...]) -> tuple[int | None, int | None]:
    """The least i - j, and the least j - i, of all live pairs, where they are known."""
    lows = [None if guard.lo is None else constant(guard.lo) for guard in guards]
    highs = [None if guard.hi is None else constant(guard.hi) for guard in guards]
    down = None if None in lows else min(low for low in lows if low is not None)
    up = None if None in highs else -max(high for high in highs if high is not None)
    return down, up


def _apart(graph: Graph, pieces: tuple[Piece, ...]) -> bool:
    """Whether no pair lives in two pieces."""
    guards = Guards(graph)
    return all(guards.meet(a.guard, b.guard) is None for n, a in enumerate(pieces) for b in pieces[n + 1 :])
