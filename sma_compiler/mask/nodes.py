"""What a mask is made of: streams that a state can carry, and the rest, which only tiles can compute.

L_ij = sum over streams of  support * row(i) * col(j) * exp(sum of log gates between j and i) * kernel(|i - j|)
     + sum over the near parts, each a mask expression within a band.
"""

from __future__ import annotations

from dataclasses import dataclass

from sma_compiler.ir.nodes import Expr


@dataclass(frozen=True)
class Gate:
    """A log gate per step of the path between key position j and query position i.

    `log` mentions `t` only (or is static: the same at every step). The path holds every t strictly between j and i,
    and t = j where `key_closed`, t = i where `query_closed`; for i = j it is empty unless both are closed.
    """

    log: Expr
    key_closed: bool
    query_closed: bool


@dataclass(frozen=True)
class Turn:
    """`cos` or `sin` of `rate` times the distance |i - j|; `rate` is static."""

    fn: str
    rate: Expr


@dataclass(frozen=True)
class Stream:
    """One separable term of a mask, unbounded in distance: a state of fixed size carries it.

    side: "lower" (j <= i), "upper" (j >= i) or "full" (every pair; then it has no gates, turns or degree).
    first: the smallest distance |i - j| it holds, 0 or 1.
    delay: the keys and values it sees are those of `delay` positions earlier than the column it is fed at: the
        column at position m holds k[m - delay], v[m - delay]; lower streams only. Distance, path and kernel are
        counted from m. `feed` are factors of m, `col` of m - delay; both are written with position `j`.
    row: factors of position `i` (or static); col, feed: factors of position `j`. A boolean factor selects.
    segments: integer tensors over time, non-decreasing: the stream holds pairs whose entries agree in all of them.
    gates: the path. degree: the kernel has |i - j| ** degree. turns: and the product of these.
    contracted: axes (fresh names) of the factors that are summed within the term.
    """

    side: str
    first: int
    row: tuple[Expr, ...]
    col: tuple[Expr, ...]
    gates: tuple[Gate, ...] = ()
    segments: tuple[Expr, ...] = ()
    degree: int = 0
    turns: tuple[Turn, ...] = ()
    contracted: tuple[str, ...] = ()
    delay: int = 0
    feed: tuple[Expr, ...] = ()


@dataclass(frozen=True)
class Near:
    """A part of the mask that no stream carries, zero outside lo <= i - j <= hi (static integers; None: unbounded)."""

    mask: Expr
    lo: Expr | None
    hi: Expr | None


@dataclass(frozen=True)
class Decomposition:
    """A mask as streams and near parts; the support of the whole lies within lo <= i - j <= hi."""

    streams: tuple[Stream, ...]
    near: tuple[Near, ...]
    lo: Expr | None
    hi: Expr | None
