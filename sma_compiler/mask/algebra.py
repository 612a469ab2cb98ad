"""Polynomials over the atoms of a mask expression, in sympy's sparse rings.

An atom is a position, or a maximal subexpression that is no sum, product or integer power. sympy never sees text: a
ring is made with one generator an atom, and coefficients are exact rationals (other numbers are atoms themselves).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from sma_compiler.ir.graph import Graph
from sma_compiler.ir.nodes import Apply, At, Const, Expr, Kind, Levels, Param, Position, Size, children, postorder

if TYPE_CHECKING:
    from sympy.polys.rings import PolyElement, PolyRing

MAX_TERMS = 256
"""A sum or product with more terms than this is left alone, as one atom."""

_RINGS: dict[int, PolyRing] = {}


def _ring(count: int) -> PolyRing:
    """The ring of rational polynomials in this many variables."""
    from sympy import QQ
    from sympy.polys.rings import ring

    if count not in _RINGS:
        _RINGS[count] = ring([f"x{n}" for n in range(count)], QQ)[0]
    return _RINGS[count]


@dataclass(frozen=True)
class Monomial:
    """`factor` times each atom raised to its power."""

    factor: Fraction
    powers: tuple[tuple[Expr, int], ...]

    def without(self, *gone: Expr) -> tuple[tuple[Expr, int], ...]:
        """The powers of all atoms but these."""
        return tuple((atom, power) for atom, power in self.powers if atom not in gone)

    def power(self, atom: Expr) -> int:
        """The power of an atom, 0 where it does not occur."""
        return dict(self.powers).get(atom, 0)


def _is_arithmetic(node: Expr, positions: int) -> bool:
    """Whether the ring expands this node, given the least number of positions it must mention."""
    if not isinstance(node, Apply) or any(arg.kind is Kind.BOOL for arg in node.args):
        return False
    if len(node.positions) < positions:
        return False
    if node.fn == "pow":
        exponent = node.args[1]
        return isinstance(exponent, Const) and exponent.kind is Kind.INT and 0 <= exponent.value <= 8
    if node.fn == "div":
        return isinstance(node.args[1], Const) and node.args[1].kind is Kind.INT and node.args[1].value != 0
    return node.fn in ("add", "sub", "mul", "neg")


def _walk(expr: Expr, positions: int) -> tuple[list[Expr], set[Expr]]:
    """The nodes down to the atoms, operands before users, and those among them that the ring expands."""
    nodes: list[Expr] = []
    inner: set[Expr] = set()
    seen: set[Expr] = set()
    stack = [(expr, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            nodes.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            if isinstance(node, Apply) and _is_arithmetic(node, positions):
                inner.add(node)
                stack.extend((arg, False) for arg in reversed(node.args))
    return nodes, inner


class Polynomial:
    """An expression as a sum of monomials.

    With `pairs_only`, sums and products that mention one position or none are atoms: (1 - m[i]) stays one factor.
    """

    def __init__(self, expr: Expr, pairs_only: bool = False) -> None:
        least = 2 if pairs_only else 0
        nodes, inner = _walk(expr, least)
        self.atoms = [node for node in nodes if node not in inner and not _rational(node)]
        self._ring = _ring(len(self.atoms))
        self._index = {atom: n for n, atom in enumerate(self.atoms)}
        values: dict[Expr, PolyElement] = {}
        for node in nodes:
            values[node] = self._value(node, values) if node in inner else self._leaf(node)
        self._poly = values[expr]

    def _leaf(self, node: Expr) -> PolyElement:
        if _rational(node):
            assert isinstance(node, Const)
            return self._ring(int(node.value))
        return self._ring.gens[self._index[node]]

    def _value(self, node: Expr, values: dict[Expr, PolyElement]) -> PolyElement:
        assert isinstance(node, Apply)
        args = [values[arg] for arg in node.args]
        if node.fn == "neg":
            return -args[0]
        if node.fn == "add":
            return args[0] + args[1]
        if node.fn == "sub":
            return args[0] - args[1]
        if node.fn == "mul":
            if len(args[0]) * len(args[1]) > MAX_TERMS:
                raise TooLarge
            return args[0] * args[1]
        exponent = node.args[1]
        assert isinstance(exponent, Const)
        if node.fn == "pow":
            power = int(exponent.value)
            if power == 0:  # also where the base is 0
                return self._ring(1)
            if math.comb(max(len(args[0]) + power - 1, 0), power) > MAX_TERMS:
                raise TooLarge
            return args[0] ** power
        return args[0] * self._ring.domain(1, int(exponent.value))

    def monomials(self) -> Iterator[Monomial]:
        """The terms, in the ring's order."""
        for powers, factor in self._poly.terms():
            found = tuple((atom, int(power)) for atom, power in zip(self.atoms, powers, strict=True) if power)
            yield Monomial(Fraction(int(factor.numerator), int(factor.denominator)), found)


class TooLarge(Exception):
    """The expression has too many terms to expand; it is treated as opaque."""


def _rational(node: Expr) -> bool:
    return isinstance(node, Const) and node.kind is Kind.INT


def build(graph: Graph, factor: Fraction, powers: tuple[tuple[Expr, int], ...]) -> Expr:
    """A monomial as an expression again."""
    expr: Expr | None = None
    for atom, power in powers:
        raised = atom if power == 1 else graph.apply("pow", atom, graph.const(power))
        expr = raised if expr is None else graph.apply("mul", expr, raised)
    if expr is None:
        whole = graph.const(factor.numerator)
        return whole if factor.denominator == 1 else graph.apply("div", whole, graph.const(factor.denominator))
    if factor == -1:
        return graph.apply("neg", expr)
    if factor.numerator != 1:
        expr = graph.apply("mul", graph.const(factor.numerator), expr)
    return expr if factor.denominator == 1 else graph.apply("div", expr, graph.const(factor.denominator))


def add(graph: Graph, terms: list[Expr]) -> Expr:
    """The sum of some expressions; 0 for none."""
    total: Expr | None = None
    for term in terms:
        total = term if total is None else graph.apply("add", total, term)
    return total if total is not None else graph.const(0)


def tidy(graph: Graph, expr: Expr) -> Expr:
    """A static integer expression with its sums collected: -(-w) - 1 as w - 1."""
    try:
        terms = sorted(Polynomial(expr).monomials(), key=lambda term: (not term.powers, term.factor < 0))
    except TooLarge:
        return expr
    total: Expr = graph.const(0)
    for term in terms:
        fn = "sub" if total is not graph.const(0) and term.factor < 0 else "add"
        part = build(graph, abs(term.factor) if fn == "sub" else term.factor, term.powers)
        total = part if total is graph.const(0) else graph.apply(fn, total, part)
    return total


def is_positional(expr: Expr) -> bool:
    """Whether an expression depends on positions as numbers only, as a polynomial: no tensor is indexed in it."""
    varying = (node for node in mask_nodes(expr) if node.positions)
    return all(isinstance(node, Position) or _is_arithmetic(node, 0) for node in varying)


def by_distance(graph: Graph, expr: Expr) -> dict[int, Expr] | None:
    """`expr` as a polynomial in d = i - j: the static coefficient of each power. None where it is none."""
    if not is_positional(expr) or "t" in expr.positions:
        return None
    # t stands for the distance: nothing else at this level mentions it
    t = graph.position("t")
    try:
        poly = Polynomial(graph.replace(expr, {graph.position("i"): graph.apply("add", graph.position("j"), t)}))
    except TooLarge:
        return None
    powers: dict[int, list[Expr]] = {}
    for term in poly.monomials():
        if any(atom.positions and atom is not t for atom, _ in term.powers):
            return None
        powers.setdefault(term.power(t), []).append(build(graph, term.factor, term.without(t)))
    return {power: add(graph, terms) for power, terms in powers.items()}


def constant(expr: Expr) -> int | None:
    """The value of an integer constant, also one that only cancels to it; None for anything else."""
    if isinstance(expr, Const):
        return int(expr.value) if expr.kind is Kind.INT else None
    try:
        terms = list(Polynomial(expr).monomials())
    except TooLarge:
        return None
    if any(term.powers for term in terms):
        return None
    total = sum((term.factor for term in terms), Fraction(0))
    return int(total) if total.denominator == 1 else None


def is_number(expr: Expr) -> bool:
    """Whether an expression is computed from literals, sizes and numbers of the call: no tensor is read."""
    nodes = postorder((expr,))
    return all(node.number if isinstance(node, Param) else isinstance(node, Const | Size | Apply) for node in nodes)


def rational(expr: Expr) -> Fraction | None:
    """The value of a number, also of one that is computed from literals; None for anything else."""
    try:
        terms = list(Polynomial(expr).monomials())
    except TooLarge:
        return None
    total = Fraction(0)
    for term in terms:
        for atom, power in term.powers:
            if not isinstance(atom, Const):
                return None
            term = replace(term, factor=term.factor * Fraction(atom.value) ** power)
        total += term.factor
    return total


def split(graph: Graph, expr: Expr) -> tuple[Expr, Expr] | None:
    """`expr` as a function of i plus a function of j; None where it is no such sum."""
    try:
        monomials = list(Polynomial(expr, pairs_only=True).monomials())
    except TooLarge:
        return None
    rows: list[Expr] = []
    cols: list[Expr] = []
    for monomial in monomials:
        where = frozenset().union(*(atom.positions for atom, _ in monomial.powers))
        if len(where) == 2:
            return None
        (cols if "j" in where else rows).append(build(graph, monomial.factor, monomial.powers))
    return add(graph, rows), add(graph, cols)


def mask_nodes(mask: Expr) -> Iterator[Expr]:
    """The nodes of a mask, operands before users, without those of the tensors that it indexes."""
    seen: set[Expr] = set()
    stack = [(mask, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            yield node
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            if node.positions and not isinstance(node, At | Levels):
                stack.extend((child, False) for child in reversed(children(node)))
