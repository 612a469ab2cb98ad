"""Names and sizes in a launcher: the op's parameters, and B, T, H, K, V as it calls them."""

from __future__ import annotations

import keyword
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from sma_compiler.ir.nodes import Apply, Const, Expr, Param, ParamDecl, Size
from sma_compiler.kernel.ahead import split
from sma_compiler.kernel.build import Builder, E, binary, lift, path
from sma_compiler.kernel.errors import NoTritonKernel
from sma_compiler.kernel.linear import Linear
from sma_compiler.kernel.walk import Walk, forward_walk

SIZES = {"batch": "B", "time": "T", "head": "H", "key": "K", "value": "V"}
"""The letter of each axis."""

TABLES = {"lag": "LAGS", "level": "LEVELS"}
"""The name of how many entries each axis has that masks look up."""

_OPERATORS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}


@dataclass(frozen=True)
class Host:
    """A launcher under construction. parameters: tensors and numbers by the names that expressions have for them.

    decls: what is declared of each. shared: those of which several heads may share one entry. sizes: by axis.
    wide: those that are fp64 and stay so.
    gates: the arrays of paths that are made ahead, by stream and part.
    pack: where the sequences of a pack begin, or None; sequences: how many there are, else the batch.
    slots: how many chunks a row of the batch has, with those that a pack leaves empty.
    groups: how many groups of heads have a q and k of their own; scores: Q K^T of each inside every chunk.
    decayed: what is made with weighted scores: "late" and "early" ends [B, T, H, N] decayed from the chunk's start and
    to its end, "across" [B, H, slots, N], and how far powers of 2 of the decays reach, "widest" [B, H, slots];
    "reach" [S, H] says the same of a whole sequence.
    """

    builder: Builder
    parameters: dict[str, E]
    decls: dict[str, ParamDecl]
    shared: frozenset[str]
    wide: frozenset[str]
    sizes: dict[str, E]
    gates: dict[tuple[int, str], E]
    pack: E
    sequences: E
    slots: E
    groups: E
    scores: E
    decayed: dict[str, E]

    @property
    def heads(self) -> E:
        """H."""
        return self.sizes["head"]

    def number(self, expr: Expr) -> E:
        """A number known at the launch, as Python computes it."""
        match expr:
            case Const(value=value):
                return lift(value)
            case Size(axis=axis):
                return self.sizes[axis]
            case Param(name=name):
                return self.parameters[name]
            case Apply(fn="neg", args=(x,)):
                return -self.number(x)
            case Apply(fn="sqrt", args=(x,)):
                return self.number(x) ** 0.5
            case Apply(fn="min" | "max" as fn, args=(a, b)):
                return path(fn).call(self.number(a), self.number(b))
            case Apply(fn=fn, args=(a, b)):
                return binary(_OPERATORS[fn], self.number(a), self.number(b))
        raise AssertionError(type(expr).__name__)


@dataclass(frozen=True)
class Tensors:
    """What the pointers of one walk stand for in its launcher; the kernel has no pointer for what is missing here.

    outputs: by `Output.name`. initial, final: states by part and stream; `matrix` is [S, H, K, V], `vector` [S, H, K].
    local: those of every part, [S, parts, H, ...], with the `decay` [S, parts, H] over each. norm: [B, T, H], what rows
    are divided by. others: [B, H, T], the share of each row that all but its largest weight have. sums: by kind and
    stream, see `sums.py`. inverse: [B, H, T, C], what a `solve` has inside every chunk. scores: whether P S^T was made
    ahead. alone: whether the walk decays operands by itself where a gate differs by the inner channels; again: whether
    it writes what such a walk wrote wrongly. parts: how many programs share a sequence; span: how many positions each
    has.
    """

    parts: E
    span: E
    outputs: dict[str, E] = field(default_factory=dict)
    initial: dict[tuple[str, int], E] = field(default_factory=dict)
    final: dict[tuple[str, int], E] = field(default_factory=dict)
    local: dict[tuple[str, int], E] = field(default_factory=dict)
    sums: dict[tuple[str, int], E] = field(default_factory=dict)
    norm: E | None = None
    others: E | None = None
    inverse: E | None = None
    scores: bool = False
    alone: bool = False
    again: bool = False


def states_of(walk: Walk, names: Callable[[str], str], letter: str) -> dict[tuple[str, int], E]:
    """Names in a launcher for the states of a walk, by part and stream."""
    found: dict[tuple[str, int], E] = {}
    for number in range(len(walk.terms)):
        name = f"{letter}{suffix(number, len(walk.terms))}"
        found["matrix", number] = path(names(name))
        if walk.vector:
            found["vector", number] = path(names(f"{name}_keys"))
    return found


def local_states(walk: Walk, names: Callable[[str], str], letter: str = "") -> dict[tuple[str, int], E]:
    """Names in a launcher for the states of the parts of a walk; `letter` tells those of several walks apart."""
    found = states_of(walk, names, f"local{letter}")
    for number, term in enumerate(walk.terms):
        if term.gates:
            found["decay", number] = path(names(f"decay{letter}{suffix(number, len(walk.terms))}"))
    return found


def tensors(walk: Walk, host: Host) -> Tensors:
    """The names of everything that a forward walk reads and writes beside the op's parameters."""
    fresh = host.builder.fresh
    return Tensors(
        parts=path(fresh("parts")),
        span=path(fresh("span")),
        outputs={output.name: path(fresh(output.name)) for output in walk.outputs},
        initial=states_of(walk, fresh, "s0"),
        final=states_of(walk, fresh, "s1"),
        local=local_states(walk, fresh),
        norm=path(fresh("norm")) if walk.normalize != "none" else None,
    )


def host(
    linear: Linear,
    reserved: frozenset[str],
    extra: Iterable[ParamDecl] = (),
    name: str = "",
    wide: frozenset[str] = frozenset(),
) -> Host:
    """The names of a launcher for an op.

    reserved: names of the file that its parameters must not hide.
    extra: tensors that expressions read and that are no parameters of the op, with all their heads.
    name: of the launcher, the op's by default. wide: which of them are fp64.

    Raises:
        NoTritonKernel: the op has the name of something else in the file.
    """
    op = linear.op
    if op.name in reserved or keyword.iskeyword(op.name):
        raise NoTritonKernel(op.name, "chunked", f"`{op.name}` has a meaning of its own in the file: rename the op")
    builder = Builder({*reserved, op.name, name})
    decls = {decl.name: decl for decl in (*op.params, *extra)}
    parameters = {decl: path(builder.fresh(decl)) for decl in decls}
    shared = frozenset(decl.name for decl in op.params if {"key", "value"} & set(decl.dims))
    axes = {axis for decl in op.params for axis in decl.dims}
    letters = {**SIZES, **{axis: name for axis, name in TABLES.items() if axis in axes}}
    sizes = {axis: path(builder.fresh(letter)) for axis, letter in letters.items()}
    gates: dict[tuple[int, str], E] = {}
    for number, term in enumerate(forward_walk(linear).paths):
        made = split(term)
        for part in made.arrays if made is not None else ():
            gates[number, part] = path(builder.fresh(f"gate_{part}{suffix(number, len(linear.terms))}"))
    pack, sequences, slots, groups, scores = (
        path(builder.fresh(x)) for x in ("cu_seqlens", "S", "slots", "groups", "scores")
    )
    decayed = {part: path(builder.fresh(part)) for part in ("late", "early", "across", "widest", "reach")}
    return Host(builder, parameters, decls, shared, wide, sizes, gates, pack, sequences, slots, groups, scores, decayed)


def suffix(number: int, count: int) -> str:
    """What tells the variables of several streams apart."""
    return str(number) if count > 1 else ""
