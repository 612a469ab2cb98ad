"""A file with the walks of an op's gradients and a function that runs them on given tensors, for tests."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sma_compiler.emit.file import MODULES
from sma_compiler.emit.module import library, module, with_uses
from sma_compiler.kernel.backward import Backward, backward
from sma_compiler.kernel.build import E, Operand, lift, path, sequence
from sma_compiler.kernel.check import mentioned, prune, verify
from sma_compiler.kernel.config import Config
from sma_compiler.kernel.gate_kernel import Gates
from sma_compiler.kernel.host import Host, Tensors, host, local_states, states_of
from sma_compiler.kernel.linear import linear
from sma_compiler.kernel.maker import Maker, pinned
from sma_compiler.kernel.nodes import Function, Parameter
from sma_compiler.kernel.prepare import Kernel, Launch, either, name_of
from sma_compiler.kernel.split import LocalStates
from sma_compiler.kernel.walk import Walk, forward_walk
from sma_compiler.kernel.walk_kernel import WalkKernel
from sma_compiler.runtime.op import CompiledOp

KINDS = {
    True: ("net", "inter", "rows", "columns", "states", "vectors"),
    False: ("through", "states", "vectors", "anchors"),
}
"""The sums of a walk that counts pairs, and of one that does not."""


@dataclass(frozen=True)
class Built:
    """A file, and for every walk the tensors of its function: by what they hold, their names there."""

    text: str
    backward: Backward
    names: dict[str, dict[tuple[str, int], str]]


class WalksLauncher(Launch):
    """Builds a function that runs walks on tensors which its caller has made."""

    def write(
        self, made: Backward, named: dict[str, Tensors], kernels: dict[str, Kernel], config: Config, parameters: list[E]
    ) -> Function:
        """The function; it takes every tensor by name."""
        b, host = self.b, self.host
        self.sizes()
        self.sequences()
        chunk = b.let("C", config.chunk)
        self.slots(chunk)
        heads, sizes = host.heads, {axis: host.sizes[axis] for axis in ("key", "value")}
        constants: dict[str, Operand] = {
            "C": chunk,
            "K": sizes["key"],
            "V": sizes["value"],
            "DOT": path("coarsest").call(*self.operands()),
            "PINNED": pinned(config, self.first),
            "PRECISION": "ieee",
            "STAGES": config.stages,
        }
        if "gates" in kernels:
            self.gates(kernels["gates"], {**constants, "MASKED": True})
        for walk in made.walks:
            wide: dict[str, Operand] = {
                "B" + axis[0].upper(): path("max").call(16, path("triton.next_power_of_2").call(size))
                for axis, size in sizes.items()
            }
            outer = "B" + walk.outer[0].upper()
            wide[outer] = config.outer
            ragged = [(sizes[axis] % lift(wide["B" + axis[0].upper()])).ne(0) for axis in sizes]
            masked = either(host.pack.given(), (host.sizes["time"] % chunk).ne(0), *ragged)
            given = {**constants, **wide, "MASKED": masked}
            tiles = path("triton.cdiv").call(sizes[walk.outer], lift(config.outer))
            rows = host.sequences
            if config.programs:
                rows = self.parts(kernels[f"local_{walk.name}"], walk, named[walk.name], given, tiles, config)
            b.do(kernels[walk.name].launch(sequence([heads * tiles, rows]), given, config.warps))
        return b.function("walks", ("Run the walks.",), [Parameter(name_of(x)) for x in parameters], jit=False)


def build(op: CompiledOp, config: Config, exact: bool) -> Built:
    """The walks of an op's gradients. exact: as for fp32."""
    plans = op.program.plans
    member = linear(op.ir, plans, "chunked", exact)
    made = backward(member, plans.graph)
    names = {walk.name: f"{walk.name}_kernel" for walk in made.walks}
    names |= {f"local_{walk.name}": f"local_{walk.name}_kernel" for walk in made.walks} | {"gates": "gates_kernel"}
    reserved = frozenset({*MODULES, *library(), *names.values()})
    outer = host(member, reserved, made.reads, name="walks")
    named = {walk.name: tensors_of_walk(walk, outer) for walk in made.walks}
    for kind in ("states", "vectors"):
        for (held, number), tensor in named["dq"].sums.items():
            if held == kind and (kind, number) in named["dk"].sums:
                named["dk"].sums[kind, number] = tensor
    builders: dict[str, Maker] = {}
    if outer.gates:
        builders["gates"] = Gates(forward_walk(member).paths, outer, reserved)
    for walk in made.walks:
        cut = config.programs > 0
        if cut:
            builders[f"local_{walk.name}"] = LocalStates(walk, outer, named[walk.name], reserved, parts=True)
        builders[walk.name] = WalkKernel(walk, outer, named[walk.name], reserved, parts=cut)
    kernels: dict[str, Kernel] = {}
    for role, builder in builders.items():
        function = prune(builder.build(names[role]))
        uses = mentioned(function.body)
        builder.arguments.restrict(uses)
        kernels[role] = Kernel(function, builder.arguments, uses)
    launch = WalksLauncher(member, outer)
    held: dict[str, dict[tuple[str, int], E]] = {}
    for walk in made.walks:
        own = named[walk.name]
        held[walk.name] = {
            **{(name, 0): x for name, x in own.outputs.items()},
            **{(f"initial_{part}", n): x for (part, n), x in own.initial.items()},
            **{(f"final_{part}", n): x for (part, n), x in own.final.items()},
            **own.sums,
        }
    tensors = [outer.pack, *outer.parameters.values()]
    tensors += list({name_of(x): x for of_walk in held.values() for x in of_walk.values()}.values())
    functions = [replace(k.function, parameters=k.arguments.parameters) for k in kernels.values()]
    functions.append(launch.write(made, named, kernels, config, tensors))
    functions[:-1] = [replace(k.function, parameters=k.arguments.parameters) for k in kernels.values()]
    called = {name for made in functions for name in mentioned(made.body)} & set(library())
    helpers = with_uses({*called, "scan_parts_kernel"})
    for function in functions:
        verify(function, (*helpers, *names.values()))
    text = module(("Walks.",), helpers, functions)
    return Built(text, made, {walk: {key: name_of(x) for key, x in own.items()} for walk, own in held.items()})


def tensors_of_walk(walk: Walk, host: Host) -> Tensors:
    """Names for all that a walk can read and write."""

    def fresh(name: str) -> str:
        return host.builder.fresh(f"{walk.name}_{name}")

    kinds = KINDS[walk.sums.pairs] if walk.sums is not None else ()
    kinds = tuple(kind for kind in kinds if kind != "vectors" or walk.offset is not None)
    return Tensors(
        parts=path(fresh("parts")),
        span=path(fresh("span")),
        outputs={output.name: path(fresh(output.name)) for output in walk.outputs},
        initial=states_of(walk, fresh, "s0"),
        final=states_of(walk, fresh, "s1"),
        local=local_states(walk, fresh),
        sums={(kind, n): path(fresh(f"{kind}{n}")) for kind in kinds for n in range(len(walk.terms))},
    )
