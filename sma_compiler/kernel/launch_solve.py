"""The launcher of a `solve` in an emitted file."""

from __future__ import annotations

from collections.abc import Mapping

from sma_compiler.kernel.build import E, Operand, choose, lift, path, sequence
from sma_compiler.kernel.config import Config
from sma_compiler.kernel.host import SIZES, Host, Tensors
from sma_compiler.kernel.inputs import tensors_of
from sma_compiler.kernel.maker import pinned
from sma_compiler.kernel.nodes import Function, Parameter
from sma_compiler.kernel.prepare import Kernel, Launch, either, name_of, shape_of
from sma_compiler.kernel.solve import Solve


class SolveLauncher(Launch):
    """Builds the launcher."""

    def __init__(self, solve: Solve, host: Host, named: Tensors) -> None:
        super().__init__(solve.member, host)
        self.walk = solve.walk
        self.named = named
        b = self.b
        self.initial, self.final = path(b.fresh("initial_state")), path(b.fresh("return_state"))
        self.precision = path(b.fresh("precision"))

    def operands(self) -> list[E]:
        """The tensors whose dtypes decide that of matrix products."""
        return [self.host.parameters[node.name] for node in tensors_of((self.walk.p, self.walk.s, self.walk.x))]

    def signature(self) -> list[Parameter]:
        """What the function takes."""
        host, none, no = self.host, lift(None).node, lift(False).node
        return [
            *(Parameter(name_of(host.parameters[decl.name])) for decl in self.linear.op.params),
            Parameter(name_of(self.initial), default=none, keyword=True),
            Parameter(name_of(self.final), default=no, keyword=True),
            Parameter(name_of(host.pack), default=none, keyword=True),
            Parameter(name_of(self.precision), default=lift("ieee").node, keyword=True),
        ]

    def build(self, kernels: Mapping[str, Kernel], config: Config) -> Function:
        """The launcher. kernels: `solve`, and those that work ahead of it."""
        b, host, walk = self.b, self.host, self.walk
        signature = self.signature()
        self.sizes()
        self.checks()
        _, time, heads, key, value = (host.sizes[axis] for axis in SIZES)
        b.section("Positions of a chunk, and tiles of the channels")
        chunk = b.let("C", config.chunk)
        self.sequences()
        self.slots(chunk)
        wide_k = b.let("BK", path("max").call(16, path("triton.next_power_of_2").call(key)))
        wide_v = b.let("BV", config.outer)
        blocks = b.let("blocks", path("triton.cdiv").call(value, wide_v))
        ragged = ((time % chunk).ne(0), key.ne(wide_k), (value % wide_v).ne(0))
        constants: dict[str, Operand] = {
            "C": chunk,
            "BK": wide_k,
            "BV": wide_v,
            "K": key,
            "V": value,
            "MASKED": b.let("masked", either(host.pack.given(), *ragged)),
            "PINNED": pinned(config, self.first),
            "DOT": b.let("operand", path("coarsest").call(*self.operands())),
            "PRECISION": self.precision,
            "STAGES": config.stages,
        }
        if "gates" in kernels:
            self.gates(kernels["gates"], constants)
        if walk.decayed:
            self.decayed(kernels, walk.terms[0], (walk.p, walk.s), constants, config)
        else:
            self.inverse(kernels["inverse"], constants)
        self._results()
        b.do(kernels["solve"].launch(sequence([heads * blocks, host.sequences]), constants, config.warps))
        (result,), (state,) = self.named.outputs.values(), self.named.final.values()
        b.give(choose(self.final, sequence([result, host.scores, state]), sequence([result, host.scores])))
        return b.function(self.linear.op.name, self._doc(), signature, jit=False)

    def _results(self) -> None:
        """Make the tensors that are returned, and take the state that the walk begins with."""
        b, host = self.b, self.host
        (result,), (output,) = self.named.outputs.values(), self.walk.outputs
        (before,), (after,) = self.named.initial.values(), self.named.final.values()
        b.section("")
        b.set(result, self.empty([host.sizes[axis] for axis in output.axes], self.first.attr("dtype")))
        b.set(before, self.initial)
        with b.branch(before.given()):
            b.set(before, self.taken(before))
        b.set(after, lift(None))
        with b.branch(self.final):
            b.set(after, self.empty(self.shape_of_state("matrix"), path("torch.float32")))

    def _doc(self) -> list[str]:
        """The launcher's docstring."""
        host, op, initial = self.host, self.linear.op, name_of(self.initial)
        lines = [f"{op.name}: chunked, the state carried on chip.", "", "Args:"]
        for decl in op.params:
            grouped = "head" in decl.dims and bool({"key", "value"} & set(decl.dims))
            lines.append(f"    {decl.name}: {'a number' if decl.number else shape_of(decl, grouped)}.")
        return [
            *lines,
            f"    {initial}: what earlier positions left, fp32, [S, H, K, V], S = B without a pack; None: nothing.",
            f"    {name_of(self.final)}: whether to return the state as well.",
            f"    {name_of(host.pack)}: a pack: [S + 1], where each of S sequences begins, and the end.",
            f'    {name_of(self.precision)}: of fp32 matrix products, "ieee" or "tf32".',
            "",
            "Returns:",
            "    The result [B, T, H, V], and of every chunk the inverse of its own system less the identity,",
            "    [B, H, T, C]; then the state.",
        ]
