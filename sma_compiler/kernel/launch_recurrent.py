"""The launchers of a recurrent file: the op itself, and its decoding step."""

from __future__ import annotations

from sma_compiler.kernel.build import E, Operand, choose, lift, path, sequence
from sma_compiler.kernel.config import Recurrence
from sma_compiler.kernel.host import SIZES, Host, Tensors
from sma_compiler.kernel.launch import Launcher
from sma_compiler.kernel.linear import Linear
from sma_compiler.kernel.nodes import Function, Parameter
from sma_compiler.kernel.prepare import Kernel, Launch, either, name_of, shape_of

_STATES = {"matrix": ("batch", "head", "key", "value"), "vector": ("batch", "head", "key")}


class RecurrentLauncher(Launcher):
    """Builds the launcher of the recurrent forward kernel."""

    def make(self, kernel: Kernel, chosen: Recurrence) -> Function:
        """The launcher."""
        b, host = self.b, self.host
        parameters = self.signature()
        self.sizes()
        self.checks()
        self.sequences()
        constants, blocks = tiles(self, chosen)
        self.results()
        grid = sequence([host.heads * blocks, host.sequences])
        b.do(kernel.launch(grid, {**constants, "STAGES": chosen.stages}, chosen.warps))
        self.give()
        doc = self.doc("recurrent, one position after another", ())
        return b.function(self.linear.op.name, doc, parameters, jit=False)


class StepLauncher(Launch):
    """Builds the launcher of a step. linear: the op without its time axis; named: the states before and after."""

    def __init__(self, linear: Linear, host: Host, named: Tensors, name: str) -> None:
        super().__init__(linear, host)
        self.named = named
        self.name = name

    def make(self, kernel: Kernel, chosen: Recurrence) -> Function:
        """The launcher."""
        b, host, named = self.b, self.host, self.named
        given, inplace = path(b.fresh("state")), path(b.fresh("inplace"))
        parameters = [
            *(Parameter(name_of(host.parameters[decl.name])) for decl in self.linear.op.params),
            Parameter(name_of(given), default=lift(None).node, keyword=True),
            Parameter(name_of(inplace), default=lift(False).node, keyword=True),
        ]
        self.sizes()
        self.checks()
        before, after = list(named.initial.values()), list(named.final.values())
        self._states(given)
        constants, blocks = tiles(self, chosen)
        heads = host.sizes["batch"] * host.heads
        batch, _, head, _, value = (host.sizes[axis] for axis in SIZES)
        b.section("")
        y = named.outputs["y"]
        b.set(y, self.empty([batch, head, value], self.first.attr("dtype")))
        for state, old in zip(after, before, strict=True):
            b.set(state, choose(inplace, old, path("torch.empty_like").call(old)))
        programs = heads if len(before) > len(self.linear.terms) else heads * blocks
        warps = path("min").call(chosen.warps, path("max").call(1, lift(constants["BK"]) * constants["BV"] // 2048))
        b.do(kernel.launch(sequence([programs]), constants, warps))
        found = y.attr("squeeze").call(1) if self.linear.merged else y
        b.give(sequence([found, after[0] if len(after) == 1 else sequence(after)]))
        return b.function(self.name, self._doc(), parameters, jit=False)

    def _states(self, given: E) -> None:
        """The state before the step, and whether the kernel can read and write it."""
        b, host, named = self.b, self.host, self.named
        fp32 = path("torch.float32")
        with b.branch(given.missing()):
            for (part, _), state in named.initial.items():
                shape = sequence([host.sizes[axis] for axis in _STATES[part]])
                b.set(state, path("torch.zeros").call(shape, dtype=fp32, device=self.first.attr("device")))
        with b.otherwise():
            states = list(named.initial.values())
            if len(states) == 1:
                b.set(states[0], given)
            else:
                b.assign(states, given)
        for (part, _), state in named.initial.items():
            wrong = [state.attr("dtype").ne(fp32)]
            wrong.append(state.attr("shape").ne(sequence([host.sizes[axis] for axis in _STATES[part]])))
            strided = part == "matrix" and not self.linear.merged
            if strided:
                wrong.append(state.attr("stride").call(3).ne(1))
            letters = ", ".join(SIZES[axis] for axis in _STATES[part])
            with b.branch(either(*wrong)):
                b.fail(path("ValueError").call(f"a state must be fp32 [{letters}]{', V of stride 1' * strided}"))

    def _doc(self) -> list[str]:
        op = self.linear.op
        lines = [f"{op.name} at one position, in one launch.", "", "Args:"]
        for decl in op.params:
            grouped = decl.name in self.host.shared and "head" in decl.dims
            lines.append(f"    {decl.name}: {'a number' if decl.number else shape_of(decl, grouped)}.")
        shapes = [f"[{', '.join(SIZES[axis] for axis in _STATES[part])}]" for part, _ in self.named.initial]
        held = shapes[0] if len(shapes) == 1 else f"a tuple of {', '.join(shapes)}"
        result = "B, V" if self.linear.merged else "B, H, V"
        return [
            *lines,
            f"    state: what earlier positions left, fp32, {held}; None: nothing.",
            "    inplace: write the new state into `state`.",
            "",
            "Returns:",
            f"    y: [{result}], in the dtype of {self.tensors[0].name}; and the state after the position.",
        ]


def tiles(launch: Launch, chosen: Recurrence) -> tuple[dict[str, Operand], E]:
    """The tile of channels that a program has, and how many there are."""
    b, host = launch.b, launch.host
    _, _, _, key, value = (host.sizes[axis] for axis in SIZES)
    b.section("Tiles of the channels")
    wide_k = b.let("BK", path("triton.next_power_of_2").call(key))
    held = path("max").call(1, lift(chosen.elements) // wide_k)
    wide_v = b.let("BV", path("min").call(path("triton.next_power_of_2").call(value), held))
    masked = b.let("masked", either(key.ne(wide_k), (value % wide_v).ne(0)))
    return {"BK": wide_k, "BV": wide_v, "K": key, "V": value, "MASKED": masked}, path("triton.cdiv").call(value, wide_v)
