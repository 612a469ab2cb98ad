"""The kernels and the launcher of an op's gradients, for the file that has its forward pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from sma_compiler.kernel import config
from sma_compiler.kernel.backward import backward, gathered, joined, sums_inner
from sma_compiler.kernel.chain import ChainKernel
from sma_compiler.kernel.channel_gradients import ChannelGradients, summed_by_chunk
from sma_compiler.kernel.choices import Choices
from sma_compiler.kernel.config import Config
from sma_compiler.kernel.errors import NoTritonKernel
from sma_compiler.kernel.gate_kernel import Gates
from sma_compiler.kernel.host import Host, Tensors, host
from sma_compiler.kernel.launch_backward import BackwardLauncher, named
from sma_compiler.kernel.launch_channels import ChannelLauncher, named_channels
from sma_compiler.kernel.launch_scan_back import ScanBackwardLauncher, named_scan
from sma_compiler.kernel.launch_shared import SharedLauncher, named_shared
from sma_compiler.kernel.linear import Linear, is_tensor
from sma_compiler.kernel.maker import Maker
from sma_compiler.kernel.nodes import Function
from sma_compiler.kernel.prepare import Kernel
from sma_compiler.kernel.recurrent import Recurrent
from sma_compiler.kernel.scan_back import Again, Back, Locals
from sma_compiler.kernel.scan_gradients import ScanBackward, ScanGradients
from sma_compiler.kernel.score_kernel import ChannelScores, Scores
from sma_compiler.kernel.shared_walk import ChunkRows, ChunkStates, SharedHeads, may_share
from sma_compiler.kernel.solve import Solve, finer
from sma_compiler.kernel.solve_kernel import SolveKernel
from sma_compiler.kernel.split import LocalStates
from sma_compiler.kernel.stabilised import StabilisedAgain, StabilisedBack, StabilisedParts
from sma_compiler.kernel.walk import Walk, forward_walk
from sma_compiler.plan.choose import Plans

WALKS = ("again", "dq", "dk", "dv", "adjoint")
ROLES = (*WALKS, *(f"local_{walk}" for walk in WALKS), "states", "dstates", "dv_narrow", "dqk", "dqk_wide", "chain")
"""What the kernels of a backward pass are for."""


@dataclass(frozen=True)
class Gradients:
    """The builders of the kernels, the kernels, and the launcher; none of them where an op has no gradient here.

    configs: of walks and of kernels beside them, by role.
    """

    builders: tuple[Maker, ...] = ()
    kernels: tuple[Kernel, ...] = ()
    launchers: tuple[Function, ...] = ()
    refused: str = ""
    configs: Mapping[str, Config] = field(default_factory=dict)


Walker = Callable[[Walk, Host, Tensors, frozenset[str]], Maker]
"""The builder of a walk's kernel, by a plan."""


def gradients(
    member: Linear,
    plans: Plans,
    common: Config,
    each: Callable[[Walk], Config],
    walker: Walker,
    ahead: Collection[str],
    reserved: frozenset[str],
    kernel: Callable[[Maker, str], Kernel],
    together: Mapping[str, Config] = MappingProxyType({}),
    solve: Solve | None = None,
) -> Gradients:
    """The backward pass of an op.

    common: the configuration of all walks; each: that of one. walker: builds its kernel. ahead: the forward
    pass's kernels that work ahead, by role. reserved: names of the file. kernel: makes a kernel from its
    builder, under a name. together: the configurations of the kernels that make the gradients of q and k for all heads
    that share them; none where each head makes its own. solve: what the member stands for.
    """
    member = member if solve is None else solve.less
    try:
        made = backward(member, plans.graph)
    except NoTritonKernel as error:
        return Gradients(refused=error.reason)
    made = made if solve is None else solve.gradients(made)
    made = finer(made) if member.careful else made
    op = member.op
    name = f"{op.name}_backward"
    roles = {role: f"{op.name}_{role}_kernel" for role in ROLES}
    held = frozenset({*reserved, *roles.values()})
    outer = host(member, held, made.reads, name=name)
    cut = common.programs > 0
    shares = bool(together) and may_share(made)
    apart = walker is not Recurrent
    by_key = apart and member.terms[0].axes == ("key",)
    if shares:
        made = gathered(made)
    elif apart:
        made = joined(made)
    forward = forward_walk(member)
    if by_key:
        made = summed_by_chunk(made)
        names = named_channels(made, outer)
    else:
        names = named_shared(made, outer, cut) if shares else named(made, outer, cut, apart=apart)
    builders: dict[str, Maker] = {}
    for walk in made.walks:
        if by_key and walk in (made.dq, made.dk):
            continue
        alone = not shares or walk not in (made.dq, made.dk)
        if solve is not None and walk is made.dv:
            builders[walk.name] = SolveKernel(walk, outer, names.walks[walk.name], held)
            continue
        if cut and alone:
            builders[f"local_{walk.name}"] = LocalStates(walk, outer, names.walks[walk.name], held, parts=True)
        builders[walk.name] = (walker if alone else SharedHeads)(walk, outer, names.walks[walk.name], held)
    if shares:
        parts = together["states"].programs > 0
        builders["states"] = ChunkStates(forward, outer, names.walks["states"], held, parts=parts)
        if "dstates" in together:
            builders["dstates"] = ChunkStates(made.dv, outer, names.walks["dstates"], held, parts=cut)
            builders["dv"] = ChunkRows(made.dv, outer, names.walks["dv"], held, parts=False)
    alone = by_key and "scores" not in ahead and solve is None
    if alone:
        held_dv = names.walks["dv"]
        builders["dv_narrow"] = walker(made.dv, outer, replace(held_dv, alone=True), held)
        builders["dv"] = walker(made.dv, outer, replace(held_dv, again=True), held)
    if by_key:
        states = replace(names.walks["states"], alone=alone)
        builders["states"] = ChunkStates(forward, outer, states, held, parts=False)
        for role in ("dqk", "dqk_wide"):
            builders[role] = ChannelGradients(made, outer, names.walks["dqk"], held, narrow=role == "dqk")
    if made.chain is not None:
        tiles, anchors, backwards = names.tiles["key"], names.anchors, member.backward
        builders["chain"] = ChainKernel(
            made.chain, outer, names.chain, held, tiles, anchors, backward=backwards, apart=apart
        )
    kernels = {role: kernel(builder, roles[role]) for role, builder in builders.items()}
    made_ahead: dict[str, Maker] = {}
    if "gates" in ahead:
        made_ahead["gates"] = Gates(forward.paths, outer, reserved)
    if apart and member.terms[0].axes:
        weighed = forward if forward.decayed else made.dq
        for role in ("scores_wide",) if alone else ("scores", "scores_wide"):
            given = member.terms[0], weighed.p, weighed.s, weighed.names[:2], outer, reserved
            made_ahead[role] = ChannelScores(*given, narrow=role == "scores", again=alone)
    elif shares:
        made_ahead["scores"] = Scores(member, outer, reserved)
    if shares and together["states"].programs:
        made_ahead["local_states"] = LocalStates(forward, outer, names.walks["states"], reserved, parts=True)
    builders |= {role: maker for role, maker in made_ahead.items() if role not in ahead}
    kernels |= {role: kernel(maker, f"{op.name}_{role}_kernel") for role, maker in made_ahead.items()}
    configs = {**{walk.name: each(walk) for walk in made.walks}, **together}
    if by_key:
        configs["states"] = each(replace(forward, name="states"))
        if alone:
            configs["states"] = replace(configs["states"], stages=min(3, configs["states"].stages + 1))
    launcher = ChannelLauncher if by_key else SharedLauncher if shares else BackwardLauncher
    built = launcher(made, outer, names).build(name, kernels, common, configs)
    own = tuple(made for role, made in kernels.items() if role in builders)
    return Gradients(tuple(builders.values()), own, (built,), configs=configs)


def scanned(
    member: Linear,
    plans: Plans,
    common: Config,
    forward: Config,
    ahead: Collection[str],
    reserved: frozenset[str],
    kernel: Callable[[Maker, str], Kernel],
) -> Gradients:
    """The backward pass of an op whose gates differ by both axes of channels; arguments as of `gradients`.

    forward: the configuration of a forward walk, by which the states are kept.
    """
    try:
        made = ScanGradients(member, plans.graph).made()
    except NoTritonKernel as error:
        return Gradients(refused=error.reason)
    assert isinstance(made, ScanBackward)
    assert made.leaves is not None
    op = member.op
    name, cut = f"{op.name}_backward", common.programs > 0
    roles = {role: f"{op.name}_{role}_kernel" for role in ("again", "back", "local_both", "local_states")}
    held = frozenset({*reserved, *roles.values()})
    outer = host(member, held, made.reads, name=name)
    names = named_scan(made, outer, cut)
    again, back = made.walks
    every = common.every * common.chunk if common.every > 1 or member.stabilised else 0
    of_again, of_back = names.walks["again"], names.walks["back"]
    builders: dict[str, Maker] = {}
    handed = {("handed", 0): of_back.local["matrix", 0]} if cut else {}
    if member.stabilised:
        if cut:
            builders["local_states"] = StabilisedParts(again, outer, of_again, held, parts=True)
            more = {**of_again.sums, **handed, ("decays", 0): of_back.local["decay", 0]}
            units = {("units", 0): of_again.local["matrix", 0]}
            of_again = replace(of_again, sums={**more, **units})
            of_back = replace(of_back, sums={**of_back.sums, **units})
        builders["again"] = StabilisedAgain(again, outer, of_again, held, cut, every, made.leaves)
        builders["back"] = StabilisedBack(back, outer, of_back, held, cut, every, made.leaves)
    else:
        if cut:
            of_parts = replace(of_again, sums=handed)
            builders["local_both"] = Locals(again, outer, of_parts, held, True, 0, made.leaves)
        builders["again"] = Again(again, outer, of_again, held, cut, every, made.leaves)
        builders["back"] = Back(back, outer, of_back, held, cut, every, made.leaves)
    kernels = {role: kernel(builder, roles[role]) for role, builder in builders.items()}
    keeping = replace(forward, chunk=forward.chunk if every else common.chunk)
    configs = {again.name: keeping, back.name: common}
    built = ScanBackwardLauncher(made, outer, names, every).build(name, kernels, common, configs)
    own = tuple(role for role in builders if role not in ahead)
    return Gradients(
        tuple(builders[role] for role in own), tuple(kernels[role] for role in own), (built,), configs=configs
    )


def chunked_walks(
    member: Linear, common: Config, sizes: Mapping[str, int], choices: Choices, varying: bool
) -> Callable[[Walk], Config]:
    """The configuration of each chunked walk. varying: whether gates vary in time."""

    computed = not (is_tensor(member.q) and is_tensor(member.k))

    def chosen(walk: Walk) -> Config:
        if member.terms[0].axes:
            alone = member.terms[0].axes == ("key",)
            usual = config.by_channel(
                common,
                sizes[walk.inner],
                sizes[walk.outer],
                decayed=walk.decayed,
                more=sums_inner(walk),
                alone=alone,
                computed=computed,
                backward=walk.backward,
            )
            return choices.apply(walk.name, usual)
        usual = config.gradient(
            common,
            sizes[walk.inner],
            counts=walk.sums is not None,
            pairs=walk.sums is not None and walk.sums.pairs,
            varying=varying,
            normalised=member.normalize != "none",
            computed=computed,
        )
        return choices.apply(walk.name, usual)

    return chosen
