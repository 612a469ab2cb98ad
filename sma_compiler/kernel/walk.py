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

from dataclasses import dataclass

from sma_compiler.ir.nodes import Expr, Param
from sma_compiler.kernel.linear import Term


@dataclass(frozen=True)
class Output:
    """What a walk writes at every position.

    name: the tensor on the host. expr: an expression that may read `Walk.result`. axes: of the tensor, in order; where
    they lack the outer axis, the expression is summed over it, each program's channels apart: [tiles, B, H, T], fp32.
    """

    name: str
    expr: Expr
    axes: tuple[str, ...]


@dataclass(frozen=True)
class Walk:
    """One kernel's contraction.

    name: the kernel's role ("forward", "dq", ...). p, s, x: operands. inner, outer: their axes. terms: streams, whose
    `row` factors are those at r and `col` those at c. backward: columns lie at or after rows, and the state is carried
    from the end. offset: the factors (a, b) of a rank-one addition to the scores. result: the leaf that stands for y
    in the outputs. normalize: how rows are divided. reads: every parameter and cotangent that expressions may read.
    """

    name: str
    p: Expr
    s: Expr
    x: Expr
    inner: str
    outer: str
    terms: tuple[Term, ...]
    backward: bool
    offset: tuple[Expr, Expr] | None
    result: Expr
    outputs: tuple[Output, ...]
    normalize: str = "none"
    reads: tuple[Param, ...] = ()
