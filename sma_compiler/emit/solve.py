"""The kernels and the launcher of a `solve`: a stage of an op that has several contractions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from sma_compiler.kernel import config
from sma_compiler.kernel.choices import Choices
from sma_compiler.kernel.config import Config
from sma_compiler.kernel.gate_kernel import Gates
from sma_compiler.kernel.host import host, tensors
from sma_compiler.kernel.inverse_kernel import Inverse
from sma_compiler.kernel.launch_solve import SolveLauncher
from sma_compiler.kernel.maker import Maker
from sma_compiler.kernel.nodes import Function
from sma_compiler.kernel.prepare import Kernel
from sma_compiler.kernel.score_kernel import ChannelScores
from sma_compiler.kernel.solve import Solve, tiles
from sma_compiler.kernel.solve_kernel import SolveKernel
from sma_compiler.kernel.walk import Walk

ROLES = {"scores": "inverse", "scores_wide": "inverse_wide"} | {x: x for x in ("gates", "inverse", "solve")}
"""What the kernels of a solve are for, and how they are called: gradients have scores of their own."""


def configuration(walk: Walk, sizes: Mapping[str, int], dtype: str, target: str, choices: Choices) -> Config:
    """The configuration of a walk of a solve."""
    keys, values = tiles(walk)
    return choices.apply(walk.name, config.solve(sizes, dtype, target, keys=keys, values=values))


@dataclass(frozen=True)
class Solved:
    """The builders of the kernels, the kernels by role, the launcher, and the configurations by role."""

    builders: tuple[Maker, ...]
    kernels: Mapping[str, Kernel]
    launchers: tuple[Function, ...]
    configs: Mapping[str, Config]


def solve(
    made: Solve,
    sizes: Mapping[str, int],
    dtype: str,
    target: str,
    choices: Choices,
    reserved: frozenset[str],
    kernel: Callable[[Maker, str], Kernel],
) -> Solved:
    """The forward pass of a solve. reserved: names of the file. kernel: makes one from its builder, under a name."""
    op, walk = made.member.op, made.walk
    roles = {role: f"{op.name}_{called}_kernel" for role, called in ROLES.items()}
    held = frozenset({*reserved, *roles.values()})
    names = host(made.member, held)
    named = replace(tensors(walk, names), inverse=names.scores)
    builders: dict[str, Maker] = {}
    if walk.decayed:
        given = walk.terms[0], walk.p, walk.s, walk.names[:2], names, held
        for role in ("scores", "scores_wide"):
            builders[role] = ChannelScores(*given, narrow=role == "scores", inverse=True)
    else:
        builders["inverse"] = Inverse(walk, names, named, held)
    if names.gates:
        builders["gates"] = Gates(walk.paths, names, held)
    builders["solve"] = SolveKernel(walk, names, named, held)
    kernels = {role: kernel(maker, roles[role]) for role, maker in builders.items()}
    chosen = configuration(walk, sizes, dtype, target, choices)
    launcher = SolveLauncher(made, names, named).build(kernels, chosen)
    return Solved(tuple(builders.values()), kernels, (launcher,), {"solve": chosen})
