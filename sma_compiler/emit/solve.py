"""The kernels and the launchers of a `solve`: a stage of an op that has several contractions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from sma_compiler.ir.graph import Graph
from sma_compiler.kernel import config
from sma_compiler.kernel.choices import Choices
from sma_compiler.kernel.config import Config
from sma_compiler.kernel.gate_kernel import Gates
from sma_compiler.kernel.host import host, tensors
from sma_compiler.kernel.inverse_kernel import Inverse
from sma_compiler.kernel.launch_solve import SolveLauncher
from sma_compiler.kernel.linear import Linear
from sma_compiler.kernel.maker import Maker
from sma_compiler.kernel.nodes import Function
from sma_compiler.kernel.prepare import Kernel
from sma_compiler.kernel.score_kernel import ChannelScores
from sma_compiler.kernel.solve import solve_of
from sma_compiler.kernel.solve_kernel import SolveKernel

ROLES = {"scores": "inverse", "scores_wide": "inverse_wide"} | {x: x for x in ("gates", "inverse", "solve", "adjoint")}
"""What the kernels of a solve are for, and how they are called: gradients have scores of their own."""


@dataclass(frozen=True)
class Solved:
    """The builders of the kernels, the kernels by role, the launchers, and the configurations by role."""

    builders: tuple[Maker, ...]
    kernels: Mapping[str, Kernel]
    launchers: tuple[Function, ...]
    configs: Mapping[str, Config]


def solve(
    member: Linear,
    graph: Graph,
    sizes: Mapping[str, int],
    dtype: str,
    target: str,
    choices: Choices,
    reserved: frozenset[str],
    kernel: Callable[[Maker, str], Kernel],
) -> Solved:
    """A solve, as the member of the linear family that its result is the fixed point of; see `solve_of`.

    The launchers are named after the op and, of the adjoint, "<op>_adjoint". reserved: names of the file. kernel: makes
    a kernel from its builder, under a name.

    Raises:
        NoTritonKernel: this version has no kernel for it.
    """
    found = solve_of(member, graph)
    op = member.op
    name = f"{op.name}_adjoint"
    roles = {role: f"{op.name}_{called}_kernel" for role, called in ROLES.items()}
    held = frozenset({*reserved, *roles.values()})
    names = host(found.member, held | {name})
    back = host(found.member, held, [found.cotangent], name=name)
    builders: dict[str, Maker] = {}
    ahead = []
    for each in (names, back):
        made: dict[str, Maker] = {}
        if found.forward.decayed:
            given = found.forward.terms[0], member.q, member.k, found.forward.names[:2], each, held
            for role in ("scores", "scores_wide"):
                made[role] = ChannelScores(*given, narrow=role == "scores", inverse=True)
        else:
            made["inverse"] = Inverse(found.forward, each, tensors(found.forward, each), held)
        if each.gates:
            made["gates"] = Gates(found.forward.paths, each, held)
        ahead.append({role: kernel(maker, roles[role]) for role, maker in made.items()})
        builders |= made
    walks = found.forward, found.adjoint
    usual = config.solve(sizes, dtype, target, decayed=found.forward.decayed)
    configs = {walk.name: choices.apply(walk.name, usual) for walk in walks}
    kernels: dict[str, Kernel] = dict(ahead[0])
    launchers: list[Function] = []
    for walk, each, before, wanted in zip(walks, (names, back), ahead, (op.name, name), strict=True):
        named = tensors(walk, each)
        named = replace(named, final={}) if walk.backward else named
        builders[walk.name] = SolveKernel(walk, each, named, held)
        kernels[walk.name] = kernel(builders[walk.name], roles[walk.name])
        own = {**before, walk.name: kernels[walk.name]}
        launchers.append(SolveLauncher(found, walk, each, named).build(wanted, own, configs[walk.name]))
    return Solved(tuple(builders.values()), kernels, tuple(launchers), configs)
