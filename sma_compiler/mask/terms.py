"""Expands the value of a piece into separable terms: factors of i, factors of j, gates, and functions of i - j."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from sma_compiler.ir.graph import Graph
from sma_compiler.ir.nodes import (
    Apply,
    At,
    Const,
    Expr,
    Kind,
    Levels,
    MaskProduct,
    Param,
    PathSum,
    Reduce,
    postorder,
)
from sma_compiler.mask.algebra import (
    MAX_TERMS,
    Monomial,
    Polynomial,
    TooLarge,
    add,
    build,
    by_distance,
    constant,
    is_positional,
    mask_nodes,
    split,
    tidy,
)
from sma_compiler.mask.nodes import Gate, Turn

MAX_TURNS = 6
"""A product of more waves than this is left alone: each doubles the state."""


@dataclass(frozen=True)
class Term:
    """row(i) * col(j) * exp(gates along the path) * |i - j| ** degree * turns * opaque, summed over `contracted`.

    The distance is |i - j|, so a term belongs to one side of the diagonal. `opaque` are functions of the pair that no
    state carries, and `product` a product of two masks, at most one. A term is `unsafe` where row and col may overflow
    apart though their product does not: exp(x[i] - x[j]).
    """

    row: tuple[Expr, ...] = ()
    col: tuple[Expr, ...] = ()
    gates: tuple[Gate, ...] = ()
    degree: int = 0
    turns: tuple[Turn, ...] = ()
    contracted: tuple[str, ...] = ()
    opaque: tuple[Expr, ...] = ()
    product: MaskProduct | None = None
    unsafe: bool = False

    def times(self, other: Term) -> Term:
        """The product of two terms."""
        opaque = self.opaque + other.opaque
        product = self.product
        if self.product is not None and other.product is not None:
            opaque = (*opaque, other.product)
        elif product is None:
            product = other.product
        return Term(
            self.row + other.row,
            self.col + other.col,
            self.gates + other.gates,
            self.degree + other.degree,
            self.turns + other.turns,
            self.contracted + other.contracted,
            opaque,
            product,
            self.unsafe or other.unsafe,
        )


@dataclass(frozen=True)
class Expander:
    """Expands values on one side of the diagonal: `sign` is 1 below it, -1 above; `first` is the least |i - j|."""

    graph: Graph
    sign: int
    first: int

    def terms(self, value: Expr) -> list[Term]:
        """The value as a sum of terms; a part that resists is one opaque term."""
        try:
            monomials = list(Polynomial(self._normal(value), pairs_only=True).monomials())
        except TooLarge:
            return [Term(opaque=(value,))]
        groups: dict[tuple[tuple[Expr, int], ...], list[Monomial]] = {}
        for monomial in monomials:
            kept = tuple((atom, power) for atom, power in monomial.powers if not _is_positional(atom))
            groups.setdefault(kept, []).append(monomial)
        found: list[Term] = []
        try:
            for kept, members in groups.items():
                factors = self._factors(self._joined(kept))
                for term in self._positional(members):
                    found += self._product([term, *factors])
        except TooLarge:
            return [Term(opaque=(value,))]
        return found

    def _joined(self, powers: tuple[tuple[Expr, int], ...]) -> tuple[tuple[Expr, int], ...]:
        """Factors such as exp(-m * i) and m ** j as one exponential of i - j: apart they may overflow."""
        g = self.graph
        logs = {atom: log for atom, _ in powers if (log := self._log(atom)) is not None and _is_positional(log)}
        if len(logs) < 2:
            return powers
        parts = [g.apply("mul", g.const(power), logs[atom]) for atom, power in powers if atom in logs]
        total = add(g, parts)
        distances = by_distance(g, total)
        if distances is None or set(distances) - {0, 1}:
            return powers
        rest = tuple((atom, power) for atom, power in powers if atom not in logs)
        return (*rest, (g.apply("exp", total), 1))

    def _log(self, atom: Expr) -> Expr | None:
        """The exponent of e that makes exp(e), b ** e, or 1 over one of them."""
        g = self.graph
        match atom:
            case Apply(fn="exp", args=(exponent,)):
                return exponent
            case Apply(fn="pow", args=(base, exponent)) if not base.positions and not isinstance(exponent, Const):
                return g.apply("mul", exponent, g.apply("log", base))
            case Apply(fn="div", args=(Const(value=1), below)) if (log := self._log(below)) is not None:
                return g.apply("neg", log)
        return None

    def _factors(self, powers: tuple[tuple[Expr, int], ...]) -> list[list[Term] | Term]:
        return [self._atom(atom) for atom, power in powers for _ in range(power)]

    def _product(self, factors: list[list[Term] | Term]) -> list[Term]:
        found = [Term()]
        for factor in factors:
            others = factor if isinstance(factor, list) else [factor]
            if len(found) * len(others) > MAX_TERMS:
                raise TooLarge
            found = [term.times(other) for term in found for other in others]
            if any(len(term.turns) > MAX_TURNS for term in found):
                raise TooLarge
        return found

    def _positional(self, members: list[Monomial]) -> list[Term]:
        """The terms of a polynomial in i, j and static factors: powers of the distance where it is one of i - j."""
        parts = [
            (member, tuple((atom, power) for atom, power in member.powers if _is_positional(atom)))
            for member in members
        ]
        whole = add(self.graph, [build(self.graph, member.factor, powers) for member, powers in parts])
        powers = by_distance(self.graph, whole)
        if powers is not None:
            return [self._power(degree, factor) for degree, factor in powers.items()]
        return [self._product([self._scaled(member.factor), *self._factors(powers)])[0] for member, powers in parts]

    def _power(self, degree: int, factor: Expr) -> Term:
        if self.sign < 0 and degree % 2:
            factor = self.graph.apply("neg", factor)
        row = () if constant(factor) == 1 else (factor,)
        return Term(row=row, degree=degree)

    def _scaled(self, factor: Fraction) -> Term:
        return Term() if factor == 1 else Term(row=(build(self.graph, factor, ()),))

    def _atom(self, atom: Expr) -> list[Term] | Term:
        """A factor that is no sum or product."""
        if "j" not in atom.positions:
            return Term(row=(atom,))
        if "i" not in atom.positions:
            return Term(col=(atom,))
        if isinstance(atom, MaskProduct):
            return Term(product=atom)
        if isinstance(atom, Reduce) and atom.fn in ("sum", "mean"):
            return self._contracted(atom)
        if isinstance(atom, Apply):
            if (log := self._log(atom)) is not None:
                return self._exponential(atom, log)
            if atom.fn in ("cos", "sin"):
                return self._wave(atom)
        return Term(opaque=(atom,))

    def _contracted(self, atom: Reduce) -> list[Term]:
        """A sum over an axis within the mask: the axis gets a name of its own and stays with the term."""
        fresh = self.graph.fresh(atom.axis)
        terms = self.terms(relabel(self.graph, atom.x, atom.axis, fresh))
        if any(term.opaque or term.product for term in terms):
            return [Term(opaque=(atom,))]
        if atom.fn == "mean":
            count = self.graph.apply("div", self.graph.const(1), self.graph.size(atom.axis))
            terms = [replace(term, row=(*term.row, count)) for term in terms]
        return [replace(term, contracted=(*term.contracted, fresh)) for term in terms]

    def _exponential(self, atom: Expr, exponent: Expr) -> Term:
        """exp of a sum of path sums, a multiple of i - j, and functions of i alone or of j alone."""
        g = self.graph
        try:
            monomials = list(Polynomial(self._normal(exponent), pairs_only=True).monomials())
        except TooLarge:
            return Term(opaque=(atom,))
        static: list[Monomial] = []
        rows: list[Expr] = []
        cols: list[Expr] = []
        gates: list[Gate] = []
        for monomial in monomials:
            pairs = [item for item, _ in monomial.powers if len(item.positions) == 2]
            where = frozenset().union(*(item.positions for item, _ in monomial.powers))
            if all(_is_positional(item) or not item.positions for item, _ in monomial.powers):
                static.append(monomial)
            elif not pairs and "j" not in where:
                rows.append(build(g, monomial.factor, monomial.powers))
            elif not pairs and "i" not in where:
                cols.append(build(g, monomial.factor, monomial.powers))
            elif (gate := self._gate(monomial)) is not None:
                gates.append(gate)
            else:
                return Term(opaque=(atom,))
        powers = by_distance(g, add(g, [build(g, m.factor, m.powers) for m in static]))
        if powers is None or set(powers) - {0, 1}:
            return Term(opaque=(atom,))
        decay, rest = self._static_gate(powers)
        return Term(
            row=tuple(g.apply("exp", part) for part in (*rows, *rest)),
            col=tuple(g.apply("exp", part) for part in cols),
            gates=(*gates, *decay),
            unsafe=self._telescopes(rows, cols),
        )

    def _static_gate(self, powers: dict[int, Expr]) -> tuple[list[Gate], list[Expr]]:
        """exp(c n + c0) as a constant gate c; c0 = -c leaves out both ends, c0 = c takes both in."""
        g = self.graph
        shift = powers.get(0)
        rest = [] if shift is None or constant(shift) == 0 else [shift]
        slope = powers.get(1)
        if slope is None or constant(slope) == 0:
            return [], rest
        log = slope if self.sign > 0 else g.apply("neg", slope)
        if rest and self.first >= 1 and constant(g.apply("add", rest[0], log)) == 0:
            return [Gate(log, False, False)], []
        if rest and constant(g.apply("sub", rest[0], log)) == 0:
            return [Gate(log, True, True)], []
        return [Gate(log, False, True)], rest

    def _gate(self, monomial: Monomial) -> Gate | None:
        """A path sum times static factors, on its own side of the diagonal."""
        paths = [(atom, power) for atom, power in monomial.powers if isinstance(atom, PathSum)]
        if len(paths) != 1 or paths[0][1] != 1:
            return None
        path = paths[0][0]
        assert isinstance(path, PathSum)
        others = monomial.without(path)
        if any(atom.positions for atom, _ in others) or (path.start == "j") != (self.sign > 0):
            return None
        scale = build(self.graph, monomial.factor, others)
        log = path.gate if constant(scale) == 1 else self.graph.apply("mul", scale, path.gate)
        closed = path.start_closed, path.end_closed
        return Gate(log, *(closed if path.start == "j" else closed[::-1]))

    def _telescopes(self, rows: list[Expr], cols: list[Expr]) -> bool:
        """Whether a part x[i] - x[j] is in the exponent: its two halves may overflow apart, so no state carries it."""
        g = self.graph
        halves = {g.reposition(row, {"i": "j"}) for row in rows}
        return any(
            half in {col, g.apply("neg", col)} or g.apply("neg", half) is col
            for half in halves
            for col in cols
            if any(isinstance(node, At) for node in postorder((col,)))
        )

    def _wave(self, atom: Apply) -> list[Term] | Term:
        """cos or sin of rate * (i - j) + phase, or of a function of i plus a function of j."""
        g = self.graph
        powers = by_distance(g, atom.args[0])
        if powers is not None and not set(powers) - {0, 1}:
            rate, phase = powers.get(1, g.const(0)), powers.get(0, g.const(0))
            rate, turned = self._positive(rate)
            along = {fn: Term(turns=(Turn(fn, rate),)) for fn in ("cos", "sin")}
            if turned != (self.sign < 0):
                along["sin"] = along["sin"].times(Term(row=(g.const(-1),)))
            if constant(phase) == 0:
                return along[atom.fn]
            fixed = {fn: Term(row=(g.apply(fn, phase),)) for fn in ("cos", "sin")}
            return self._angle_sum(atom.fn, along, fixed)
        halves = split(g, atom.args[0])
        if halves is None:
            return Term(opaque=(atom,))
        of_i = {fn: Term(row=(g.apply(fn, halves[0]),)) for fn in ("cos", "sin")}
        of_j = {fn: Term(col=(g.apply(fn, halves[1]),)) for fn in ("cos", "sin")}
        return self._angle_sum(atom.fn, of_i, of_j)

    def _positive(self, rate: Expr) -> tuple[Expr, bool]:
        """A rate without its sign, and whether it had one: cos(-x) is cos(x), sin(-x) is -sin(x)."""
        factors = [monomial.factor for monomial in Polynomial(rate).monomials()]
        turned = bool(factors) and all(factor < 0 for factor in factors)
        return (tidy(self.graph, self.graph.apply("neg", rate)) if turned else rate), turned

    def without_turns(self, term: Term) -> list[Term]:
        """A term on both sides of the diagonal, its waves of i - j as sums of products of waves of i and of j."""
        g = self.graph
        found = [replace(term, turns=())]
        for turn in term.turns:
            of_i = {fn: Term(row=(g.apply(fn, g.apply("mul", turn.rate, g.position("i"))),)) for fn in ("cos", "sin")}
            of_j = {fn: Term(col=(g.apply(fn, g.apply("mul", turn.rate, g.position("j"))),)) for fn in ("cos", "sin")}
            of_j["sin"] = of_j["sin"].times(Term(row=(g.const(-1),)))
            found = [each.times(wave) for each in found for wave in self._angle_sum(turn.fn, of_i, of_j)]
        return found

    def _angle_sum(self, fn: str, a: dict[str, Term], b: dict[str, Term]) -> list[Term]:
        minus = Term(row=(self.graph.const(-1),))
        if fn == "cos":
            return [a["cos"].times(b["cos"]), a["sin"].times(b["sin"]).times(minus)]
        return [a["sin"].times(b["cos"]), a["cos"].times(b["sin"])]

    def _normal(self, value: Expr) -> Expr:
        """a / b as a * (1 / b), so that a is expanded; the root or power of an exponential as an exponential."""
        g = self.graph
        done = _Same()
        one = g.const(1)
        for node in mask_nodes(value):
            rebuilt = node if isinstance(node, At | Levels) else g.rebuild(node, done)
            if isinstance(rebuilt, Apply) and len(rebuilt.positions) == 2:
                x, *rest = rebuilt.args
                if rebuilt.fn == "div" and not (_is_integer(x) or _is_integer(rest[0])):
                    rebuilt = g.apply("mul", x, g.apply("div", one, rest[0]))
                elif rebuilt.fn in ("abs", "relu") and self._log(x) is not None:
                    rebuilt = x
                elif rebuilt.fn == "sqrt" and (log := self._log(x)) is not None:
                    rebuilt = g.apply("exp", g.apply("div", log, g.const(2)))
                elif rebuilt.fn == "pow" and not rest[0].positions and (log := self._log(x)) is not None:
                    rebuilt = g.apply("exp", g.apply("mul", log, rest[0]))
            done[node] = rebuilt
        return done[value]


class _Same(dict[Expr, Expr]):
    """A mapping of nodes where those that are not in it map to themselves."""

    def __missing__(self, node: Expr) -> Expr:
        return node


def _is_integer(expr: Expr) -> bool:
    return isinstance(expr, Const) and expr.kind is Kind.INT


def _is_positional(atom: Expr) -> bool:
    """Whether an atom is a polynomial of i and j."""
    return bool(atom.positions) and is_positional(atom)


def relabel(graph: Graph, mask: Expr, old: str, new: str) -> Expr:
    """The mask expression with one of its axes under another name."""
    done: dict[Expr, Expr] = {}
    for node in postorder((mask,)):
        if old not in node.axes:
            done[node] = node
        elif isinstance(node, At | Param) or not node.positions:
            done[node] = graph.rename(node, old, new)
        else:
            done[node] = graph.rebuild(node, done)
    return done[mask]
