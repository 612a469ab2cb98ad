"""An op of several contractions as a chain of stages, ops of one contraction each.

    u = solve(strict, beta k, k, beta v); y = attend(causal, q, k, u)

has the stages u, of k, v and beta, and y, of q, k and u: what a contraction gives is a parameter of those after it.
With x = (I + A)^-T du, the gradients of u = solve(L, a, b, right), A = L o a b^T, are those of
right - attend(L, a, b, u)  with the cotangent x. Such is the op of its stage, with u as a parameter that needs none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sma_compiler.ir.graph import Graph
from sma_compiler.ir.nodes import Attend, Expr, Kind, MaskTimes, Op, Param, ParamDecl, Solve, postorder
from sma_compiler.ir.roles import roles
from sma_compiler.kernel.errors import NoTritonKernel
from sma_compiler.plan.choose import Plans, plan

AXES = ("batch", "time", "head", "value")
"""Of what a stage hands to later ones."""


@dataclass(frozen=True)
class Stage:
    """One contraction of an op.

    site: the name of its states. op: what it computes. value: what later stages read it as; None: it is the last.
    right: of a `solve`, what it is solved for; then `value` is the last parameter of `op`. handed: the parameters
    whose gradients are parts that other stages take up: values of earlier ones. solved: whether some stage is a
    `solve`.
    """

    site: str
    op: Op
    plans: Plans
    value: ParamDecl | None
    right: Expr | None
    handed: frozenset[str]
    solved: bool

    @property
    def given(self) -> tuple[ParamDecl, ...]:
        """What its forward pass takes."""
        return self.op.params if self.right is None else self.op.params[:-1]


def split(op: Op, plans: Plans) -> tuple[Stage, ...]:
    """The stages of an op, operands first; none where it is one contraction, for which there are kernels of its own, or
    has none.

    Raises:
        NoTritonKernel: it has no such stages.
    """
    nodes = [(choice.site.name, choice.site.node) for choice in plans.choices]
    if not nodes or (len(nodes) == 1 and not isinstance(nodes[0][1], Solve)):
        return ()
    if isinstance(op.result, Solve) is not isinstance(nodes[-1][1], Solve):
        raise NoTritonKernel(op.name, "chunked", "a `solve` is the result itself, or an operand of `attend`")
    graph = Graph.of(op.result)
    taken = {decl.name for decl in op.params}
    done: dict[Expr, Expr] = {}
    values: list[ParamDecl] = []
    found: list[Stage] = []
    solved = any(isinstance(node, Solve) for _, node in nodes)
    for site, node in nodes:
        right = value = None
        result: Expr = node
        if node is nodes[-1][1] and not isinstance(node, Solve):
            result = op.result
        else:
            name = site
            while name in taken:
                name += "_"
            taken.add(name)
            value = ParamDecl(name, Kind.REAL, False, AXES, op.span)
            values.append(value)
        own = _rebuilt(graph, result, done)
        if value is not None:
            done[node] = graph.param(value.name, value.kind, value.dims, False)
        if isinstance(own, Solve):
            right = own.u
            own = graph.apply("sub", right, graph.attend(own.mask, own.a, own.b, done[node], span=own.span))
        made = _op(op, site, own, (*op.params, *values), value)
        handed = frozenset(decl.name for decl in values if decl is not value)
        found.append(Stage(site, made, plan(made), value, right, handed, solved))
    return _finely(found)


def _finely(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages of which, where one is a `solve` and nothing decays, each hands on its part of a gradient in fp32.

    These parts sum up all the way, and most of them cancels.
    """
    sites = [choice.site for stage in stages for choice in stage.plans.choices]
    if not stages[0].solved or any(stream.gates for site in sites for stream in site.decomposition.streams):
        return tuple(stages)
    read = [decl.name for stage in stages for decl in stage.given]
    return tuple(
        replace(stage, handed=stage.handed | {decl.name for decl in stage.given if read.count(decl.name) > 1})
        for stage in stages
    )


def _op(op: Op, site: str, result: Expr, known: Sequence[ParamDecl], value: ParamDecl | None) -> Op:
    """The op of a stage. known: all parameters there are. value: what it is read as, where it is not the last.

    The tensors begin whose dtype its value has. Its own value, of which a `solve` is an expression, comes last.
    """
    read = {node.name for node in postorder((result,)) if isinstance(node, Param)}
    params = [decl for decl in known if decl.name in read]
    found = replace(op, name=f"{op.name}_{site}", params=tuple(params), result=result)
    cast = roles(found).cast
    if value is not None:
        params.sort(key=lambda decl: (decl is value, decl.name not in cast))
    return replace(found, params=tuple(params))


def _rebuilt(graph: Graph, root: Expr, known: dict[Expr, Expr]) -> Expr:
    """An expression where contractions are known by other names."""
    done = dict(known)
    for node in postorder((root,)):
        if node in done:
            continue
        match node:
            case Attend(mask=mask, q=q, k=k, v=v):
                options = node.normalize, node.activation, done[node.scale], node.span
                done[node] = graph.attend(done[mask], done[q], done[k], done[v], *options)
            case MaskTimes(mask=mask, x=x):
                done[node] = graph.mask_times(done[mask], done[x], node.span)
            case Solve(mask=mask, a=a, b=b, u=u):
                done[node] = graph.solve(done[mask], done[a], done[b], done[u], node.span)
            case _:
                done[node] = graph.rebuild(node, done)
    return done[root]
