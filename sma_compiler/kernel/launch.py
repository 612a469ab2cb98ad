"""The launcher of an emitted file: the function that is named after the op and takes its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sma_compiler.ir.nodes import ParamDecl
from sma_compiler.kernel.arguments import Arguments
from sma_compiler.kernel.build import E, Operand, choose, lift, path, sequence
from sma_compiler.kernel.config import Config
from sma_compiler.kernel.host import SIZES, Host
from sma_compiler.kernel.inputs import tensors_of
from sma_compiler.kernel.linear import Linear
from sma_compiler.kernel.nodes import Function, Parameter

HELPERS = ("dense", "coarsest")
"""Functions of the host that every launcher uses."""


@dataclass(frozen=True)
class Kernel:
    """A kernel that a launcher starts. uses: every name its body mentions."""

    function: Function
    arguments: Arguments
    uses: frozenset[str]


class Launcher:
    """Builds the launcher of the fused forward kernel."""

    def __init__(self, linear: Linear, host: Host, config: Config) -> None:
        self.linear = linear
        self.host = host
        self.config = config
        self.b = host.builder
        self.tensors = [decl for decl in linear.op.params if not decl.number]

    def build(self, kernels: Mapping[str, Kernel]) -> Function:
        """The launcher. kernels: `forward`, and where there are any `gates` and (split plan) `local_states`."""
        b, host, config = self.b, self.host, self.config
        parameters = [Parameter(_name(host.parameters[decl.name])) for decl in self.linear.op.params]
        none = lift(None).node
        initial, final = path(b.fresh("initial_state")), path(b.fresh("return_state"))
        precision = path(b.fresh("precision"))
        parameters += [
            Parameter(_name(initial), default=none, keyword=True),
            Parameter(_name(final), default=lift(False).node, keyword=True),
            Parameter(_name(precision), default=lift("ieee").node, keyword=True),
        ]
        self._sizes()
        self._checks()
        batch, time, heads, key, value = (host.sizes[axis] for axis in SIZES)
        first = host.parameters[self.tensors[0].name]
        b.section("Positions of a chunk, and tiles of the channels")
        chunk = b.let("C", config.chunk)
        wide_k = b.let("BK", path("max").call(16, path("triton.next_power_of_2").call(key)))
        wide_v = b.let("BV", config.value)
        blocks = b.let("blocks", path("triton.cdiv").call(value, wide_v))
        masked = b.let("masked", _any((time % chunk).ne(0), key.ne(wide_k), (value % wide_v).ne(0)))
        operand = b.let("operand", path("coarsest").call(*self._operands()))
        constants: dict[str, Operand] = {
            "C": chunk,
            "BK": wide_k,
            "BV": wide_v,
            "K": key,
            "V": value,
            "MASKED": masked,
            "DOT": operand,
            "PRECISION": precision,
            "STAGES": config.stages,
        }
        b.section("")
        shape = sequence([batch, time, heads, value])
        y = path("torch.empty").call(shape, dtype=first.attr("dtype"), device=first.attr("device"))
        b.set(host.result, y)
        self._states(initial, final, first)
        if "scores" in kernels:
            self._scores(kernels["scores"], constants, first)
        if "gates" in kernels:
            self._gates(kernels["gates"], constants, first)
        rows = batch
        if "local_states" in kernels:
            self._parts(kernels["local_states"], constants, blocks, first)
            rows = batch * host.parts
        grid = sequence([heads * blocks, rows])
        b.do(_launch(kernels["forward"], grid, constants, config.warps))
        states = [state for (when, _, _), state in host.states.items() if when == "final"]
        carried = states[0] if len(states) == 1 else sequence(states)
        b.give(choose(final, sequence([host.result, carried]), host.result))
        return b.function(self.linear.op.name, self._doc(), parameters, jit=False)

    def _scores(self, kernel: Kernel, constants: Mapping[str, Operand], first: E) -> None:
        b, host = self.b, self.host
        batch, time = host.sizes["batch"], host.sizes["time"]
        b.section("Scores inside every chunk, once for the heads that share q and k")
        groups = [
            host.parameters[node.name].attr("shape").at(self._decl(node.name).dims.index("head"))
            for node in tensors_of((self.linear.q, self.linear.k))
            if "head" in node.axes
        ]
        b.set(host.groups, path("max").call(1, *groups))
        chunk = lift(constants["C"])
        shape = sequence([batch, host.groups, time, chunk])
        empty = path("torch.empty").call(shape, dtype=path("torch.float32"), device=first.attr("device"))
        b.set(host.scores, empty)
        grid = sequence([path("triton.cdiv").call(time, chunk), host.groups, batch])
        b.do(_launch(kernel, grid, constants, 4))
        b.section("")

    def _decl(self, name: str) -> ParamDecl:
        return next(decl for decl in self.linear.op.params if decl.name == name)

    def _gates(self, kernel: Kernel, constants: Mapping[str, Operand], first: E) -> None:
        b, host = self.b, self.host
        batch, time, heads, _, _ = (host.sizes[axis] for axis in SIZES)
        b.section("Decays inside every chunk")
        chunks = b.let("chunks", path("triton.cdiv").call(time, lift(constants["C"])))
        for (_, part), array in host.gates.items():
            shape = sequence([batch, heads, chunks if part.endswith("all") else time])
            dtype = path("torch.int32" if part.startswith("cut") else "torch.float32")
            b.set(array, path("torch.empty").call(shape, dtype=dtype, device=first.attr("device")))
        b.do(_launch(kernel, sequence([chunks, heads, batch]), constants, 1))
        b.section("")

    def _parts(self, kernel: Kernel, constants: Mapping[str, Operand], blocks: E, first: E) -> None:
        """Cut sequences so that enough programs run at once, and make the state that each part begins with."""
        b, host = self.b, self.host
        batch, time, heads, key, value = (host.sizes[axis] for axis in SIZES)
        chunk = lift(constants["C"])
        b.section("As many parts of each sequence as the device runs at once, of at least 4 chunks")
        wanted = b.let("wanted", path("max").call(1, lift(self.config.programs) // (batch * heads * blocks)))
        per_part = path("triton.cdiv").call(path("triton.cdiv").call(time, chunk), wanted)
        b.set(host.span, chunk * path("max").call(4, per_part))
        b.set(host.parts, path("max").call(1, path("triton.cdiv").call(time, host.span)))
        local = {key: state for key, state in host.states.items() if key[0] == "local"}
        for (_, part, number), state in local.items():
            given = lift(None) if part == "decay" else host.state("initial", part, number)
            b.set(state, given)
        with b.branch(host.parts > 1):
            shapes = {"matrix": [heads, key, value], "keys": [heads, key], "decay": [heads]}
            for (_, part, _), state in local.items():
                shape = sequence([batch, host.parts, *shapes[part]])
                empty = path("torch.empty").call(shape, dtype=path("torch.float32"), device=first.attr("device"))
                b.set(state, empty)
            grid = sequence([heads * blocks, batch * host.parts])
            b.do(_launch(kernel, grid, constants, self.config.warps))
            for (_, part, number), state in local.items():
                if part == "decay":
                    continue
                count = key * value if part == "matrix" else key
                decay = host.states.get(("local", "decay", number), lift(None))
                grid = sequence([path("triton.cdiv").call(count, 1024), heads, batch])
                before = host.state("initial", part, number)
                scan = path("scan_parts_kernel").at(grid)
                b.do(scan.call(state, decay, before, heads, count, host.parts, BLOCK=1024))

    def _operands(self) -> list[E]:
        linear = self.linear
        found = tensors_of((linear.attend.q, linear.attend.k, linear.attend.v))
        return [self.host.parameters[node.name] for node in found]

    def _sizes(self) -> None:
        """B, T, H, K and V, each from the first tensor that has the axis; H is the largest."""
        b, host = self.b, self.host
        for axis in SIZES:
            holders = [decl for decl in self.tensors if axis in decl.dims]
            sizes = [_size(host, decl, axis) for decl in holders[: len(holders) if axis == "head" else 1]]
            b.set(host.sizes[axis], path("max").call(*sizes) if len(sizes) > 1 else sizes[0])

    def _checks(self) -> None:
        b, host = self.b, self.host
        for decl in self.tensors:
            tensor = host.parameters[decl.name]
            grouped = "head" in decl.dims and bool({"key", "value"} & set(decl.dims))
            expected = [_size(host, decl, a) if a == "head" and grouped else host.sizes[a] for a in decl.dims]
            wrong = tensor.attr("shape").ne(sequence(expected))
            if grouped:
                wrong = _any(wrong, (host.heads % _size(host, decl, "head")).ne(0))
            with b.branch(wrong):
                b.fail(path("ValueError").call(f"{decl.name} must be {_shape(decl, grouped)}"))
        channels = [host.parameters[decl.name] for decl in self.tensors if {"key", "value"} & set(decl.dims)]
        for tensor in channels:
            b.set(tensor, path("dense").call(tensor))
        b.section("")

    def _states(self, initial: E, final: E, first: E) -> None:
        b, host = self.b, self.host
        given = [state for (when, _, _), state in host.states.items() if when == "initial"]
        if len(given) == 1:
            b.set(given[0], initial)
        else:
            nothing = sequence([lift(None)] * len(given))
            b.assign(given, choose(initial.given(), initial, nothing))
        for state in given:
            with b.branch(state.given()):
                b.set(state, state.attr("float").call().attr("contiguous").call())
        for (when, part, _), state in host.states.items():
            if when != "final":
                continue
            axes = ("batch", "head", "key", "value") if part == "matrix" else ("batch", "head", "key")
            b.set(state, lift(None))
            with b.branch(final):
                shape = sequence([host.sizes[axis] for axis in axes])
                empty = path("torch.empty").call(shape, dtype=path("torch.float32"), device=first.attr("device"))
                b.set(state, empty)

    def _doc(self) -> list[str]:
        """The launcher's docstring."""
        linear = self.linear
        lines = [f"{linear.op.name}: chunked, the state carried on chip.", "", "Args:"]
        for decl in linear.op.params:
            if decl.number:
                lines.append(f"    {decl.name}: a number.")
            else:
                grouped = "head" in decl.dims and bool({"key", "value"} & set(decl.dims))
                lines.append(f"    {decl.name}: {_shape(decl, grouped)}.")
        states = [key[1] for key in self.host.states if key[0] == "initial"]
        shapes = {"matrix": "[B, H, K, V]", "keys": "[B, H, K]"}
        held = shapes[states[0]] if len(states) == 1 else f"a tuple of {', '.join(shapes[part] for part in states)}"
        lines += [
            f"    initial_state: what earlier positions left, fp32, {held}; None: nothing.",
            "    return_state: whether to return (y, state) and not y alone.",
            '    precision: of fp32 matrix products, "ieee" or "tf32".',
            "",
            "Returns:",
            f"    y: [B, T, H, V], in the dtype of {self.tensors[0].name}.",
        ]
        return lines


def _launch(kernel: Kernel, grid: E, constants: Mapping[str, Operand], warps: int) -> E:
    for name, given in constants.items():
        if name in kernel.uses:
            kernel.arguments.constant(name, given)
    return kernel.arguments.launch(kernel.function.name, grid, num_warps=warps)


def _any(*conditions: E) -> E:
    found = conditions[0]
    for condition in conditions[1:]:
        found = found.either(condition)
    return found


def _name(x: E) -> str:
    node = x.node
    name = getattr(node, "name", None)
    assert isinstance(name, str)
    return name


def _size(host: Host, decl: ParamDecl, axis: str) -> E:
    return host.parameters[decl.name].attr("shape").at(decl.dims.index(axis))


def _shape(decl: ParamDecl, grouped: bool) -> str:
    letters = {**SIZES, "head": "G" if grouped else "H"}
    shape = f"[{', '.join(letters[axis] for axis in decl.dims)}]"
    return f"{shape}, G a divisor of H" if grouped else shape
