"""From a planned op to a standalone Triton file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial

from sma_compiler.emit.file import MODULES, Emitted, assembled, header, made_kernel
from sma_compiler.emit.gradients import Gradients, chunked_walks, gradients, scanned
from sma_compiler.emit.module import library
from sma_compiler.emit.quadratic import quadratic
from sma_compiler.emit.solve import configuration, solve
from sma_compiler.emit.stages import staged
from sma_compiler.ir.nodes import Op
from sma_compiler.kernel import config
from sma_compiler.kernel.backward import sums_inner
from sma_compiler.kernel.choices import DEFAULT, Choices
from sma_compiler.kernel.config import Config, Recurrence
from sma_compiler.kernel.errors import NoTritonKernel, UnknownOption
from sma_compiler.kernel.gate_kernel import Gates
from sma_compiler.kernel.host import host, tensors
from sma_compiler.kernel.launch import Launcher
from sma_compiler.kernel.launch_recurrent import RecurrentLauncher, StepLauncher
from sma_compiler.kernel.launch_scan import ScanLauncher
from sma_compiler.kernel.linear import STATE_ROWS, Linear, linear, varies
from sma_compiler.kernel.maker import Maker
from sma_compiler.kernel.prepare import Kernel
from sma_compiler.kernel.recurrent import Recurrent
from sma_compiler.kernel.scan import LocalScan, Scan, is_scan
from sma_compiler.kernel.score_kernel import ChannelScores, Scores
from sma_compiler.kernel.solve import Solve, solve_of
from sma_compiler.kernel.split import LocalStates
from sma_compiler.kernel.stabilised import Stabilised, StabilisedParts
from sma_compiler.kernel.stages import Stage, split
from sma_compiler.kernel.step import Step, without_time
from sma_compiler.kernel.walk import Walk, forward_walk
from sma_compiler.kernel.walk_kernel import WalkKernel
from sma_compiler.plan.choose import Plans, usual

PLANS = ("chunked", "recurrent", "quadratic")
"""The plans that kernels are emitted for."""
DTYPES = ("bfloat16", "float16", "float32")
TARGETS = ("sm_80", "sm_90", "gfx942")
LARGEST_KEY = 256
FINE = 128
"""Channels of a head for which kernels see to what rounding adds to states; with more they would spill tiles."""


DEFAULTS = {"batch": 8, "time": 4096, "head": 16, "key": 128, "value": 128}
"""Sizes that choose the configuration where the caller gives none."""


ROLES = ("scores", "scores_wide", "gates", "local_states", "forward_narrow", "forward")
"""What the kernels of a forward pass of the chunked plan are for."""


def emit(
    op: Op,
    plans: Plans,
    plan: str,
    sizes: Mapping[str, int],
    dtype: str,
    target: str,
    choices: Choices = DEFAULT,
) -> Emitted:
    """A file that computes an op: kernels, and launchers: one named after the op; of the recurrent plan also its step.

    Args:
        op: the checked op.
        plans: what was decided about it.
        plan: "chunked", "recurrent", "quadratic", or "auto" for the one that is faster on whole sequences.
        sizes: by axis; they choose the configuration, the file works at any.
        dtype: of the tensors, one of `DTYPES`; chooses the configuration.
        target: one of `TARGETS`; likewise.
        choices: numbers of configurations in place of those.

    Raises:
        NoTritonKernel: this version emits nothing for the op, the plan or the sizes.
        UnknownOption: a dtype or a target that there is none of.
    """
    for what, given, known in (("dtype", dtype, DTYPES), ("target", target, TARGETS)):
        if given not in known:
            raise UnknownOption(what, given, known)
    if plan not in ("auto", *PLANS):
        raise NoTritonKernel(op.name, plan, f"Triton is emitted for {', '.join(PLANS[:-1])} and {PLANS[-1]}")
    sizes = {**DEFAULTS, **sizes}
    if sizes["key"] > LARGEST_KEY:
        held = "a tile of rows" if plan == "quadratic" else "a state"
        raise NoTritonKernel(op.name, plan, f"key = {sizes['key']}: {held} of {LARGEST_KEY} channels fits on chip")
    stages = split(op, plans)
    if not stages:
        return _of_one(op, plans, plan, sizes, dtype, target, choices)
    plan = usual(plans) if plan == "auto" else plan
    try:
        files = [_of_stage(stage, plan, sizes, dtype, target, choices) for stage in stages]
    except NoTritonKernel as error:
        raise NoTritonKernel(op.name, plan, error.reason) from None
    return staged(op, plans, plan, stages, files)


def _of_stage(stage: Stage, plan: str, sizes: Mapping[str, int], dtype: str, target: str, choices: Choices) -> Emitted:
    """The file of one contraction of several."""
    if stage.right is not None:
        return _solved(stage, plan, sizes, dtype, target, choices)
    legal = any(found.name == plan for found in stage.plans.legal)
    plan = plan if legal else "auto"
    return _of_one(stage.op, stage.plans, plan, sizes, dtype, target, choices, stage)


def _solved(stage: Stage, plan: str, sizes: Mapping[str, int], dtype: str, target: str, choices: Choices) -> Emitted:
    """The file of a `solve`: its walk, that of its adjoint, and the gradients of the sum that it is solved for."""
    if plan != "chunked":
        raise NoTritonKernel(stage.op.name, plan, "`solve` has kernels of the chunked plan alone")
    member = _in_stage(linear(stage.op, stage.plans, plan, exact=dtype == "float32"), stage, sizes)
    reserved = frozenset({*MODULES, *library()})
    made = partial(made_kernel, wide=config.wide_products(dtype, target))
    solved = solve_of(member, stage.plans.graph)
    found = solve(solved, sizes, dtype, target, choices, reserved, made)
    ahead = found.kernels.keys() & {"gates"}
    back, common = _chunked_gradients(member, stage.plans, sizes, dtype, target, choices, ahead, reserved, solved)
    more = ["scan_parts_kernel"] if common.programs else []
    file = assembled((), found.builders, found.kernels.values(), found.launchers, back, more)
    return replace(file, configs={**found.configs, **_backward_configs(back, common)})


def _of_one(
    op: Op,
    plans: Plans,
    plan: str,
    sizes: Mapping[str, int],
    dtype: str,
    target: str,
    choices: Choices,
    stage: Stage | None = None,
) -> Emitted:
    """The file of an op of one contraction. stage: what it is of another."""
    if plan == "recurrent":
        return _recurrent(op, plans, plan, sizes, dtype, target, choices, stage)
    if plan == "quadratic" or (plan == "auto" and usual(plans) == "quadratic"):
        made = quadratic(op, plans, sizes, dtype, target, frozenset({*MODULES, *library()}), made_kernel, choices)
        top = header(op, plans, "quadratic")
        return replace(assembled(top, made.builders, made.kernels, made.launchers, made.back), configs=made.configs)
    try:
        return _chunked(op, plans, plan, sizes, dtype, target, choices, stage)
    except NoTritonKernel:
        if plan != "auto" or not any(found.name == "recurrent" for found in plans.legal):
            raise
    return _recurrent(op, plans, plan, sizes, dtype, target, choices, stage)


def _in_stage(member: Linear, stage: Stage | None, sizes: Mapping[str, int]) -> Linear:
    """A member of the family as the contraction of a stage."""
    if stage is None:
        return member
    return replace(member, handed=stage.handed, careful=stage.solved and max(sizes["key"], sizes["value"]) <= FINE)


def _chunked(
    op: Op,
    plans: Plans,
    plan: str,
    sizes: Mapping[str, int],
    dtype: str,
    target: str,
    choices: Choices,
    stage: Stage | None,
) -> Emitted:
    """The chunked plan: fused, or split for long sequences. plan: as it was asked for."""
    member = _in_stage(linear(op, plans, "chunked", exact=dtype == "float32"), stage, sizes)
    if len(member.channels) > 1 or member.stabilised:
        if not (member.stabilised or is_scan(member)):
            raise NoTritonKernel(op.name, plan, "a sum over value channels is no part of a tile of both channels")
        return _recurrent(op, plans, plan, sizes, dtype, target, choices, stage)
    roles = {role: f"{op.name}_{role}_kernel" for role in ROLES}
    reserved = frozenset({*MODULES, *library(), *roles.values()})
    names = host(member, reserved)
    walk = forward_walk(member)
    moving = any(varies(gate.log) for term in member.terms for gate in term.gates)
    usual = config.forward(sizes, dtype, target, normalised=member.normalize != "none", varying=moving)
    channels = bool(walk.terms[0].axes)
    if channels:
        usual = config.by_channel(
            usual, sizes[walk.inner], sizes[walk.outer], decayed=walk.decayed, more=sums_inner(walk)
        )
    chosen = choices.apply("forward", usual)
    alone = walk.decayed and not chosen.scores
    if channels:
        chosen = replace(chosen, programs=0, scores=False)
    cut = chosen.programs > 0
    named = replace(tensors(walk, names), scores=chosen.scores)
    builders: dict[str, Maker] = {}
    if walk.decayed:
        for role in ("scores_wide",) if alone else ("scores", "scores_wide"):
            given = walk.terms[0], walk.p, walk.s, walk.names[:2], names, reserved
            builders[role] = ChannelScores(*given, narrow=role == "scores", again=alone)
    elif chosen.scores:
        builders["scores"] = Scores(member, names, reserved)
    if names.gates:
        builders["gates"] = Gates(walk.paths, names, reserved)
    if cut:
        builders["local_states"] = LocalStates(walk, names, named, reserved, parts=True)
    if alone:
        builders["forward_narrow"] = WalkKernel(walk, names, replace(named, alone=True), reserved, parts=False)
    builders["forward"] = WalkKernel(walk, names, replace(named, again=alone), reserved, parts=cut)
    made = partial(made_kernel, wide=config.wide_products(dtype, target))
    kernels = {role: made(builder, roles[role]) for role, builder in builders.items()}
    launcher = Launcher(member, walk, names, named).build(kernels, chosen)
    top = header(op, plans, f"chunked, {'split' if cut else 'fused'}")
    ahead = builders.keys() - {"forward", "forward_narrow"}
    back, common = _chunked_gradients(member, plans, sizes, dtype, target, choices, ahead, reserved)
    more = ["scan_parts_kernel"] if cut or common.programs else []
    found = assembled(top, builders.values(), kernels.values(), [launcher], back, more)
    return replace(found, configs={"forward": chosen, **_backward_configs(back, common)})


def _chunked_gradients(
    member: Linear,
    plans: Plans,
    sizes: Mapping[str, int],
    dtype: str,
    target: str,
    choices: Choices,
    ahead: Collection[str],
    reserved: frozenset[str],
    solve: Solve | None = None,
) -> tuple[Gradients, Config]:
    """The backward pass of the chunked plan, and what its walks have in common. ahead, solve: see `gradients`."""
    common = choices.apply("backward", config.backward(sizes, dtype, target))
    channels = bool(member.channels)
    if channels:
        common = replace(common, programs=0)
    each = chunked_walks(member, common, sizes, choices, varying="gates" in ahead)
    walker = partial(WalkKernel, parts=common.programs > 0)
    shared = {} if channels or solve is not None else config.shared(common, sizes, dtype, target)
    together = {role: choices.apply(role, found) for role, found in shared.items()}
    made = partial(made_kernel, wide=config.wide_products(dtype, target))

    def chosen(walk: Walk) -> Config:
        return configuration(walk, sizes, dtype, target, choices) if walk.name == "adjoint" else each(walk)

    return gradients(member, plans, common, chosen, walker, ahead, reserved, made, together, solve), common


def _recurrent(
    op: Op,
    plans: Plans,
    plan: str,
    sizes: Mapping[str, int],
    dtype: str,
    target: str,
    choices: Choices,
    stage: Stage | None,
) -> Emitted:
    """The recurrent plan, and the decoding step of causal ops.

    plan: as it was asked for. Chunked are gates of both axes, whose kernels work on all parts of a sequence at once.
    """
    member = linear(op, plans, "recurrent", exact=True)
    scans = member.stabilised or is_scan(member)
    if scans and dtype != "float32":
        member = linear(op, plans, "recurrent")
    member = _in_stage(member, stage, sizes)
    if member.merged:
        sizes = {**sizes, "head": 1, "value": sizes["head"]}
    if member.stabilised:
        sizes = {**sizes, "key": STATE_ROWS}
    roles = {role: f"{op.name}_{role}_kernel" for role in ("forward", "step", "local_states")}
    step = f"{op.name}_step"
    reserved = frozenset({*MODULES, *library(), *roles.values(), step})
    walk = forward_walk(member)
    names = host(member, reserved)
    named = tensors(walk, names)
    forward: Config | Recurrence
    cut = False
    builders: list[Maker]
    if scans:
        scan = partial(_scan, member, sizes, dtype, target, parts=plan == "chunked")
        forward = choices.apply("recurrent", scan())
        cut = forward.programs > 0
        whole, part = (Stabilised, StabilisedParts) if member.stabilised else (Scan, LocalScan)
        builders = [whole(walk, names, named, reserved, parts=cut)]
        builders += [part(walk, names, named, reserved, parts=True)] if cut else []
        made = {
            role: made_kernel(x, roles[role]) for role, x in zip(("forward", "local_states"), builders, strict=False)
        }
        launchers = [ScanLauncher(member, walk, names, named).build(made, forward)]
    else:
        forward = choices.apply("recurrent", config.RECURRENT)
        builders = [Recurrent(walk, names, named, reserved)]
        made = {"forward": made_kernel(builders[0], roles["forward"])}
        launchers = [RecurrentLauncher(member, walk, names, named).make(made["forward"], forward)]
    kernels = list(made.values())
    if not (member.backward or member.stabilised):
        still = without_time(member)
        of_step = host(still, reserved, name=step)
        held = tensors(walk, of_step)
        builders.append(Step(walk, of_step, held, reserved, spread=member.merged))
        kernels.append(made_kernel(builders[-1], roles["step"]))
        launchers.append(StepLauncher(still, of_step, held, step).make(kernels[-1], choices.apply("step", config.STEP)))
    if scans:
        common = choices.apply("backward", scan(gradients=True))
        again = scan() if member.stabilised else choices.apply("again", config.scan_again(common))
        back = scanned(member, plans, common, again, made, reserved, made_kernel)
    else:
        exact = dtype == "float32"
        common = choices.apply("backward", config.recurrent_backward(sizes, exact=exact))
        wide = partial(_of_sums, wide=config.wide_products(dtype, target))
        back = gradients(member, plans, common, lambda _: common, Recurrent, (), reserved, wide)
    helpers = ["scan_parts_kernel"] if scans and (common.programs or (cut and not member.stabilised)) else []
    helpers += ["scan_sums_kernel"] if member.stabilised and (common.programs or cut) else []
    how = "chunked, positions in parts" if plan != "recurrent" and cut else "recurrent"
    found = assembled(header(op, plans, how), builders, kernels, launchers, back, helpers)
    return replace(found, configs={"recurrent": forward, **_backward_configs(back, common)})


def _scan(
    member: Linear, sizes: Mapping[str, int], dtype: str, target: str, *, parts: bool, gradients: bool = False
) -> Config:
    """The configuration of kernels that pass some positions at a time; see `config.scan`."""
    dims = [decl.dims for decl in member.op.params]
    narrow = any("time" in own and not {"key", "value"} & set(own) for own in dims)
    if member.stabilised:
        return config.columns(sizes, narrow=narrow, parts=parts)
    return config.scan(sizes, dtype, target, narrow=narrow, gradients=gradients, parts=parts)


def _backward_configs(back: Gradients, common: Config) -> dict[str, Config]:
    """Of the walks of gradients, and what they have in common; none where there are no gradients."""
    return {} if back.refused else {"backward": common, **back.configs}


def _of_sums(builder: Maker, name: str, wide: bool) -> Kernel:
    """The same; only that of the walk that sums what late ends of gates have has products in fp64."""
    sums = builder.walk.sums if isinstance(builder, Recurrent) else None
    return made_kernel(builder, name, wide and sums is not None and sums.pairs)
