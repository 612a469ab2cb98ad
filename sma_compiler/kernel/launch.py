"""The launcher of an emitted file: the function that is named after the op and takes its parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sma_compiler.kernel.build import E, Operand, choose, lift, path, sequence
from sma_compiler.kernel.config import Config
from sma_compiler.kernel.host import SIZES, Host, Tensors
from sma_compiler.kernel.linear import Linear
from sma_compiler.kernel.maker import pinned
from sma_compiler.kernel.nodes import Function, Parameter
from sma_compiler.kernel.prepare import Kernel, Launch, either, name_of, shape_of
from sma_compiler.kernel.walk import Walk, result_axes


class Launcher(Launch):
    """Builds the launcher of the forward kernel."""

    def __init__(self, linear: Linear, walk: Walk, host: Host, named: Tensors) -> None:
        super().__init__(linear, host)
        self.walk = walk
        self.named = named
        b = self.b
        self.initial, self.final = path(b.fresh("initial_state")), path(b.fresh("return_state"))
        self.norm = path(b.fresh("return_norm")) if named.norm is not None else None

    def signature(self) -> list[Parameter]:
        """What the op takes, and what may be asked for besides."""
        none, no = lift(None).node, lift(False).node
        return [
            *(Parameter(name_of(self.host.parameters[decl.name])) for decl in self.linear.op.params),
            Parameter(name_of(self.initial), default=none, keyword=True),
            Parameter(name_of(self.final), default=no, keyword=True),
            *([Parameter(name_of(self.norm), default=no, keyword=True)] if self.norm is not None else []),
            Parameter(name_of(self.host.pack), default=none, keyword=True),
        ]

    def build(self, kernels: Mapping[str, Kernel], config: Config) -> Function:
        """The launcher. kernels: `forward`, and where there are any `gates` and (split plan) `local_states`."""
        b, host = self.b, self.host
        precision = path(b.fresh("precision"))
        parameters = [*self.signature(), Parameter(name_of(precision), default=lift("ieee").node, keyword=True)]
        self.sizes()
        self.checks()
        _, time, heads, key, value = (host.sizes[axis] for axis in SIZES)
        b.section("Positions of a chunk, and tiles of the channels")
        chunk = b.let("C", config.chunk)
        self.sequences()
        if {"scores", "scores_wide", "gates"} & kernels.keys():
            self.slots(chunk)
        wide_k = b.let("BK", path("max").call(16, path("triton.next_power_of_2").call(key)))
        wide_v = b.let("BV", config.outer)
        blocks = b.let("blocks", path("triton.cdiv").call(value, wide_v))
        ragged = ((time % chunk).ne(0), key.ne(wide_k), (value % wide_v).ne(0))
        masked = b.let("masked", either(host.pack.given(), *ragged))
        operand = b.let("operand", path("coarsest").call(*self.operands()))
        constants: dict[str, Operand] = {
            "C": chunk,
            "BK": wide_k,
            "BV": wide_v,
            "K": key,
            "V": value,
            "MASKED": masked,
            "PINNED": pinned(config, self.first),
            "DOT": operand,
            "PRECISION": precision,
            "STAGES": config.stages,
        }
        self.results()
        grid = sequence([heads * blocks, host.sequences])
        if "forward_narrow" in kernels:
            operands = self.walk.p, self.walk.s
            self.again("forward", kernels, grid, self.linear.terms[0], operands, constants, config)
        elif "scores" in kernels and self.walk.decayed:
            self.decayed(kernels, self.linear.terms[0], (self.walk.p, self.walk.s), constants, config)
        elif "scores" in kernels:
            self.scores(kernels["scores"], constants)
        if "gates" in kernels:
            self.gates(kernels["gates"], constants)
        rows = host.sequences
        if "local_states" in kernels:
            rows = self.parts(kernels["local_states"], self.walk, self.named, constants, blocks, config)
        b.do(kernels["forward"].launch(sequence([heads * blocks, rows]), constants, config.warps))
        self.give()
        doc = self.doc(
            "chunked, the state carried on chip", ['    precision: of fp32 matrix products, "ieee" or "tf32".']
        )
        return b.function(self.linear.op.name, doc, parameters, jit=False)

    def results(self) -> None:
        """Make the tensors that the op returns, and take the initial state."""
        b, host = self.b, self.host
        batch, time, heads, _, _ = (host.sizes[axis] for axis in SIZES)
        b.section("")
        shape = [host.sizes[axis] for axis in result_axes(self.linear)]
        b.set(self.named.outputs["y"], self.empty(shape, self.first.attr("dtype")))
        self._states()
        if self.norm is not None and self.named.norm is not None:
            b.set(self.named.norm, lift(None))
            with b.branch(self.norm):
                b.set(self.named.norm, self.empty([batch, time, heads], path("torch.float32")))

    def give(self) -> None:
        """Return what was asked for."""
        y, final, norm = self.named.outputs["y"], self.final, self.norm
        states = [self.given(state) for state in self.named.final.values()]
        carried = states[0] if len(states) == 1 else sequence(states)
        if norm is None or self.named.norm is None:
            self.b.give(choose(final, sequence([y, carried]), y))
        else:
            self._give(y, final, carried, norm, self.named.norm)

    def _give(self, y: E, final: E, carried: E, norm: E, divisors: E) -> None:
        """Return y, and after it the state and the divisors where they are asked for."""
        b = self.b
        more = b.let("more", sequence([]))
        with b.branch(final):
            b.set(more, sequence([carried]))
        with b.branch(norm):
            b.set(more, more + sequence([divisors]))
        b.give(choose(more, sequence([y]) + more, y))

    def _states(self) -> None:
        b, initial, final = self.b, self.initial, self.final
        given = list(self.named.initial.values())
        if len(given) == 1:
            b.set(given[0], initial)
        else:
            nothing = sequence([lift(None)] * len(given))
            b.assign(given, choose(initial.given(), initial, nothing))
        for state in given:
            with b.branch(state.given()):
                b.set(state, self.taken(state))
        for (part, _), state in self.named.final.items():
            b.set(state, lift(None))
            with b.branch(final):
                b.set(state, self.empty(self.shape_of_state(part), path("torch.float32")))

    def doc(self, how: str, more: Iterable[str]) -> list[str]:
        """The launcher's docstring; `more` are its further arguments."""
        linear = self.linear
        lines = [f"{linear.op.name}: {how}.", "", "Args:"]
        for decl in linear.op.params:
            if decl.number:
                lines.append(f"    {decl.name}: a number.")
            else:
                grouped = "head" in decl.dims and bool({"key", "value"} & set(decl.dims))
                lines.append(f"    {decl.name}: {shape_of(decl, grouped)}.")
        states = [part for part, _ in self.named.initial]
        shapes = {"matrix": "[S, H, K, V]", "vector": "[S, H, K]"}
        held = shapes[states[0]] if len(states) == 1 else f"a tuple of {', '.join(shapes[part] for part in states)}"
        divided = ["    return_norm: whether to return what rows are divided by last, fp32, [B, T, H]."]
        divided = divided if self.named.norm is not None else []
        before = "later" if self.walk.backward else "earlier"
        result = ", ".join(SIZES[axis] for axis in result_axes(linear))
        lines += [
            f"    initial_state: what {before} positions left, fp32, {held}, S = B without a pack; None: nothing.",
            "    return_state: whether to return the state after y.",
            *divided,
            f"    {name_of(self.host.pack)}: a pack: [S + 1], where each of S sequences begins, and the end.",
            *more,
            "",
            "Returns:",
            f"    y: [{result}], in the dtype of {self.tensors[0].name}.",
        ]
        return lines
