"""A `solve` as walks: what rows are less what they owe to earlier ones, which are themselves such rows.

    u_r = right_r  -  sum over c of  (p_r . s_c)  path(r, c)  u_c             c before r, or, in the adjoint, after it

Inside a chunk that is a triangular system with the inverse I + N, made ahead of the walks; what a chunk has of the
others comes through the state. The adjoint is the transposed system, and so the same walk from the end, with N^T:

    U   rows i  p = a    s = b    right = u0
    X   rows j  p = b    s = a    right = dU     from the end
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sma_compiler.ir.graph import Graph
from sma_compiler.ir.nodes import Apply, Kind, Param, ParamDecl
from sma_compiler.kernel.backward import declared
from sma_compiler.kernel.errors import NoTritonKernel
from sma_compiler.kernel.linear import Linear, plain
from sma_compiler.kernel.walk import RESULT, Output, Walk, forward_walk, turned


@dataclass(frozen=True)
class Solve:
    """A solve by the member of the linear family that it is the fixed point of: w = right - attend(L, a, b, w).

    member: that op without its parameter w. forward, adjoint: the walks. cotangent: the tensor `du` of the adjoint.
    """

    member: Linear
    forward: Walk
    adjoint: Walk
    cotangent: ParamDecl


def solve_of(member: Linear, graph: Graph) -> Solve:
    """The walks of a solve.

    Args:
        member: the op `right - attend(L, a, b, w)`, of which w is a parameter.
        graph: of its expressions.

    Raises:
        NoTritonKernel: it is not of that form, or this version has no kernel for it.
    """
    op, attend = member.op, member.attend
    values = plain(member.v)
    match op.result:
        case Apply(fn="sub", args=(right, taken)) if taken is attend and isinstance(values, Param):
            pass
        case _:
            raise NoTritonKernel(op.name, "chunked", "a `solve` is right - attend(L, a, b, w) of its own result w")
    if "value" not in right.axes:
        raise NoTritonKernel(op.name, "chunked", "the right-hand side of `solve` has no value axis")
    if member.backward or not all(term.strict for term in member.terms):
        raise NoTritonKernel(op.name, "chunked", "the mask of `solve` does not look strictly back")
    if len(member.terms) > 1:
        raise NoTritonKernel(op.name, "chunked", "a `solve` whose mask is a sum of several paths has no chunked kernel")
    if "value" in member.channels:
        raise NoTritonKernel(op.name, "chunked", "gates for each value channel of `solve` have no chunked kernel")
    params = tuple(decl for decl in op.params if decl.name != values.name)
    name = "du"
    while name in {decl.name for decl in params}:
        name += "_"
    cotangent = graph.param(name, Kind.REAL, RESULT, False)
    forward = replace(
        forward_walk(member),
        name="solve",
        names=("a", "b", "r"),
        x=right,
        result=values,
        outputs=(Output("u", values, RESULT, optional=False),),
    )
    adjoint = replace(
        forward,
        name="adjoint",
        p=forward.s,
        s=forward.p,
        names=("b", "a", "r"),
        x=cotangent,
        terms=tuple(turned(term) for term in forward.terms),
        backward=True,
        outputs=(Output("x", values, RESULT, optional=False),),
    )
    (decl,) = declared([cotangent])
    return Solve(replace(member, op=replace(op, params=params), v=right), forward, adjoint, decl)
