"""What a backward pass is made of, evaluated densely in fp64, against autograd of the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kernel.gradient_specs import ONE_CONTRACTION
from kernel.specs import LIBRARY, SPECS
from torch import Tensor

from sma_compiler.ir.check import check_file
from sma_compiler.ir.nodes import Expr, Kind, Op, ParamDecl
from sma_compiler.kernel.backward import Backward, Link, Piece, backward, is_folded, needs_whole
from sma_compiler.kernel.derive import unplaced
from sma_compiler.kernel.errors import NoTritonKernel
from sma_compiler.kernel.linear import Term, linear
from sma_compiler.kernel.walk import RESULT, Walk
from sma_compiler.mask.nodes import Gate
from sma_compiler.oracle.values import named
from sma_compiler.plan.choose import Plans, plan
from sma_compiler.reference import Argument, Sequence, evaluate
from sma_compiler.source import Source
from sma_compiler.syntax.locate import library_source

SIZES = {"batch": 2, "time": 7, "head": 4, "key": 5, "value": 3}
ROWS = ("batch", "head", "time")


def lowered(name: str, text: str = "") -> tuple[Op, Plans]:
    text = text or ONE_CONTRACTION.get(name, "") or SPECS.get(name, "")
    (op,) = check_file(Source(text, name) if text else library_source(name))
    return op, plan(op)


def arguments(op: Op) -> dict[str, Argument]:
    """Random arguments, two heads of q and k for four, log gates below 0 and a few at -inf."""
    generator = torch.Generator().manual_seed(3)
    found: dict[str, Argument] = {}
    for decl in op.params:
        if decl.number:
            found[decl.name] = 0.7
            continue
        shape = [2 if axis == "head" and "key" in decl.dims else SIZES[axis] for axis in decl.dims]
        value = torch.randn(shape, dtype=torch.float64, generator=generator)
        if decl.name in ("g", "h", "a", "gamma", "s"):
            value = value.abs().neg() if decl.name in "gha" else value.abs().clamp(0.1, 0.9)
        if decl.name == "g" and "log" not in op.text and "exp(g)" not in op.text:
            value[:, 3] = -torch.inf
        found[decl.name] = value
    return found


class Dense:
    """A backward pass as its parts say it, every weight written out."""

    def __init__(self, made: Backward, plans: Plans, given: dict[str, Argument], dy: Tensor) -> None:
        self.made, self.graph, self.given = made, plans.graph, dict(given)
        self.op = replace(made.linear.op, params=(*made.linear.op.params, *made.reads))
        self.given[made.reads[0].name] = dy
        self.tensors: dict[str, Tensor] = {}

    def run(self) -> dict[str, Tensor]:
        """The gradient of every parameter that has one."""
        linear, reads = self.made.linear, self.made.reads
        if linear.normalize != "none":
            for decl in reads[1:]:
                self.given[decl.name] = torch.zeros([SIZES[axis] for axis in decl.dims], dtype=torch.float64)
            value = self.sequence().tensors_of(linear.attend)[linear.attend]
            self.given[reads[1].name] = value.expanded({axis: SIZES[axis] for axis in RESULT}).data
            self.given[reads[2].name] = self.norm()
        for walk in self.made.walks:
            if walk is not self.made.before:
                self.walk(walk)
            else:
                self.outputs(walk, linear.attend, None)
        self.chain()
        found: dict[str, Tensor] = {}
        for piece in self.made.pieces:
            part = self.reduced(piece)
            found[piece.param] = found[piece.param] + part if piece.param in found else part
        return found

    def sequence(self) -> Sequence:
        return Sequence(self.op, self.given)

    def values(self, expr: Expr, axes: tuple[str, ...], bound: dict[Expr, Tensor] | None = None) -> Tensor:
        """An expression with all of these axes."""
        sequence = self.sequence()
        for leaf, value in (bound or {}).items():
            sequence._values[leaf] = named(value, ("batch", "head", "time"))
        expr = unplaced(self.graph, expr)
        value = sequence.tensors_of(expr)[expr].to(Kind.REAL)
        return value.expanded({axis: SIZES[axis] for axis in axes}).aligned(axes)

    def weights(self, term: Term, backward: bool, row: bool = True, col: bool = True) -> Tensor:
        """[B, H, r, c]; without the factors that stay outside the exponents, where asked."""
        place = torch.arange(SIZES["time"])
        low, high = (place[:, None], place) if backward else (place, place[:, None])
        seen = (low < high) if term.strict else (low <= high)
        log = torch.zeros(())
        for gate in term.gates:
            steps = self.values(gate.log, ROWS)[:, :, None, None]
            log = log + torch.where(self.inside(gate, backward), steps, 0).sum(-1)
        found = torch.where(seen, log.exp(), 0.0)
        for factors, wanted, at in ((term.row, row, (..., None)), (term.col, col, (..., None, slice(None)))):
            for factor in factors:
                if wanted or is_folded(term, factor):
                    found = found * self.values(factor, ROWS)[at]
        return found

    def inside(self, gate: Gate, backward: bool) -> Tensor:
        """[r, c, u]: whether the path between r and c holds u."""
        place = torch.arange(SIZES["time"])
        r, c, u = place[:, None, None], place[None, :, None], place[None, None, :]
        low, high = (r, c) if backward else (c, r)
        held = (u > low) & (u < high)
        for end, closed in ((r, gate.query_closed), (c, gate.key_closed)):
            held = held | ((u == end) & (low <= high)) if closed else held
        return held if gate.query_closed and gate.key_closed else held & (low != high)

    def norm(self) -> Tensor:
        linear = self.made.linear
        q, k = (self.values(x, (*ROWS, "key")) for x in (linear.q, linear.k))
        norms = [(self.weights(term, linear.backward) * (q @ k.mT)).sum(-1) for term in linear.terms]
        return torch.stack(norms).sum(0).transpose(1, 2)

    def scores(self, walk: Walk) -> Tensor:
        p, s = (self.values(x, (*ROWS, walk.inner)) for x in (walk.p, walk.s))
        scores = p @ s.mT
        if walk.offset is not None:
            a, b = (self.values(x, ROWS) for x in walk.offset)
            scores = scores + a[..., None] * b[..., None, :]
        return scores if walk.weight is None else scores * self.values(walk.weight, ROWS)[..., None]

    def walk(self, walk: Walk) -> None:
        weights = torch.stack([self.weights(term, walk.backward) for term in walk.terms]).sum(0)
        y = (weights * self.scores(walk)) @ self.values(walk.x, (*ROWS, walk.outer))
        self.outputs(walk, walk.result, y)

    def outputs(self, walk: Walk, result: Expr, y: Tensor | None) -> None:
        for output in walk.outputs:
            if output.name in self.given:
                continue
            sequence = self.sequence()
            if y is not None:
                sequence._values[result] = named(y, (*ROWS, walk.outer))
            value = sequence.tensors_of(output.expr)[output.expr]
            if walk.outer in output.axes:
                self.tensors[output.name] = value.expanded({a: SIZES[a] for a in output.axes}).aligned(output.axes)
            else:
                whole = value.expanded({a: SIZES[a] for a in (*ROWS, walk.outer)}).aligned((*ROWS, walk.outer))
                self.tensors[output.name] = whole.sum(-1)[None]

    def chain(self) -> None:
        """The sums over pairs that the chain rule begins with, and its outputs."""
        if self.made.chain is None:
            return
        bound: dict[Expr, Tensor] = {}
        for link in self.made.chain.links:
            bound.update(self.sums(link))
        for output in self.made.chain.outputs:
            along = tuple("time" if axis == "slot" else axis for axis in output.axes)
            self.tensors[output.name] = self.values(output.expr, along, bound)

    def sums(self, link: Link) -> dict[Expr, Tensor]:
        linear, dq = self.made.linear, self.made.dq
        q, k = (self.values(x, (*ROWS, "key")) for x in (linear.q, linear.k))
        pairs = self.scores(dq) * (q @ k.mT)
        whole = self.weights(link.term, dq.backward) * pairs
        found: dict[Expr, Tensor] = {
            leaf: torch.einsum("bhrc,rcu->bhu", whole, self.inside(gate, dq.backward).double())
            for gate, leaf in link.gates
        }
        found[link.rows] = (self.weights(link.term, dq.backward, row=False) * pairs).sum(-1)
        found[link.cols] = (self.weights(link.term, dq.backward, col=False) * pairs).sum(-2)
        return found

    def reduced(self, piece: Piece) -> Tensor:
        decl = next(decl for decl in self.op.params if decl.name == piece.param)
        x = self.tensors[piece.tensor]
        axes = tuple("time" if axis == "slot" else axis for axis in piece.axes)
        over = [n for n, axis in enumerate(axes) if axis not in decl.dims]
        x = x.sum(over) if over else x
        left = tuple(axis for axis in axes if axis in decl.dims)
        x = x.permute([left.index(axis) for axis in decl.dims])
        if "head" in decl.dims:
            at = decl.dims.index("head")
            argument = self.given[piece.param]
            assert isinstance(argument, Tensor)
            x = x.reshape(*x.shape[:at], argument.shape[at], -1, *x.shape[at + 1 :]).sum(at + 1)
        return x


@pytest.mark.parametrize("name", [*LIBRARY, *SPECS, *ONE_CONTRACTION])
def test_gradients_are_those_of_the_reference(name: str) -> None:
    op, plans = lowered(name)
    made = backward(linear(op, plans, "chunked"), plans.graph)
    given = arguments(op)
    leaves = {key: x.requires_grad_() for key, x in given.items() if isinstance(x, Tensor)}
    y = named(evaluate(op, given), op.result.axes).aligned(RESULT)
    dy = torch.linspace(-1, 1.5, y.numel(), dtype=torch.float64).reshape(y.shape)
    expected = torch.autograd.grad(y, list(leaves.values()), dy)
    fixed = {key: x.detach() if isinstance(x, Tensor) else x for key, x in given.items()}
    found = Dense(made, plans, fixed, dy).run()
    assert set(found) == set(leaves)
    for key, want in zip(leaves, expected, strict=True):
        torch.testing.assert_close(found[key], want, rtol=1e-9, atol=1e-9)


def test_a_walk_that_sums_over_its_outer_axis_needs_all_of_it() -> None:
    op, plans = lowered("centred", "op centred(q, k, v):\n    return attend(causal, q - mean(q, key), k, v)\n")
    made = backward(linear(op, plans, "chunked"), plans.graph)
    assert [needs_whole(walk) for walk in made.walks] == [True, True, False]


def test_a_result_that_is_not_linear_is_refused() -> None:
    op, plans = lowered("squared", "op squared(q, k, v):\n    return silu(attend(causal, q, k, v))\n")
    with pytest.raises(NoTritonKernel, match="not linear"):
        backward(linear(op, plans, "chunked"), plans.graph)


def test_names_of_the_backward_pass_make_way_for_parameters() -> None:
    op, plans = lowered(
        "taken", "op taken(q, k, v, dy: [head], dq: [head]):\n    return attend(causal, q, k, v) * dy * dq\n"
    )
    made = backward(linear(op, plans, "chunked"), plans.graph)
    assert isinstance(made.reads[0], ParamDecl)
    names = [made.reads[0].name, *(piece.tensor for piece in made.pieces)]
    assert len({*names, "dy", "dq"}) == len(names) + 2
