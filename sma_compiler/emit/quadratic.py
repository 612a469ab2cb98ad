"""The quadratic plan's file: kernels that go over the tiles of pairs, and launchers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from sma_compiler.emit import cached
from sma_compiler.emit.gradients import Gradients
from sma_compiler.ir.nodes import Op
from sma_compiler.kernel import config
from sma_compiler.kernel.build import lift, path
from sma_compiler.kernel.chain import ChainKernel
from sma_compiler.kernel.choices import PAIRS, Choices
from sma_compiler.kernel.config import PairConfig
from sma_compiler.kernel.errors import NoTritonKernel
from sma_compiler.kernel.gate_kernel import Gates
from sma_compiler.kernel.host import host, tensors
from sma_compiler.kernel.launch_pairs import PairLauncher, pair_names
from sma_compiler.kernel.launch_pairs_backward import PairBackwardLauncher, pair_tensors
from sma_compiler.kernel.maker import Maker
from sma_compiler.kernel.nodes import Function
from sma_compiler.kernel.pair_backward import pair_backward
from sma_compiler.kernel.pair_forward import PairForward
from sma_compiler.kernel.pair_key_gradients import KeyGradient
from sma_compiler.kernel.pair_lags import LagGradient
from sma_compiler.kernel.pair_query_gradients import QueryGradient
from sma_compiler.kernel.pairs import LARGEST, Pairs, pairs
from sma_compiler.kernel.prepare import Kernel
from sma_compiler.kernel.walk import forward_walk
from sma_compiler.plan.choose import Plans

ROLES = ("gates", "forward", "again", "dq", "dkv", "lags", "chain", *cached.ROLES)
"""What the kernels of a file are for."""


@dataclass(frozen=True)
class Quadratic:
    """What a file holds. configs: by role, see `kernel.choices`."""

    builders: tuple[Maker, ...]
    kernels: tuple[Kernel, ...]
    launchers: tuple[Function, ...]
    back: Gradients
    configs: Mapping[str, PairConfig]


def quadratic(
    op: Op,
    plans: Plans,
    sizes: Mapping[str, int],
    dtype: str,
    target: str,
    reserved: frozenset[str],
    kernel: Callable[[Maker, str], Kernel],
    choices: Choices,
) -> Quadratic:
    """The kernels and launchers of an op. reserved: names of the file. kernel: makes one from its builder, by a name.

    Raises:
        NoTritonKernel: there are none for the op, or at these sizes.
    """
    if sizes["value"] > LARGEST:
        reason = f"value = {sizes['value']}: a program holds all channels of a row, at most {LARGEST}"
        raise NoTritonKernel(op.name, "quadratic", reason)
    wide = dtype == "float32"
    member = pairs(op, plans, wide=wide, exact=wide and target.startswith("sm_"))
    roles = {role: f"{op.name}_{role}_kernel" for role in ROLES}
    held = frozenset({*reserved, *roles.values()})
    names = host(member.linear, held)
    walk = forward_walk(member.linear)
    read, named = pair_names(member, names), tensors(walk, names)
    if member.cancels:
        named = replace(named, others=path(names.builder.fresh("others")))
    builders: dict[str, Maker] = {}
    if names.gates:
        builders["gates"] = Gates(walk.paths, names, held)
    builders["forward"] = PairForward(member, walk, names, read, named, held)
    kernels = {role: kernel(builder, roles[role]) for role, builder in builders.items()}
    configs = {"forward": choices.apply("forward", config.pairs(sizes, dtype, target, **member.traits))}
    launcher = PairLauncher(member, names, read, named).build(kernels, _in_chunks(configs)["forward"])

    def configured(sums: bool) -> Mapping[str, PairConfig]:
        tables = bool(member.tables)
        more = {"sums": sums, "tables": tables, "softmax": member.softmax, "near": member.near}
        usual = config.pairs_backward(sizes, dtype, target, **member.traits, **more)
        configs.update({role: choices.apply(role, usual[role]) for role in PAIRS})
        return _in_chunks({**usual, **{role: configs[role] for role in PAIRS}})

    back = _gradients(member, configured, held, kernel)
    configs["cached"] = choices.apply("cached", config.cached(sizes, target))
    more = cached.continued(member, plans, configs["cached"], held, kernel)
    if not more.launchers:
        del configs["cached"]
    made = (*builders.values(), *more.builders), (*kernels.values(), *more.kernels)
    return Quadratic(*made, (launcher, *more.launchers), back, configs)


def _in_chunks(configs: Mapping[str, PairConfig]) -> Mapping[str, PairConfig]:
    """Configurations with chunks that hold every tile which is visited."""
    most = max(config.rows if role == "dkv" else config.columns for role, config in configs.items())
    return {role: replace(config, chunk=max(config.chunk, most)) for role, config in configs.items()}


def _gradients(
    member: Pairs,
    configured: Callable[[bool], Mapping[str, PairConfig]],
    reserved: frozenset[str],
    kernel: Callable[[Maker, str], Kernel],
) -> Gradients:
    """The backward pass of an op. configured: its configurations, by whether pairs are summed for the mask's sake."""
    try:
        back = pair_backward(member)
    except NoTritonKernel as error:
        return Gradients(refused=error.reason)
    op, made = member.op, back.made
    name = f"{op.name}_backward"
    outer = host(member.linear, reserved, back.extra, name=name, wide=frozenset(back.wide))
    read = pair_names(member, outer)
    names, named = pair_tensors(back, outer)
    builders: dict[str, Maker] = {}
    if made.before is not None:
        builders["again"] = PairForward(member, made.before, outer, read, named.walks["again"], reserved)
    builders["dq"] = QueryGradient(member, back, outer, read, names, reserved, "i")
    builders["dkv"] = KeyGradient(member, back, outer, read, names, reserved, "j")
    if back.lags:
        builders["lags"] = LagGradient(member, back, outer, read, names, reserved, back.lags[0].end)
    if made.chain is not None:
        one, options = lift(1), {"backward": False, "apart": False}
        builders["chain"] = ChainKernel(made.chain, outer, named.chain, reserved, one, one, **options)
    kernels = {role: kernel(builder, f"{op.name}_{role}_kernel") for role, builder in builders.items()}
    ahead = {}
    if outer.gates:
        ahead["gates"] = kernel(Gates(forward_walk(member.linear).paths, outer, reserved), f"{op.name}_gates_kernel")
    launcher = PairBackwardLauncher(member, back, outer, read, names, named)
    built = launcher.launcher(name, {**kernels, **ahead}, configured(bool(back.sums)))
    return Gradients(tuple(builders.values()), tuple(kernels.values()), (built,))
