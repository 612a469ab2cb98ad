"""A `solve` as walks: what rows are less what they owe to earlier ones, which are themselves such rows.

    u_r = right_r  -  sum over c of  (p_r . s_c)  path(r, c)  u_c             c before r, or, in the adjoint, after it

Inside a chunk that is a triangular system with the inverse I + N, made ahead of the walks; what a chunk has of the
others comes through the state. The adjoint is the transposed system, and so the same walk from the end, with N^T:

    U   rows i  p = a    s = b    right = u0
    X   rows j  p = b    s = a    right = dU     from the end

From every row it takes what the state has of it already, and so what rounding has added to the state is taken back by
the rows to come. They take it back from what other walks sum to as well, where that is the same to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sma_compiler.ir.graph import Graph
from sma_compiler.ir.nodes import Apply, Kind, Param, postorder
from sma_compiler.kernel.backward import Backward, declared
from sma_compiler.kernel.errors import NoTritonKernel
from sma_compiler.kernel.inputs import tensors_of
from sma_compiler.kernel.linear import Linear, plain
from sma_compiler.kernel.walk import RESULT, Output, Walk, forward_walk


@dataclass(frozen=True)
class Solve:
    """A solve, by the member of the linear family that it is the fixed point of: w = right - attend(L, a, b, w).

    member: that op without its parameter w. walk: what computes w. graph: of the expressions.
    """

    member: Linear
    walk: Walk
    graph: Graph

    @property
    def less(self) -> Linear:
        """The op attend(L, a, b, w) - right, of which the member is the negative."""
        op, attend = self.member.op, self.member.attend
        values = self.walk.result
        assert isinstance(values, Param)
        known = (*op.params, *declared([values]))
        result = self.graph.apply("sub", attend, self.walk.x)
        return replace(self.member, op=replace(op, params=known, result=result), v=values)

    def gradients(self, made: Backward) -> Backward:
        """The gradients of a solve. made: those of `less`.

        They are the same where the cotangent of its result is -X, X of the adjoint system. That takes the place of the
        walk of dV, whose result would be the gradient of w; it writes -X as well as what follows from X alone.
        """
        (decl,) = made.reads
        x = self.graph.param(decl.name, decl.kind, decl.dims, False)
        name = "du"
        while name in {decl.name, *(own.name for own in made.linear.op.params)}:
            name += "_"
        cotangent = self.graph.param(name, Kind.REAL, RESULT, False)
        direct = [output for output in made.dv.outputs if made.dv.result not in postorder((output.expr,))]
        outputs = (Output(decl.name, x, RESULT, optional=False), *direct)
        adjoint = replace(
            made.dv, name="adjoint", names=("b", "a", "r"), x=cotangent, result=x, outputs=outputs, sums=None
        )
        left = {output.name for output in made.dv.outputs} - {output.name for output in direct}
        pieces = tuple(piece for piece in made.pieces if piece.tensor not in left)
        return replace(made, reads=(*declared([cotangent]), decl), dv=adjoint, pieces=pieces)


def finer(made: Backward) -> Backward:
    """The gradients of a solve or of what reads one, with states in two parts where nothing decays.

    Cotangents then sum up all the way, and the adjoint system takes most of that away again.
    """
    (term, *_) = made.linear.terms
    if term.gates or term.exact:
        return made
    return replace(made, dk=replace(made.dk, fine=True), dv=replace(made.dv, fine=True))


def tiles(walk: Walk) -> tuple[int, int]:
    """How many tensors of key channels and of value channels a walk reads."""
    held = {walk.p, walk.s} if not walk.decayed else set()
    read = tensors_of((*held, walk.x, *(output.expr for output in walk.outputs)))
    keys, values = (sum(axis in x.axes for x in read if x is not walk.result) for axis in ("key", "value"))
    return keys + 2 * walk.decayed, values


def solve_of(member: Linear, graph: Graph) -> Solve:
    """A solve.

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
    outputs = (Output("u", values, RESULT, optional=False),)
    walk = replace(forward_walk(member), name="solve", names=("a", "b", "r"), x=right, result=values, outputs=outputs)
    return Solve(replace(member, op=replace(op, params=params), v=right), walk, graph)
