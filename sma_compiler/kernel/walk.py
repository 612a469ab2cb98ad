"""A walk: one contraction of the family as one kernel computes it, forward or as a gradient.

    y_r = left_r  sum over c of  score_rc  path(r, c)  right_c  x_c       score_rc = p_r . s_c  (+ a_r b_c)

Rows r and columns c are positions; `p` and `s` share the inner axis, `x` has the outer one, and so has y. The forward
pass is one such walk, and so is the gradient of each operand (dY = cotangent of the contraction, W the score gradient):

    Y   rows i  p = q    s = k    x = v    inner key,   outer value
    dQ  rows i  p = dY   s = v    x = k    inner value, outer key
    dK  rows j  p = v    s = dY   x = q    inner value, outer key,    from the end
    dV  rows j  p = k    s = q    x = dY   inner key,   outer value,  from the end
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sma_compiler.ir.nodes import Expr
from sma_compiler.kernel.linear import Linear, Term

RESULT = ("batch", "time", "head", "value")
"""The axes of an op's result."""


@dataclass(frozen=True)
class Output:
    """What a walk writes at every position.

    name: the tensor on the host. expr: an expression that may read `Walk.result`. axes: of the tensor, in order; where
    they lack the outer axis, the expression is summed over it, each program's channels apart: [tiles, B, H, T], fp32.
    optional: whether the launcher may pass None for the tensor. plus: the output of an earlier walk that is added.
    """

    name: str
    expr: Expr
    axes: tuple[str, ...]
    optional: bool = True
    plus: str = ""


@dataclass(frozen=True)
class Sums:
    """What gradients of gates and factors need of a walk: sums of the whole weights M_rc = other_r . x_c times y's.

    other: the operand with the outer axis at rows (q in the walk of dQ, k in that of dK). name: what kernels call it.
    pairs: whether pairs inside chunks count as well; this walk then leaves the states that come into chunks for the
    walk that counts no pairs, which multiplies its own with them.
    gate: of a gate that differs by channel, the leaf that stands for its gradient in the outputs of the second walk.
    """

    other: Expr
    name: str
    pairs: bool
    gate: Expr | None = None


@dataclass(frozen=True)
class Walk:
    """One kernel's contraction.

    name: the kernel's role ("forward", "dq", ...). p, s, x: operands; names: what kernels call them. inner, outer:
    their axes. terms: streams, told by rows and columns: `row` factors are those at r and `col` those at c, a gate's
    `query_closed` is whether the path holds r, `key_closed` whether it holds c. backward: columns lie at or after rows,
    and the state is carried from the end. offset: the factors (a, b) of a rank-one addition to the scores. weight: what
    rows are multiplied with at r; None: 1. quotient: the operand ("s" or "x") that was divided by sums of weights, as b
    was, for which fp16 may lack the range; "": none, or it is fp32. result: the leaf that stands for y in the outputs.
    normalize: how rows are divided. lone: whether "rows" or "columns" are those of the op, where one that pairs with
    itself alone, the first of a sequence without a state, is the same whatever its weight: it brings exactly nothing.
    fine: whether products take states in two parts, for what is far larger than the difference that is wanted of it.
    keyed: whether states grow by s with the factors of columns times x, and not by s times x with these. Beside a
    `solve` it is always the operand with a key axis that has them: then all walks that sum to a state round the same.
    """

    name: str
    p: Expr
    s: Expr
    x: Expr
    names: tuple[str, str, str]
    inner: str
    outer: str
    terms: tuple[Term, ...]
    backward: bool
    offset: tuple[Expr, Expr] | None
    result: Expr
    outputs: tuple[Output, ...]
    normalize: str = "none"
    weight: Expr | None = None
    quotient: str = ""
    sums: Sums | None = None
    lone: str = ""
    fine: bool = False
    keyed: bool = False

    @property
    def scales_keys(self) -> bool:
        """Whether kernels scale s, as a chunk begins, and not x: `keyed`, but for gates of outer channels."""
        return self.keyed and not (self.decayed or any(self.outer in term.axes for term in self.terms))

    @property
    def paths(self) -> tuple[Term, ...]:
        """The streams told by time: `row` is the late end of each path, `col` the early one."""
        return tuple(turned(term) for term in self.terms) if self.backward else self.terms

    @property
    def decayed(self) -> bool:
        """Whether scores are weighted by the channels they sum over, and so are made ahead."""
        return any(self.inner in term.axes for term in self.terms)

    @property
    def vector(self) -> str:
        """The axis of the vector carried beside the state: sums of s to divide by, or of x; "": there is none."""
        if self.offset is not None:
            return self.outer
        return self.inner if self.normalize != "none" else ""


def result_axes(linear: Linear) -> tuple[str, ...]:
    """The axes of a member's result: without heads where they are channels."""
    return tuple(axis for axis in RESULT if axis != "head" or not linear.merged)


def turned(term: Term) -> Term:
    """A stream with rows and columns exchanged."""
    gates = tuple(replace(g, query_closed=g.key_closed, key_closed=g.query_closed) for g in term.gates)
    return replace(term, row=term.col, col=term.row, gates=gates)


def forward_walk(linear: Linear) -> Walk:
    """The walk that computes an op's result."""
    return Walk(
        name="forward",
        p=linear.q,
        s=linear.k,
        x=linear.v,
        names=("q", "k", "v"),
        inner="key",
        outer="value",
        terms=linear.terms,
        backward=linear.backward,
        offset=None,
        result=linear.attend,
        outputs=(Output("y", linear.op.result, result_axes(linear), optional=False),),
        normalize=linear.normalize,
        keyed=linear.careful,
    )
