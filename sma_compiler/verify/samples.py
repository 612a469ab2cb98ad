"""Random inputs for any op, scaled by what each parameter is used for.

Exponents of a mask must stay below 0, the vectors of a `solve` must have unit length, ids come in runs: what a
parameter needs is found by walking the op's equation, never from its name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from sma_compiler.ir.nodes import (
    Apply,
    At,
    Attend,
    Const,
    Contraction,
    Expr,
    Kind,
    Levels,
    Op,
    Param,
    ParamDecl,
    PathSum,
    Position,
    Reduce,
    Rename,
    Rope,
    Size,
    Solve,
    postorder,
)
from sma_compiler.ir.roles import operands, parameters, roles
from sma_compiler.oracle.values import fold
from sma_compiler.reference import Argument, mask_matrix, mask_support

RATE = (0.01, 0.6)
"""Range of the magnitude of log gates and decay rates, uniform in their logarithm."""
BASE = (0.5, 0.999)
"""Range of the base of a power whose exponent is a distance."""

_POSITIVE = frozenset({"exp", "softplus", "sigmoid", "relu", "abs", "sqrt"})
_PROBE = {"batch": 1, "time": 12, "head": 1, "key": 2, "value": 2, "mode": 1, "lag": 12, "level": 5}


def default_sizes(op: Op, **given: int) -> dict[str, int]:
    """Sizes for every axis that the op's parameters have: those given by axis name, and fitting ones for the others.

    `group` (G) may be given beside the axes: the head size of keys and values.
    """
    sizes = {"batch": 2, "time": 128, "head": 2, "key": 16, "value": 16} | given
    if "mode" not in sizes:
        turns = any(isinstance(node, Rope) for node in postorder((op.result,)))
        sizes["mode"] = max(1, sizes["key"] // 2) if turns else 4
    sizes.setdefault("lag", sizes["time"])
    sizes.setdefault("level", max(1, sizes["time"] - 1).bit_length() + 1)
    return sizes


def samples(
    op: Op,
    sizes: Mapping[str, int],
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    device: torch.device | str = "cpu",
    *,
    drawn: torch.device | str = "cpu",
) -> dict[str, Argument]:
    """Arguments for an op, by name; the same on every device, unless they are drawn elsewhere than on the CPU.

    sizes: by axis name, as from `default_sizes`. drawn: where; large ones are drawn faster where they are wanted. Under
    bf16 and fp16 the tensors that autocast would cast have that dtype and the others, gates among them, fp32.
    """
    draw = _Draw(op, sizes, seed, torch.device(drawn))
    rounded = roles(op).cast or {decl.name for decl in op.params}
    found: dict[str, Argument] = {}
    for decl in op.params:
        argument = draw.argument(decl)
        if isinstance(argument, Tensor):
            if argument.is_floating_point():
                narrow = dtype.itemsize < 4 and decl.name not in rounded
                argument = argument.to(torch.float32 if narrow else dtype)
            argument = argument.to(device)
        found[decl.name] = argument
    return found


def head_counts(op: Op, sizes: Mapping[str, int]) -> dict[str, int]:
    """How many heads each tensor of `samples` has."""
    grouped = Needs(op).grouped if "group" in sizes else frozenset()
    return {
        decl.name: sizes["group"] if decl.name in grouped else sizes["head"]
        for decl in op.params
        if "head" in decl.dims
    }


class Needs:
    """What an op's parameters are used for.

    signs: +1 or -1 for parameters that must keep an exponent negative. bases: +1 for bases of powers of a growing
    exponent, -1 of a falling one. unit: parameters whose `key` rows have length 1, as a `solve` needs.
    fractions: the other factors of a `solve`'s vectors. levels, grouped: weights of levels; keys and values.
    """

    def __init__(self, op: Op) -> None:
        self.op = op
        self.signs: dict[str, int] = {}
        self.bases: dict[str, int] = {}
        self.unit: set[str] = set()
        self.fractions: set[str] = set()
        self.levels: set[str] = set()
        self._places: dict[Expr, int] = {}
        every = list(postorder((op.result,)))
        contractions = [node for node in every if isinstance(node, Contraction)]
        for contraction in contractions:
            self._mask(contraction.mask)
        for contraction in contractions:
            if isinstance(contraction, Solve):
                for vector in (contraction.a, contraction.b):
                    self._vector(vector)
        queries = parameters(node.q for node in contractions if isinstance(node, Attend))
        others = parameters(x for node in contractions for x in operands(node)[isinstance(node, Attend) :])
        self.grouped = others - queries - roles(op).gates - self.fractions

    def _mask(self, mask: Expr) -> None:
        inside = list(postorder((mask,)))
        for node in inside:
            if node.positions and not isinstance(node, At) and _only_positions(node) and "t" not in node.positions:
                self._places[node] = 0
        self._measure(mask)
        for node in inside:
            match node:
                case PathSum(gate=gate):
                    self._want(gate, -1)
                case Apply(fn="exp", args=(exponent,)) if exponent.positions >= {"i", "j"}:
                    self._want(exponent, -1)
                case Apply(fn="pow", args=(base, exponent)) if exponent.positions >= {"i", "j"}:
                    for leaf in _factors(base):
                        self.bases.setdefault(leaf.name, self._sign(exponent) or 1)
                case Levels(weights=weights):
                    self.levels |= {leaf.name for leaf in _factors(weights)}

    def _measure(self, mask: Expr) -> None:
        """The sign that most pairs in the mask's support give to each expression of positions alone."""
        measured = [node for node in self._places if node.kind is not Kind.BOOL]
        if not measured:
            return
        probe = _probe(self.op)
        held = mask_support(self.op, mask, probe).data.reshape(-1, _PROBE["time"], _PROBE["time"]).any(0)
        for node in measured:
            value = mask_matrix(self.op, node, probe).data
            self._places[node] = int(torch.where(held, value, torch.zeros_like(value)).sign().sum().sign())

    def _vector(self, vector: Expr) -> None:
        for leaf in _factors(vector):
            if "key" in leaf.axes:
                self.unit.add(leaf.name)
            elif leaf.name not in self.signs:
                self.fractions.add(leaf.name)

    def _sign(self, expr: Expr) -> int:
        """+1 or -1 where the expression has that sign throughout, given the signs chosen so far; else 0."""
        return fold(expr, lambda node: () if node in self._places else _pointwise(node), self._sign_of)

    def _sign_of(self, expr: Expr, done: Mapping[Expr, int]) -> int:
        if expr in self._places:
            return self._places[expr]
        match expr:
            case Const(value=value):
                return (value > 0) - (value < 0)
            case Size():
                return 1
            case Param(name=name) if expr.kind is not Kind.BOOL:
                return self.signs.get(name, 1 if name in self.bases else 0)
            case Apply(fn="logsigmoid"):
                return -1
            case Apply(fn=fn) if fn in _POSITIVE:
                return 1
            case Apply(fn="neg", args=(x,)):
                return -done[x]
            case Apply(fn="mul" | "div", args=(x, y)):
                return 1 if x is y else done[x] * done[y]
            case Apply(fn="add" | "min" | "max", args=(x, y)) | Apply(fn="where", args=(_, x, y)):
                return done[x] if done[x] == done[y] else 0
            case Reduce(fn="softmax"):
                return 1
            case At(x=x) | Reduce(x=x) | Rename(x=x):
                return done[x]
        return 1 if expr.kind is Kind.BOOL else 0

    def _want(self, root: Expr, sign: int) -> None:
        """Chooses signs of parameters so that the expression has this sign."""
        wanted = [(root, sign)]
        seen: set[Expr] = set()
        while wanted:
            expr, sign = wanted.pop()
            if self._sign(expr):
                continue
            match expr:
                case Param(name=name):
                    self.signs.setdefault(name, sign)
                case Apply(fn="neg", args=(x,)):
                    wanted.append((x, -sign))
                case Apply(fn="mul" | "div", args=(x, y)):
                    first, second = self._sign(x), self._sign(y)
                    if first or second:
                        wanted.append((y, sign * first) if first else (x, sign * second))
                    elif expr not in seen:  # the first factor becomes positive, then the second is looked at
                        seen.add(expr)
                        wanted += [(expr, sign), (x, 1)]
                case Apply(fn="sub", args=(x, y)):
                    wanted += [(y, -sign), (x, sign)]
                case Apply(fn="add" | "min" | "max", args=(x, y)) | Apply(fn="where", args=(_, x, y)):
                    wanted += [(y, sign), (x, sign)]
                case Apply(fn="log" | "log2", args=(x,)):
                    for leaf in _factors(x):
                        self.bases.setdefault(leaf.name, -sign)
                case At(x=x) | Reduce(x=x) | Rename(x=x) | PathSum(gate=x):
                    wanted.append((x, sign))


def _pointwise(expr: Expr) -> tuple[Expr, ...]:
    """The operands whose signs decide that of an expression."""
    match expr:
        case Apply(args=args):
            return args
        case At(x=x) | Reduce(x=x) | Rename(x=x):
            return (x,)
    return ()


def _only_positions(expr: Expr) -> bool:
    return all(
        isinstance(node, Position | Const | Size | Apply) or (isinstance(node, Param) and node.number)
        for node in postorder((expr,))
    )


def _factors(expr: Expr) -> Iterator[Param]:
    """The real parameters that an expression is built from by signs, products, and quotients."""
    match expr:
        case Param(kind=Kind.REAL):
            yield expr
        case Apply(fn="neg" | "mul" | "div", args=args):
            for arg in args:
                yield from _factors(arg)
        case At(x=x) | Rename(x=x):
            yield from _factors(x)


def _probe(op: Op) -> dict[str, Argument]:
    """Small arguments on which the op's masks can be evaluated."""
    found: dict[str, Argument] = {}
    for decl in op.params:
        if decl.number:
            found[decl.name] = 4 if decl.kind is Kind.INT else 0.5
        else:
            shape = [_PROBE[axis] for axis in decl.dims]
            found[decl.name] = torch.ones(shape, dtype=torch.int64 if decl.kind is Kind.INT else torch.float64)
            if decl.kind is Kind.BOOL:
                found[decl.name] = torch.ones(shape, dtype=torch.bool)
    return found


class _Draw:
    """Draws the arguments of one op from one seed; a parameter's values depend on its place and size alone."""

    def __init__(self, op: Op, sizes: Mapping[str, int], seed: int, device: torch.device) -> None:
        self.op = op
        self.sizes = dict(sizes)
        self.needs = Needs(op)
        self.seed = seed
        self.device = device

    def argument(self, decl: ParamDecl) -> Argument:
        place = [other.name for other in self.op.params].index(decl.name)
        generator = torch.Generator(self.device).manual_seed(7919 * self.seed + place)
        if decl.number:
            return self._number(decl, generator)
        dims = [self.sizes[axis] for axis in decl.dims]
        if "group" in self.sizes and decl.name in self.needs.grouped and "head" in decl.dims:
            dims[decl.dims.index("head")] = self.sizes["group"]
        if decl.kind is Kind.BOOL:
            return torch.rand(dims, generator=generator, device=self.device) < 0.7
        if decl.kind is Kind.INT:
            return self._integers(decl, dims, generator)
        return self._reals(decl, dims, generator)

    def _number(self, decl: ParamDecl, generator: torch.Generator) -> int | float:
        if decl.kind is Kind.INT:
            return int(torch.randint(1, max(2, self.sizes["time"] + 1), (), generator=generator, device=self.device))
        return float(self._reals(decl, [1], generator))

    def _integers(self, decl: ParamDecl, dims: list[int], generator: torch.Generator) -> Tensor:
        if "time" not in decl.dims:
            return torch.randint(0, 4, dims, generator=generator, device=self.device)
        along = decl.dims.index("time")
        starts = torch.rand(dims, generator=generator, device=self.device) < 4 / max(4, dims[along])
        runs = starts.cumsum(along) + 1
        # Some runs take up an id that was there before
        returns = torch.rand(dims, generator=generator, device=self.device) < 0.15
        places = torch.arange(dims[along], device=self.device).view([-1, *[1] * (len(dims) - along - 1)])
        last = torch.where(starts, places, 0)
        returning = returns.gather(along, last.cummax(along).values) if dims[along] else returns
        return torch.where(returning, runs // 2, runs)

    def _reals(self, decl: ParamDecl, dims: list[int], generator: torch.Generator) -> Tensor:
        name, needs = decl.name, self.needs
        uniform = torch.rand(dims, generator=generator, device=self.device)
        normal = torch.randn(dims, generator=generator, device=self.device)
        if name in needs.bases:
            base = BASE[0] + (BASE[1] - BASE[0]) * uniform
            return base if needs.bases[name] > 0 else 1 / base
        if name in needs.signs:
            low, high = (math.log(bound) for bound in RATE)
            return needs.signs[name] * (low + (high - low) * uniform).exp()
        if name in needs.unit:
            return torch.nn.functional.normalize(normal, dim=decl.dims.index("key"))
        if name in needs.fractions:
            return 0.05 + 0.9 * uniform
        if name in needs.levels:
            return 0.1 + 0.9 * uniform
        if "lag" in decl.dims:
            along = decl.dims.index("lag")
            length = max(1, dims[along])
            fade = torch.exp(-4 * torch.arange(dims[along], device=self.device) / length) / math.sqrt(length / 4 + 1)
            return normal * fade.view([-1, *[1] * (len(dims) - along - 1)])
        return normal if "time" in decl.dims else 0.5 * normal
