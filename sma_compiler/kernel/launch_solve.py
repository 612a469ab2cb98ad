"""The launchers of a `solve` in an emitted file: of its result, and of the adjoint system."""

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
from sma_compiler.kernel.walk import Walk


class SolveLauncher(Launch):
    """Builds the launcher of one of the walks."""

    def __init__(self, solve: Solve, walk: Walk, host: Host, named: Tensors) -> None:
        super().__init__(solve.member, host)
        self.solve = solve
        self.walk = walk
        self.named = named
        b = self.b
        self.start = path(b.fresh("dstate" if walk.backward else "initial_state"))
        self.final, self.precision = path(b.fresh("return_state")), path(b.fresh("precision"))

    def operands(self) -> list[E]:
        """The tensors whose dtypes decide that of matrix products."""
        forward = self.solve.forward
        return [self.host.parameters[node.name] for node in tensors_of((forward.p, forward.s, forward.x))]

    def signature(self) -> list[Parameter]:
        """What the function takes."""
        host, none = self.host, lift(None).node
        params = [Parameter(name_of(host.parameters[decl.name])) for decl in self.solve.member.op.params]
        if self.walk.backward:
            cotangent = Parameter(name_of(host.parameters[self.solve.cotangent.name]))
            params = [cotangent, *params, Parameter(name_of(host.scores))]
        final = [] if self.walk.backward else [Parameter(name_of(self.final), default=lift(False).node, keyword=True)]
        return [
            *params,
            Parameter(name_of(self.start), default=none, keyword=True),
            *final,
            Parameter(name_of(host.pack), default=none, keyword=True),
            Parameter(name_of(self.precision), default=lift("ieee").node, keyword=True),
        ]

    def build(self, name: str, kernels: Mapping[str, Kernel], config: Config) -> Function:
        """The launcher. kernels: `solve` or `adjoint`, and those that work ahead of it."""
        b, host = self.b, self.host
        signature = self.signature()
        self.sizes()
        self.checks()
        if self.walk.backward:
            self._cotangent()
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
        if self.walk.decayed:
            operands = self.solve.forward.p, self.solve.forward.s
            self.decayed(kernels, self.solve.forward.terms[0], operands, constants, config)
        elif not self.walk.backward:
            self.inverse(kernels["inverse"], constants)
        self._results()
        grid = sequence([heads * blocks, host.sequences])
        b.do(kernels[self.walk.name].launch(grid, constants, config.warps))
        (result,) = self.named.outputs.values()
        if self.walk.backward:
            b.give(result)
        else:
            (state,) = self.named.final.values()
            b.give(choose(self.final, sequence([result, host.scores, state]), sequence([result, host.scores])))
        return b.function(name, self._doc(), signature, jit=False)

    def _cotangent(self) -> None:
        """Refuse a cotangent of another shape, and make its channels contiguous."""
        b, host, decl = self.b, self.host, self.solve.cotangent
        tensor = host.parameters[decl.name]
        with b.branch(tensor.attr("shape").ne(sequence([host.sizes[axis] for axis in decl.dims]))):
            b.fail(path("ValueError").call(f"{decl.name} must be {shape_of(decl, False)}"))
        b.set(tensor, path("dense").call(tensor))

    def _results(self) -> None:
        """Make the tensors that are returned, and take the state that the walk begins with."""
        b, host = self.b, self.host
        (result,) = self.named.outputs.values()
        (output,) = self.walk.outputs
        like = host.parameters[self.solve.cotangent.name] if self.walk.backward else self.first
        b.section("")
        b.set(result, self.empty([host.sizes[axis] for axis in output.axes], like.attr("dtype")))
        (state,) = self.named.initial.values()
        b.set(state, self.start)
        with b.branch(state.given()):
            b.set(state, self.taken(-state if self.walk.backward else state))
        for final in self.named.final.values():
            b.set(final, lift(None))
            with b.branch(self.final):
                b.set(final, self.empty(self.shape_of_state("matrix"), path("torch.float32")))

    def _doc(self) -> list[str]:
        """The launcher's docstring."""
        walk, host, op, start = self.walk, self.host, self.solve.member.op, name_of(self.start)
        how = "the adjoint system" if walk.backward else "chunked, the state carried on chip"
        lines = [f"{op.name}: {how}.", "", "Args:"]
        if walk.backward:
            lines.append(f"    {self.solve.cotangent.name}: {shape_of(self.solve.cotangent, False)}.")
        for decl in op.params:
            grouped = "head" in decl.dims and bool({"key", "value"} & set(decl.dims))
            lines.append(f"    {decl.name}: {'a number' if decl.number else shape_of(decl, grouped)}.")
        if walk.backward:
            lines += [
                f"    {name_of(host.scores)}: as {op.name} returned it.",
                f"    {start}: the cotangent of the state that it returned, fp32, [S, H, K, V]; None: 0.",
            ]
            result = ["    The cotangent of the right-hand side, [B, T, H, V]."]
        else:
            lines += [
                f"    {start}: what earlier positions left, fp32, [S, H, K, V], S = B without a pack; None: nothing.",
                f"    {name_of(self.final)}: whether to return the state as well.",
            ]
            result = [
                "    The result [B, T, H, V], and of every chunk the inverse of its own system less the identity,",
                "    [B, H, T, C]; then the state.",
            ]
        return [
            *lines,
            f"    {name_of(host.pack)}: a pack: [S + 1], where each of S sequences begins, and the end.",
            f'    {name_of(self.precision)}: of fp32 matrix products, "ieee" or "tf32".',
            "",
            "Returns:",
            *result,
        ]
