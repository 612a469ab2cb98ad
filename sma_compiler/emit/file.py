"""An emitted file before it is printed: put together from kernels and launchers, and checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from sma_compiler.emit.gradients import Gradients
from sma_compiler.emit.module import library, module, with_uses
from sma_compiler.emit.tiles import show_function
from sma_compiler.ir.canonical import spec_hash
from sma_compiler.ir.nodes import Op
from sma_compiler.kernel.check import mentioned, prune, verify
from sma_compiler.kernel.config import AnyConfig
from sma_compiler.kernel.maker import Maker
from sma_compiler.kernel.nodes import Function
from sma_compiler.kernel.prepare import Kernel
from sma_compiler.kernel.wide import widened
from sma_compiler.plan.choose import Plans

MODULES = frozenset({"torch", "triton", "tl"})
REFUSED = "no gradient: "
"""How the line of a header begins that says why there are no gradients."""


@dataclass(frozen=True)
class Emitted:
    """A file before it is printed: the lines of its header, its leaf helpers, its kernels and its launcher.

    configs: by role, see `kernel.choices`.
    """

    header: tuple[str, ...]
    helpers: tuple[str, ...]
    functions: tuple[Function, ...]
    configs: Mapping[str, AnyConfig] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The file."""
        return module(self.header, self.helpers, self.functions)

    @property
    def tiles(self) -> str:
        """Its kernel IR."""
        return "\n\n".join(show_function(made) for made in self.functions) + "\n"


def assembled(
    top: tuple[str, ...],
    builders: Iterable[Maker],
    kernels: Iterable[Kernel],
    launchers: Iterable[Function],
    back: Gradients,
    helpers: Iterable[str] = (),
) -> Emitted:
    """The file of some kernels and launchers and of a backward pass, checked."""
    functions = [replace(k.function, parameters=k.arguments.parameters) for k in (*kernels, *back.kernels)]
    functions += [*launchers, *back.launchers]
    refused = (f"{REFUSED}{back.refused}",) if back.refused else ()
    helpers = {*helpers, *_helpers((*builders, *back.builders))}
    return checked((*top, *refused), helpers, functions)


def checked(top: tuple[str, ...], helpers: Iterable[str], functions: Iterable[Function]) -> Emitted:
    """The file of some functions. helpers: what they need beside what they mention."""
    functions = tuple(functions)
    used: frozenset[str] = frozenset().union(*(mentioned(made.body) for made in functions))
    needed = with_uses((*(name for name in library() if name in used), *helpers))
    for made in functions:
        verify(made, (*needed, *(each.name for each in functions)))
    return Emitted(top, needed, functions)


def made_kernel(builder: Maker, name: str, wide: bool = False) -> Kernel:
    """A kernel without what it does not use. wide: whether its products are in fp64."""
    function = prune(builder.build(name))
    function = widened(function) if wide else function
    uses = mentioned(function.body)
    builder.arguments.restrict(uses)
    return Kernel(function, builder.arguments, uses)


def _helpers(builders: Iterable[Maker]) -> set[str]:
    """The leaf helpers that some kernels call."""
    return set().union(*(builder.b.helpers for builder in builders))


def header(op: Op, plans: Plans, plan: str) -> tuple[str, ...]:
    """Comment lines that say what a file computes and why it may."""
    spec = op.text.splitlines()
    lines = [f"{op.name}, emitted by sma_compiler.", "", *spec, ""]
    for mask in plans.facts.masks:
        lines.append(f"{mask.contraction}: gate {mask.gate}, state of {mask.state_size} elements a head")
    return (*lines, f"plan: {plan}", f"spec: sha256 {spec_hash(op)}")
