"""The part of a quadratic file that continues from a cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sma_compiler.kernel.cached import cached
from sma_compiler.kernel.cached_kernel import CachedForward
from sma_compiler.kernel.cached_result import Append, Combine
from sma_compiler.kernel.config import PairConfig
from sma_compiler.kernel.errors import NoTritonKernel
from sma_compiler.kernel.host import host, tensors
from sma_compiler.kernel.launch_cached import CachedLauncher, cache_names
from sma_compiler.kernel.maker import Maker
from sma_compiler.kernel.nodes import Function
from sma_compiler.kernel.pairs import Pairs
from sma_compiler.kernel.prepare import Kernel
from sma_compiler.kernel.walk import forward_walk
from sma_compiler.plan.choose import Plans

ROLES = ("cached", "combine", "append")
"""What the kernels are for."""


@dataclass(frozen=True)
class Continued:
    """Kernels and a launcher; none where no kernel continues from a state of the op."""

    builders: tuple[Maker, ...] = ()
    kernels: tuple[Kernel, ...] = ()
    launchers: tuple[Function, ...] = ()


def continued(
    pairs: Pairs,
    plans: Plans,
    config: PairConfig,
    reserved: frozenset[str],
    kernel: Callable[[Maker, str], Kernel],
) -> Continued:
    """What takes new positions after those of a cache."""
    try:
        member = cached(pairs, plans)
    except NoTritonKernel:
        return Continued()
    op = pairs.op
    name = f"{op.name}_cached"
    names = host(pairs.linear, reserved, name=name)
    walk = forward_walk(pairs.linear)
    held, named = cache_names(member, names), tensors(walk, names)
    given = (member, walk, names, named, held, reserved)
    builders: dict[str, Maker] = {"cached": CachedForward(*given), "combine": Combine(*given), "append": Append(*given)}
    kernels = {role: kernel(builder, f"{op.name}_{role}_kernel") for role, builder in builders.items()}
    launcher = CachedLauncher(member, names, held, named, name).build(kernels, config)
    return Continued(tuple(builders.values()), tuple(kernels.values()), (launcher,))
