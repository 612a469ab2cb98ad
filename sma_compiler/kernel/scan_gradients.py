"""The gradients of gates that differ by both axes of channels: two kernels make them, position by position.

One goes from the start, makes what reads states, and keeps some of them. The other goes from the end and carries D, the
cotangent of the state. It makes the states of a tile of positions again, from those that were kept, and so has for
every position the state before it and the cotangent behind it: their product is the gradient of the gate, and nothing
is summed over pairs.

    D_(t-1) = e_t (D_t + w_t)        w_t = q_t dy_t, of rows that read the state after their position
    dlog e_t = s_(t-1) D_(t-1)       d(k_t x_t) = D_t + w_t
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sma_compiler.ir.nodes import Expr, Param, Reduce, postorder
from sma_compiler.kernel.backward import CHANNELS, Backward, Gradients, declared
from sma_compiler.kernel.derive import gradients, unplaced
from sma_compiler.kernel.linear import varies
from sma_compiler.kernel.walk import Output, Walk, forward_walk


@dataclass(frozen=True)
class Leaves:
    """What stands for cotangents in the gradients of parameters: of q, k, v, and of the sum of the log gates.

    given: the cotangent of the contraction, as the op's own expression.
    """

    given: Expr
    q: Expr
    k: Expr
    v: Expr
    gate: Expr


@dataclass(frozen=True)
class ScanBackward(Backward):
    """`before` is the walk that keeps the states and makes dq; dk and dv are one and the same."""

    leaves: Leaves | None = None

    @property
    def walks(self) -> tuple[Walk, ...]:
        """All walks, in the order they run."""
        assert self.before is not None
        return self.before, self.dq


class ScanGradients(Gradients):
    """Builds a `ScanBackward`."""

    def _part(self, walk: str, outer: str, param: Param, expr: Expr) -> None:
        if walk == "before" and self.linear.stabilised:
            super()._part(walk, outer, param, expr)
            return
        if "batch" in param.axes and not varies(param):
            raise self._refused(f"`{param.name}` has a batch axis and no time axis")
        if any(isinstance(x, Reduce) and x.axis == "value" and not self._is_linear(x) for x in postorder((expr,))):
            raise self._refused("a sum over value channels is no part of a tile of them")
        kernel = "again" if walk in ("before", "dq") and not self.linear.stabilised else "back"
        self.parts.setdefault((kernel, param.name), []).append((param, expr))

    def _channel_gate(self) -> Expr:
        term = self.linear.terms[0]
        leaf = self._leaf("dgate", ("batch", "time", "head", *term.axes))
        self.cotangents.add(leaf)
        logs = [unplaced(self.graph, gate.log) for gate in term.gates]
        found = gradients(self.graph, [(log, leaf) for log in logs], self.leaves, logs)
        for param in self._in(found):
            self._part("back", "", param, found[param])
        return leaf

    def _outputs(self, walk: str, outer: str) -> tuple[Output, ...]:
        if walk == "before":
            return super()._outputs(walk, outer)
        found: list[Output] = []
        for (name, _), parts in self.parts.items():
            if name == walk:
                param, expr = parts[0]
                for _, more in parts[1:]:
                    expr = self.graph.apply("add", expr, more)
                axes = self._axes(param)
                found.append(Output(self._piece(param, walk, axes), expr, axes))
        return tuple(found)

    def _axes(self, param: Param) -> tuple[str, ...]:
        """Of what a program writes for a parameter: its own rows, each tile's part, or a sum over all its positions."""
        head = () if self.linear.merged else ("head",)
        channels = tuple(axis for axis in CHANNELS if axis in param.axes)
        if not varies(param):
            return ("row", "one" if "value" in channels else "tile", *head, *channels)
        if "value" in channels:
            return ("batch", "time", *head, *channels)
        return ("tile", "batch", *head, "time", *channels)

    def _assembled(self, walks: dict[str, Walk], reads: list[Param], cotangent: Expr, gate: Expr | None) -> Backward:
        linear = self.linear
        assert gate is not None
        leaves = Leaves(cotangent, walks["dq"].result, walks["dk"].result, walks["dv"].result, gate)
        before = replace(
            forward_walk(linear),
            name="again",
            outputs=self._outputs("before" if linear.stabilised else "again", "value"),
        )
        outputs = self._outputs("back", "value")
        walk = replace(forward_walk(linear), name="back", backward=True, outputs=outputs)
        return ScanBackward(linear, declared(reads), before, walk, walk, walk, None, self._in_order(), leaves=leaves)
