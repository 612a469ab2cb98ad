"""The gradients of a member of the family: which walks make them, and what each parameter's gradient is the sum of.

With the result E(Y) = a Y + b, Y = N / divisor and dN the cotangent of N, three walks give the gradients of q, k, v as
contractions. What their expressions read gets its part by the chain rule, as a further output of the same walk;
parameters of gates and factors get theirs in the chain kernel (`chain.py`), from sums that the walks leave behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from sma_compiler.facts.bounds import bounds
from sma_compiler.ir.graph import Graph
from sma_compiler.ir.nodes import Apply, At, Const, Expr, Kind, Param, ParamDecl, Reduce, children, postorder
from sma_compiler.kernel.derive import gradients, unplaced
from sma_compiler.kernel.errors import NoTritonKernel
from sma_compiler.kernel.gates import is_folded
from sma_compiler.kernel.linear import Linear, Term, plain, varies
from sma_compiler.kernel.walk import RESULT, Output, Sums, Walk, forward_walk, result_axes, turned
from sma_compiler.mask.nodes import Gate
from sma_compiler.source import NOWHERE

ROWS = ("tile", "batch", "head", "time")
"""The axes of what a walk sums over its outer axis, the channels of each program apart."""

CHANNELS = ("key", "value")


@dataclass(frozen=True)
class Piece:
    """A part of a parameter's gradient: a tensor of the host with these axes; those the parameter lacks are summed.

    added: whether a later walk adds it to its own part.
    """

    param: str
    tensor: str
    axes: tuple[str, ...]
    added: bool = False


@dataclass(frozen=True)
class Link:
    """The cotangents that one stream brings to the chain rule: leaves that the chain kernel gives tiles.

    gates: of each log gate. rows: sums over columns of the weights without the factors `row`; cols: over rows, without
    the factors `col`. row, col: the factors that are not folded into exponents, as products.
    """

    term: Term
    gates: tuple[tuple[Gate, Param], ...]
    rows: Param
    cols: Param
    row: Expr | None
    col: Expr | None


@dataclass(frozen=True)
class Chain:
    """What the chain kernel computes: `outputs` are gradients as expressions of the leaves of `links`."""

    links: tuple[Link, ...]
    outputs: tuple[Output, ...]


@dataclass(frozen=True)
class Backward:
    """How the gradients of an op are computed.

    reads: the tensors that a backward pass has beside the op's parameters: `dy`, and of normalised rows `y` and `norm`.
    before: a forward walk for what needs Y itself. dq, dk, dv: the three walks. chain: None where no gate or factor
    has parameters. pieces: the gradients, in the order of the op's parameters. gated: the parameters of gates that
    differ by channel, whose gradients walks make. along: of normalised rows, less the sum of their weights times the
    cotangents of these.
    """

    linear: Linear
    reads: tuple[ParamDecl, ...]
    before: Walk | None
    dq: Walk
    dk: Walk
    dv: Walk
    chain: Chain | None
    pieces: tuple[Piece, ...]
    gated: tuple[str, ...] = ()
    along: Expr | None = None

    @property
    def walks(self) -> tuple[Walk, ...]:
        """All walks, in the order they run: first what makes tensors that others read."""
        last = () if self.solved else (self.dv,)
        return tuple(walk for walk in (self.dv if self.solved else self.before, self.dq, self.dk, *last) if walk)

    @property
    def solved(self) -> bool:
        """Whether the walk of dV is the adjoint system of a `solve`."""
        return self.dv.name == "adjoint"

    def pieces_of(self, param: str) -> tuple[Piece, ...]:
        """The parts of one parameter's gradient that nothing has added yet."""
        return tuple(piece for piece in self.pieces if piece.param == param and not piece.added)


def gathered(made: Backward) -> Backward:
    """The same where the kernel of dK has all values of a head, and makes what dV's sums beside its contraction.

    It sums over the positions of a chunk, too, where the parameter does not vary in time: [B, slots, H].
    """
    moved = [x for x in made.dv.outputs if made.dv.outer not in x.axes and made.dv.result not in _inside((x.expr,))]
    names = {output.name for output in moved}
    kept = tuple(output for output in made.dv.outputs if output.name not in names)
    static = {decl.name for decl in made.linear.op.params if "time" not in decl.dims}
    axes = {p.tensor: ("batch", "slot", "head") if p.param in static else p.axes[1:] for p in made.pieces}
    pieces = tuple(replace(p, axes=axes[p.tensor]) if p.tensor in names else p for p in made.pieces)
    dk = replace(made.dk, outputs=(*made.dk.outputs, *(replace(x, axes=axes[x.name]) for x in moved)))
    return replace(made, dv=replace(made.dv, outputs=kept), dk=dk, pieces=pieces)


def joined(made: Backward) -> Backward:
    """The same where the walk of dK adds what that of dQ has for the same parameters, as both read them."""
    earlier = {p.param: p for p in made.pieces if any(p.tensor == x.name for x in made.dq.outputs)}
    later = {p.tensor: p for p in made.pieces if p.axes == ("batch", "time", "head", made.dk.outer)}
    found = {x.name: earlier.get(later[x.name].param) for x in made.dk.outputs if x.name in later}
    pairs = {name: p.tensor for name, p in found.items() if p is not None and p.axes == later[name].axes}
    outputs = tuple(replace(x, plus=pairs.get(x.name, "")) for x in made.dk.outputs)
    pieces = tuple(replace(p, added=p.tensor in pairs.values()) for p in made.pieces)
    return replace(made, dk=replace(made.dk, outputs=outputs), pieces=pieces)


def backward(linear: Linear, graph: Graph) -> Backward:
    """The gradients of an op.

    Raises:
        NoTritonKernel: this version has no kernel for them.
    """
    return Gradients(linear, graph).made()


def sums_inner(walk: Walk) -> bool:
    """Whether an output sums over the inner axis beside the contraction."""
    nodes = _inside(output.expr for output in walk.outputs)
    return any(isinstance(node, Reduce) and node.axis == walk.inner for node in nodes)


def needs_whole(walk: Walk) -> bool:
    """Whether a program must hold the whole outer axis, because an expression sums over it."""
    factors = (factor for term in walk.terms for factor in (*term.row, *term.col))
    exprs = (walk.x, *factors, *(output.expr for output in walk.outputs))
    return any(isinstance(node, Reduce) and node.axis == walk.outer for node in _inside(exprs))


class Gradients:
    """Builds a `Backward`."""

    def __init__(self, linear: Linear, graph: Graph) -> None:
        self.linear = linear
        self.graph = graph
        self.op = linear.op
        self.taken = {decl.name for decl in self.op.params}
        self.leaves = tuple(
            graph.param(decl.name, decl.kind, decl.dims, False)
            for decl in self.op.params
            if decl.kind is Kind.REAL and not decl.number
        )
        self.parts: dict[tuple[str, str], list[tuple[Param, Expr]]] = {}
        self.pieces: list[Piece] = []
        self.cotangents: set[Expr] = set()
        self.gated: tuple[str, ...] = ()
        self.along: Expr | None = None

    def made(self) -> Backward:
        """All of it."""
        linear, graph = self.linear, self.graph
        dy = self._leaf("dy", result_axes(linear))
        self.cotangents.add(dy)
        found = gradients(graph, [(self.op.result, dy)], [linear.attend, *self.leaves])
        if linear.attend not in found:
            raise self._refused("the result does not depend on its contraction")
        cotangent = found.pop(linear.attend)
        if self._reads_result(cotangent):
            raise self._refused("the result is not linear in its contraction, so its gradient has no kernel")
        reads = [dy]
        offset = inverse = None
        if linear.normalize != "none":
            kept = "lse" if linear.normalize == "softmax" else "norm"
            for name in self.taken & {"y", kept}:  # what is kept of the forward pass is passed by these names
                raise self._refused(f"a parameter is named `{name}`, as what gradients read of the rows is")
            y, norm = self._leaf("y", RESULT), self._leaf(kept, ("batch", "time", "head"))
            reads += [y, norm]
            offset, inverse = self._normalised(cotangent, y, norm)
        walks = self._walks(cotangent, offset, inverse)
        for param in self._in(found):
            self._direct(param, found[param])
        for name, operand in (("dq", linear.q), ("dk", linear.k), ("dv", linear.v)):
            made = gradients(graph, [(operand, walks[name].result)], self.leaves)
            for param in self._in(made):
                self._part(name, walks[name].outer, param, made[param])
        return self._assembled(walks, reads, cotangent, self._channel_gate())

    def _assembled(self, walks: dict[str, Walk], reads: list[Param], cotangent: Expr, gate: Expr | None) -> Backward:
        """The walks with what they write. cotangent: of the contraction; gate: see `_channel_gate`."""
        linear = self.linear
        before = self._before()
        dq, dk, dv = (replace(walk, outputs=self._outputs(name, walk.outer)) for name, walk in walks.items())
        chain = self._chain()
        if chain is not None:
            dq = replace(dq, sums=Sums(linear.q, "q", pairs=True))
            dk = replace(dk, sums=Sums(linear.k, "k", pairs=False))
        if gate is not None and "key" in linear.channels:
            dq = replace(dq, sums=Sums(linear.q, "q", pairs=True))
            dk = replace(dk, sums=Sums(linear.k, "k", pairs=False, gate=gate))
        elif gate is not None and before is not None:
            before = replace(before, sums=Sums(cotangent, walks["dv"].names[2], pairs=True))
            dv = replace(dv, sums=Sums(linear.v, walks["dq"].names[1], pairs=False, gate=gate))
        return Backward(linear, declared(reads), before, dq, dk, dv, chain, self._in_order(), self.gated, self.along)

    def _in_order(self) -> tuple[Piece, ...]:
        """The pieces, in the order of the parameters."""
        order = [leaf.name for leaf in self.leaves]
        return tuple(sorted(self.pieces, key=lambda piece: order.index(piece.param)))

    def _refused(self, reason: str) -> NoTritonKernel:
        return NoTritonKernel(self.op.name, "chunked", reason)

    def _leaf(self, name: str, axes: tuple[str, ...]) -> Param:
        """A tensor of the backward pass, under a name that no parameter has."""
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return self.graph.param(name, Kind.REAL, axes, False)

    def _in(self, found: Mapping[Expr, Expr]) -> list[Param]:
        """The parameters that have a gradient there."""
        return [param for param in self.leaves if param in found]

    def _reads_result(self, expr: Expr) -> bool:
        return any(node is self.linear.attend for node in postorder((expr,)))

    def _normalised(self, cotangent: Expr, y: Expr, norm: Expr) -> tuple[Expr, Expr | None]:
        """Of Y = numerator / divisor, the divisor's cotangent times the divisor, and one over the divisor.

        Weights under a softmax have the divisor in their exponents: None.
        """
        graph, one = self.graph, self.graph.const(1.0)
        along: Expr = graph.apply("neg", graph.reduce("sum", graph.apply("mul", cotangent, y), "value"))
        self.along = along
        if self.linear.normalize == "softmax":
            return along, None
        if self.linear.normalize == "sum":
            live = graph.apply("ne", norm, graph.const(0.0))
            return along, graph.apply("mul", live, graph.apply("div", one, norm))
        size = graph.apply("abs", norm)
        (sign,) = gradients(graph, [(size, one)], [norm]).values()
        slope = graph.apply("mul", graph.apply("gt", size, one), sign)
        return graph.apply("mul", along, slope), graph.apply("div", one, graph.apply("max", size, one))

    def _walks(self, cotangent: Expr, offset: Expr | None, inverse: Expr | None) -> dict[str, Walk]:
        """The walks without their outputs. inverse: one over what rows are divided by."""
        linear, graph, one = self.linear, self.graph, self.graph.const(1.0)
        q, k, v = linear.q, linear.k, linear.v

        known: dict[Expr, str] = {q: "q", k: "k", v: "v", cotangent: "dn"}

        def named(*operands: Expr) -> tuple[str, str, str]:
            p, s, x = (x.name if isinstance(x, Param) else known[x] for x in operands)
            return p, s, x

        def result(x: Expr) -> Expr:
            found: Expr = graph.mask_times(linear.attend.mask, x)
            if linear.channels:
                found = self._leaf("sums", ("batch", "time", "head", *(axis for axis in x.axes if axis in CHANNELS)))
            self.cotangents.add(found)
            return found

        ahead = Walk(
            name="dq",
            p=cotangent,
            s=v,
            x=k,
            names=named(cotangent, v, k),
            inner="value",
            outer="key",
            terms=linear.terms,
            backward=linear.backward,
            offset=None if offset is None else (offset, one),
            weight=inverse,
            result=result(k),
            outputs=(),
            lone="rows" if linear.normalize == "sum" and not linear.channels else "",
        )
        if offset is not None and inverse is not None:
            cotangent, offset = graph.apply("mul", cotangent, inverse), graph.apply("mul", offset, inverse)
            known[cotangent] = "dn"
        ranged = inverse is not None and not any(term.exact for term in linear.terms)
        terms = tuple(turned(term) for term in linear.terms)
        back = replace(ahead, terms=terms, backward=not linear.backward, weight=None, lone="")
        dk = replace(
            back,
            lone="columns" if ahead.lone else "",
            name="dk",
            p=v,
            s=cotangent,
            x=q,
            names=named(v, cotangent, q),
            quotient="s" if ranged else "",
            offset=None if offset is None else (one, offset),
            result=result(q),
        )
        dv = replace(
            back,
            name="dv",
            p=k,
            s=q,
            x=cotangent,
            names=named(k, q, cotangent),
            quotient="x" if ranged else "",
            inner="key",
            outer="value",
            offset=None,
            result=result(cotangent),
            keyed=linear.careful,
        )
        return {"dq": ahead, "dk": dk, "dv": dv}

    def _direct(self, param: Param, expr: Expr) -> None:
        """The part of a gradient that does not pass through the contraction's operands."""
        if self._reads_result(expr):
            self._part("before", "value", param, expr)
        elif "key" in param.axes:
            self._part("dk" if param is plain(self.linear.k) else "dq", "key", param, expr)
        else:
            self._part("dv", "value", param, expr)

    def _part(self, walk: str, outer: str, param: Param, expr: Expr) -> None:
        if any(axis in CHANNELS and axis != outer for axis in param.axes) or _has_both(expr):
            raise self._refused(f"the gradient of `{param.name}` mixes channels of keys and values")
        if outer not in param.axes:
            expr = self._unsummed(expr, outer)
        self.parts.setdefault((walk, param.name), []).append((param, expr))

    def _unsummed(self, expr: Expr, axis: str) -> Expr:
        """A gradient before it was summed over an axis: what it is linear in lies under one such sum."""
        match expr:
            case Reduce(fn="sum", x=x) if expr.axis == axis:
                return x
            case Apply(fn=fn, args=args):
                linear_in = [arg for arg in args if self._is_linear(arg)]
                new = {arg: self._unsummed(arg, axis) for arg in linear_in}
                return self.graph.apply(fn, *(new.get(arg, arg) for arg in args), span=expr.span)
        raise self._refused("a gradient has no tile form")

    def _is_linear(self, expr: Expr) -> bool:
        """Whether an expression holds a cotangent and so is no mere coefficient."""
        return not self.cotangents.isdisjoint(_inside((expr,)))

    def _outputs(self, walk: str, outer: str) -> tuple[Output, ...]:
        """What a walk writes for the parameters: its parts, those of each parameter added."""
        found: list[Output] = []
        for (name, _), parts in self.parts.items():
            if name != walk:
                continue
            param = parts[0][0]
            expr = parts[0][1]
            for _, more in parts[1:]:
                expr = self.graph.apply("add", expr, more)
            axes: tuple[str, ...] = ("batch", "time", "head", outer) if outer in param.axes else ROWS[1:]
            found.append(Output(self._piece(param, walk, ROWS if outer not in param.axes else axes), expr, axes))
        return tuple(found)

    def _piece(self, param: Param, source: str, axes: tuple[str, ...]) -> str:
        """Name a part of a gradient."""
        name = f"d{param.name}"
        if any(piece.tensor == name for piece in self.pieces):
            name = f"{name}_{source}"
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        self.pieces.append(Piece(param.name, name, axes))
        return name

    def _channel_gate(self) -> Expr | None:
        """The leaf that stands for the gradient of a gate that differs by channel, where something depends on it."""
        if not self.linear.channels:
            return None
        term = self.linear.terms[0]
        if len(term.axes) > 1:
            raise self._refused("gates with both a key and a value axis have no gradient here")
        axes = ("batch", "time", "head", *term.axes)
        leaf = self._leaf("dgate", axes)
        self.cotangents.add(leaf)
        logs = [unplaced(self.graph, gate.log) for gate in term.gates]
        found = gradients(self.graph, [(log, leaf) for log in logs], self.leaves, logs)
        walk, outer = ("dk", "key") if "key" in term.axes else ("dv", "value")
        for param in self._in(found):
            self._part(walk, outer, param, found[param])
        self.gated = tuple(param.name for param in self._in(found))
        return leaf if found else None

    def _before(self) -> Walk | None:
        """The forward walk once more, where a gradient needs what the contraction gave."""
        outputs = self._outputs("before", "value")
        if self.linear.normalize != "none" and self.op.result is not self.linear.attend:
            outputs = (Output("y", self.linear.attend, RESULT, optional=False), *outputs)
        late = self.gated and "key" not in self.linear.channels
        return replace(forward_walk(self.linear), name="again", outputs=outputs) if outputs or late else None

    def _chain(self) -> Chain | None:
        if self.linear.channels:
            return None
        several = len(self.linear.terms) > 1
        links = tuple(self._link(term, str(n) if several else "") for n, term in enumerate(self.linear.terms))
        cotangents = [pair for link in links for pair in self._cotangents(link)]
        cut = [unplaced(self.graph, gate.log) for link in links for gate, _ in link.gates]
        found = gradients(self.graph, cotangents, self.leaves, cut)
        outputs: list[Output] = []
        for param in self._in(found):
            along = "time" if varies(param) else "slot"
            axes = ("batch", along, "head", *(axis for axis in param.axes if axis in CHANNELS))
            outputs.append(Output(self._piece(param, "chain", axes), found[param], axes))
        return Chain(links, tuple(outputs)) if outputs else None

    def _link(self, term: Term, suffix: str) -> Link:
        axes = ("batch", "time", "head")
        steps = [f"dgate{suffix}" if n == 0 else f"dgate{suffix}_{n}" for n in range(len(term.gates))]
        gates = tuple((gate, self._leaf(name, axes)) for gate, name in zip(term.gates, steps, strict=True))
        rows, cols = self._leaf(f"rows{suffix}", axes), self._leaf(f"cols{suffix}", axes)
        return Link(term, gates, rows, cols, self._other(term, term.row), self._other(term, term.col))

    def _cotangents(self, link: Link) -> list[tuple[Expr, Expr]]:
        """The gates and factors of a stream with their cotangents."""
        graph, term = self.graph, link.term
        found: list[tuple[Expr, Expr]] = [(unplaced(graph, gate.log), leaf) for gate, leaf in link.gates]
        for factors, outside, sums in ((term.row, link.row, link.rows), (term.col, link.col, link.cols)):
            whole: Expr = sums
            if outside is not None:
                found.append((outside, sums))
                whole = graph.apply("mul", outside, sums)
            for factor in factors:
                if is_folded(term, factor):
                    found += _through_log(graph, unplaced(graph, factor), whole)
        return found

    def _other(self, term: Term, factors: Iterable[Expr]) -> Expr | None:
        """The product of the factors that stay outside the exponents."""
        found: Expr | None = None
        for factor in factors:
            if not is_folded(term, factor):
                new = unplaced(self.graph, factor)
                found = new if found is None else self.graph.apply("mul", found, new)
        return found


def declared(leaves: Iterable[Param]) -> tuple[ParamDecl, ...]:
    """Leaves as the launcher takes them."""
    return tuple(ParamDecl(x.name, x.kind, False, x.axes, NOWHERE) for x in leaves)


def _has_both(expr: Expr) -> bool:
    """Whether an expression has entries for pairs of channels, of which kernels hold no tile."""
    return any(set(CHANNELS) <= set(node.axes) for node in _inside((expr,)))


def _through_log(graph: Graph, x: Expr, cotangent: Expr) -> list[tuple[Expr, Expr]]:
    """What the logarithm of a positive x hands to the operands of x; a cotangent of 0 stays 0 where x is 0."""
    match x:
        case Const():
            return []
        case Apply(fn="mul", args=(a, b)) if Kind.BOOL not in (a.kind, b.kind):
            return _through_log(graph, a, cotangent) + _through_log(graph, b, cotangent)
        case Apply(fn="div", args=(a, b)):
            return _through_log(graph, a, cotangent) + _through_log(graph, b, graph.apply("neg", cotangent))
        case Apply(fn="sqrt", args=(a,)):
            return _through_log(graph, a, graph.apply("mul", cotangent, graph.const(0.5)))
        case Apply(fn="exp", args=(a,)):
            return [(a, cotangent)]
        case Apply(fn="sigmoid", args=(a,)):
            return [(a, graph.apply("mul", cotangent, graph.apply("sigmoid", graph.apply("neg", a))))]
    over = graph.apply("div", cotangent, x)
    if bounds(x)[0] <= 0:
        zero = graph.const(0.0)
        over = graph.apply("where", graph.apply("eq", cotangent, zero), zero, over)
    return [(x, over)]


def _inside(exprs: Iterable[Expr]) -> set[Expr]:
    """Every node of some expressions, without what lies inside contractions."""
    seen: set[Expr] = set()
    stack = list(exprs)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            if isinstance(node, Apply | Reduce | At):
                stack.extend(children(node))
    return seen
