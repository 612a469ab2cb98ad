"""Files of the kernels that invert what a `solve` has inside every chunk, alone: `attend(L, a, b, v)` stands for it."""

from __future__ import annotations

from functools import partial

from sma_compiler.driver import compile_source
from sma_compiler.emit.file import MODULES, assembled, made_kernel
from sma_compiler.emit.gradients import Gradients
from sma_compiler.emit.module import library
from sma_compiler.kernel import config
from sma_compiler.kernel.build import Operand, lift, path
from sma_compiler.kernel.gate_kernel import Gates
from sma_compiler.kernel.host import host, tensors
from sma_compiler.kernel.inverse_kernel import Inverse
from sma_compiler.kernel.launch import Launcher
from sma_compiler.kernel.linear import linear
from sma_compiler.kernel.maker import Maker, pinned
from sma_compiler.kernel.nodes import Parameter
from sma_compiler.kernel.prepare import name_of
from sma_compiler.kernel.score_kernel import ChannelScores
from sma_compiler.kernel.walk import forward_walk
from sma_compiler.runtime.op import CompiledOp
from sma_compiler.source import Source

SPECS = {
    "delta": """
op delta(k, v, beta: [time, head]):
    return attend(strict, beta * k, k, v)
""",
    "gated": """
op gated(k, v, g: [time, head], beta: [time, head]):
    return attend(strict * decay(g), beta * k, k, v)
""",
    "open_ends": """
op open_ends(k, v, a: [time, head, key], g: [time, head], c: [time, head]):
    L = strict * exp(sum(g[t], j < t < i)) * c[i] * sigmoid(c[j])
    return attend(L, l2norm(a), k, v, scale=-1)
""",
    "static": """
op static(k, v, gamma: [head], beta: [time, head]):
    return attend(strict * retention(gamma), beta * k, k, v)
""",
    "per_key": """
op per_key(k, v, g: [time, head, key], beta: [time, head]):
    return attend(strict * decay(g), beta * k, k, v)
""",
    "per_key_open": """
op per_key_open(k, v, a, g: [time, head, key]):
    return attend(strict * exp(sum(g[t], j < t < i)), -a, k, v)
""",
}


def compiled(name: str) -> CompiledOp:
    """One of the specs."""
    return compile_source(Source(SPECS[name].replace(", v, a,", ", v, a: [time, head, key],"), name))


def text(op: CompiledOp, dtype: str, target: str = "sm_90", chunk: int = 0) -> str:
    """A file whose launcher, named after the op, gives N [B, H, T, C], and takes packs."""
    member = linear(op.ir, op.program.plans, "chunked", exact=dtype == "float32")
    names = host(member, frozenset({*MODULES, *library()}))
    walk = forward_walk(member)
    named = tensors(walk, names)
    sizes = {"batch": 8, "time": 4096, "head": 16, "key": 128, "value": 128}
    chosen = config.forward(sizes, dtype, target, normalised=False, varying=True)
    reserved = frozenset({*MODULES, *library()})
    builders: dict[str, Maker] = {}
    if walk.decayed:
        for role in ("scores", "scores_wide"):
            given = walk.terms[0], walk.p, walk.s, ("a", "b"), names, reserved
            builders[role] = ChannelScores(*given, narrow=role == "scores", inverse=True)
    else:
        builders["inverse"] = Inverse(walk, names, named, reserved)
    if names.gates:
        builders["gates"] = Gates(walk.paths, names, reserved)
    made = partial(made_kernel, wide=config.wide_products(dtype, target))
    kernels = {role: made(builder, f"{op.name}_{role}_kernel") for role, builder in builders.items()}
    launch = Launcher(member, walk, names, named)
    b = names.builder
    launch.sizes()
    launch.checks()
    key = names.sizes["key"]
    count = b.let("C", chunk or chosen.chunk)
    launch.sequences()
    launch.slots(count)
    wide = b.let("BK", path("max").call(16, path("triton.next_power_of_2").call(key)))
    constants: dict[str, Operand] = {
        "C": count,
        "BK": wide,
        "K": key,
        "MASKED": True,
        "PINNED": pinned(chosen, launch.first),
        "DOT": b.let("operand", path("coarsest").call(*launch.operands())),
        "PRECISION": "ieee",
    }
    if "gates" in kernels:
        launch.gates(kernels["gates"], constants)
    if "inverse" in kernels:
        launch.inverse(kernels["inverse"], constants)
    else:
        launch.decayed(kernels, walk.terms[0], (walk.p, walk.s), constants, chosen)
    b.give(names.scores)
    parameters = [Parameter(name_of(names.parameters[decl.name])) for decl in op.ir.params]
    parameters.append(Parameter(name_of(names.pack), default=lift(None).node, keyword=True))
    launcher = b.function(op.name, ("N of every chunk.",), parameters, jit=False)
    return assembled((), builders.values(), kernels.values(), [launcher], Gradients()).text
