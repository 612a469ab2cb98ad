"""The kernels and the launcher of an op's gradients, for the file that has its forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sma_compiler.kernel import config
from sma_compiler.kernel.backward import backward
from sma_compiler.kernel.chain import ChainKernel
from sma_compiler.kernel.errors import NoTritonKernel
from sma_compiler.kernel.gate_kernel import Gates
from sma_compiler.kernel.host import host
from sma_compiler.kernel.launch_backward import BackwardLauncher, named
from sma_compiler.kernel.linear import Linear
from sma_compiler.kernel.maker import Maker
from sma_compiler.kernel.nodes import Function
from sma_compiler.kernel.prepare import Kernel
from sma_compiler.kernel.walk import forward_walk
from sma_compiler.kernel.walk_kernel import WalkKernel
from sma_compiler.plan.choose import Plans

ROLES = ("again", "dq", "dk", "dv", "chain")
"""What the kernels of a backward pass are for."""


@dataclass(frozen=True)
class Gradients:
    """The builders of the kernels, the kernels, and the launcher; none of them where an op has no gradient here."""

    builders: tuple[Maker, ...] = ()
    kernels: tuple[Kernel, ...] = ()
    launchers: tuple[Function, ...] = ()
    refused: str = ""


def gradients(
    member: Linear,
    plans: Plans,
    sizes: Mapping[str, int],
    dtype: str,
    target: str,
    reserved: frozenset[str],
    kernel: Callable[[Maker, str], Kernel],
) -> Gradients:
    """The backward pass of an op.

    reserved: names of the file; the kernel that makes paths ahead is the forward pass's. kernel: makes a kernel from
    its builder, under a name.
    """
    try:
        made = backward(member, plans.graph)
    except NoTritonKernel as error:
        return Gradients(refused=error.reason)
    op = member.op
    name = f"{op.name}_backward"
    roles = {role: f"{op.name}_{role}_kernel" for role in ROLES}
    held = frozenset({*reserved, *roles.values()})
    outer = host(member, held, made.reads, name=name)
    names = named(made, outer)
    builders: dict[str, Maker] = {}
    for walk in made.walks:
        builders[walk.name] = WalkKernel(walk, outer, names.walks[walk.name], held, parts=False, scores=False)
    if made.chain is not None:
        tiles = names.tiles["key"]
        builders["chain"] = ChainKernel(made.chain, outer, names.chain, held, tiles, member.backward)
    kernels = {role: kernel(builder, roles[role]) for role, builder in builders.items()}
    ahead = {}
    if outer.gates:
        ahead["gates"] = kernel(Gates(forward_walk(member).paths, outer, reserved), f"{op.name}_gates_kernel")
    launcher = BackwardLauncher(made, outer, names)
    built = launcher.build(name, {**kernels, **ahead}, config.backward(sizes, dtype, target))
    return Gradients(tuple(builders.values()), tuple(kernels.values()), (built,))
