"""Names and sizes in a launcher: the op's parameters, and B, T, H, K, V as it calls them."""

from __future__ import annotations

import keyword
from dataclasses import dataclass

from sma_compiler.ir.nodes import Apply, Const, Expr, Param, Size
from sma_compiler.kernel.ahead import split
from sma_compiler.kernel.build import Builder, E, binary, lift, path
from sma_compiler.kernel.errors import NoTritonKernel
from sma_compiler.kernel.linear import Linear

SIZES = {"batch": "B", "time": "T", "head": "H", "key": "K", "value": "V"}
"""The letter of each axis."""

_OPERATORS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}


@dataclass(frozen=True)
class Host:
    """A launcher under construction. parameters: by the spec's names. sizes: by axis.

    gates: the arrays of paths that are made ahead, by stream and part.
    groups: how many groups of heads have a q and k of their own; scores: Q K^T of each inside every chunk.
    parts: how many programs share a sequence; span: how many positions each has.
    """

    builder: Builder
    parameters: dict[str, E]
    sizes: dict[str, E]
    result: E
    states: dict[tuple[str, str, int], E]
    gates: dict[tuple[int, str], E]
    parts: E
    span: E
    groups: E
    scores: E

    @property
    def heads(self) -> E:
        """H."""
        return self.sizes["head"]

    def state(self, when: str, part: str, number: int) -> E:
        """The state of a stream, its `matrix` [B, H, K, V] or its `keys` [B, H, K]: `initial`, `final`, or `local`.

        `local` are those of every part, [B, parts, H, ...], with the `decay` [B, parts, H] over each.
        """
        return self.states[when, part, number]

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
            case Apply(fn=fn, args=(a, b)):
                return binary(_OPERATORS[fn], self.number(a), self.number(b))
        raise AssertionError(type(expr).__name__)


def host(linear: Linear, reserved: frozenset[str]) -> Host:
    """The names of a launcher for an op.

    reserved: names of the file that its parameters must not hide.

    Raises:
        NoTritonKernel: the op has the name of something else in the file.
    """
    op = linear.op
    if op.name in reserved or keyword.iskeyword(op.name):
        raise NoTritonKernel(op.name, "chunked", f"`{op.name}` has a meaning of its own in the file: rename the op")
    builder = Builder({*reserved, op.name})
    parameters = {decl.name: path(builder.fresh(decl.name)) for decl in op.params}
    sizes = {axis: path(builder.fresh(letter)) for axis, letter in SIZES.items()}
    states: dict[tuple[str, str, int], E] = {}
    gates: dict[tuple[int, str], E] = {}
    for number in range(len(linear.terms)):
        suffix = str(number) if len(linear.terms) > 1 else ""
        for when, letter in (("initial", "s0"), ("final", "s1"), ("local", "local")):
            states[when, "matrix", number] = path(builder.fresh(f"{letter}{suffix}"))
            if linear.normalize != "none":
                states[when, "keys", number] = path(builder.fresh(f"{letter}{suffix}_keys"))
        if linear.terms[number].gates:
            states["local", "decay", number] = path(builder.fresh(f"decay{suffix}"))
        made = split(linear.terms[number])
        for part in made.arrays if made is not None else ():
            gates[number, part] = path(builder.fresh(f"gate_{part}{suffix}"))
    result, *others = (path(builder.fresh(name)) for name in ("y", "parts", "span", "groups", "scores"))
    return Host(builder, parameters, sizes, result, states, gates, *others)
