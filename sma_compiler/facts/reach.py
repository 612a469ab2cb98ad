"""Which positions a mask reads besides i, j and what lies between: those that a product of masks sums over."""

from __future__ import annotations

from collections.abc import Iterator

from sma_compiler.facts.bounds import band
from sma_compiler.ir.graph import Graph
from sma_compiler.ir.nodes import At, Expr, MaskProduct, children
from sma_compiler.mask.algebra import constant
from sma_compiler.mask.streams import decompose


def reads_ahead(graph: Graph, mask: Expr) -> bool:
    """Whether some entry L[i, j] may depend on a position after i.

    Row i of `L @ M` reads every m that L pairs with i, wherever its products are cut off from outside.
    """
    return any(not _at_least(graph, product.left, 0) for product, _ in _products(mask))


def reads_behind(graph: Graph, mask: Expr, hi: Expr | None) -> bool:
    """Whether some entry L[i, j] may depend on a position before both j and i - hi."""
    return any(
        not (_at_least(graph, product.right, 0) or (own_row and _at_most(graph, product.left, hi)))
        for product, own_row in _products(mask)
    )


def _products(mask: Expr) -> Iterator[tuple[MaskProduct, bool]]:
    """The products of masks within a mask (not within the tensors it indexes), and whether their rows are its own."""
    stack = [(mask, True)]
    seen = set(stack)
    while stack:
        node, own_row = stack.pop()
        if isinstance(node, MaskProduct):
            yield node, own_row
            found = [(node.left, own_row), (node.right, False)]
        else:
            found = [] if isinstance(node, At) else [(child, own_row) for child in children(node)]
        new = [each for each in found if each not in seen and each[0].positions]
        seen.update(new)
        stack += new


def _at_least(graph: Graph, mask: Expr, least: int) -> bool:
    """Whether i - j is proven to be at least this wherever the mask is not 0."""
    return band(decompose(graph, mask))[0] >= least


def _at_most(graph: Graph, mask: Expr, bound: Expr | None) -> bool:
    """Whether i - j is proven to be at most the bound wherever the mask is not 0."""
    hi = decompose(graph, mask).hi
    if hi is None or bound is None:
        return False
    if hi is bound:
        return True
    known, most = constant(hi), constant(bound)
    return known is not None and most is not None and known <= most
