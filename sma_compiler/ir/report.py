"""Where a checked expression stands, and the mistakes found so far."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from sma_compiler.errors import SpecError
from sma_compiler.ir.nodes import Expr
from sma_compiler.mistakes import Mistake, TooManyNodes
from sma_compiler.source import Span
from sma_compiler.syntax import tree
from sma_compiler.syntax.layout import MAX_MISTAKES
from sma_compiler.syntax.show import show_expr

MAX_NODES = 10_000
_LONGEST = 48
_MOST_COMPARED = 500


class Enough(Exception):
    """More mistakes than anyone reads: checking stops."""


@dataclass(frozen=True)
class Definition:
    """A `def`; its body sees the ones of lower `order`. `broken`: a mistake in its names was reported already."""

    name: str
    params: tuple[str, ...] | None
    value: tree.Expr
    order: int
    span: Span
    prelude: bool = False
    broken: bool = False


class Above(Mapping[str, Definition]):
    """The defs above one."""

    def __init__(self, defs: Mapping[str, Definition], order: int) -> None:
        self._defs: Mapping[str, Definition] = defs._defs if isinstance(defs, Above) else defs
        self._order = order

    def __getitem__(self, name: str) -> Definition:
        found = self._defs[name]
        if found.order >= self._order:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return (name for name, define in self._defs.items() if define.order < self._order)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(frozen=True)
class Scope:
    """What names mean: values (None after a mistake), defs, and whether `t` has a meaning.

    Inside the body of a `def`, `inside` is the text of the outermost use and `site` its place.
    """

    names: Mapping[str, Expr | None]
    defs: Mapping[str, Definition]
    path: bool = False
    inside: str = ""
    site: Span | None = None

    def place(self, node: tree.Node) -> Span:
        """Where the user wrote the node, or used the `def` that it is in."""
        return self.site or node.span


class Budget:
    """Counts the nodes of a file as defs are expanded. TooManyNodes beyond the limit."""

    def __init__(self) -> None:
        self.left = MAX_NODES

    def take(self, count: int, scope: Scope, node: tree.Node) -> None:
        self.left -= count
        if self.left < 0:
            raise TooManyNodes(scope.place(node), limit=MAX_NODES)


class Report:
    """Collects mistakes, each once."""

    def __init__(self, errors: Iterable[SpecError] = ()) -> None:
        self.errors = list(errors)
        self._seen: set[tuple[object, ...]] = set()

    def add(self, mistake: SpecError) -> None:
        key = (type(mistake), mistake.span, mistake.message)
        if key not in self._seen:
            self._seen.add(key)
            self.errors.append(mistake)
            if len(self.errors) >= MAX_MISTAKES:
                raise Enough

    def say(self, kind: type[Mistake], scope: Scope, node: tree.Node, **words: object) -> None:
        """A mistake at a node."""
        self.add(kind(scope.place(node), scope.inside, **words))


def quote(node: tree.Expr) -> str:
    """The expression as a message shows it: on one line, cut where it is long."""
    text = show_expr(node)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def quote_tight(node: tree.Expr) -> str:
    """The expression as it stands before an index: in brackets where it needs them."""
    tight = isinstance(node, tree.Name | tree.Call | tree.Index | tree.Number)
    return quote(node) if tight else f"({quote(node)})"


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that `name` most likely stands for; empty where none is near."""
    if len(name) > 64:
        return ""
    close = [word for word in dict.fromkeys(known) if abs(len(word) - len(name)) <= len(name)]
    found = difflib.get_close_matches(name, sorted(close[:_MOST_COMPARED]), 1, 0.6)
    return found[0] if found else ""
