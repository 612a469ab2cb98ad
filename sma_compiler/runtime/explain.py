"""`Explanation`: what an op computes, what is known of its masks, and which plans follow, as text for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from sma_compiler.call_errors import dims_text
from sma_compiler.emit.tile_counts import tile_counts
from sma_compiler.ir.nodes import Kind
from sma_compiler.ir.show import show_expr
from sma_compiler.kernel.derive import unplaced
from sma_compiler.kernel.linear import is_tensor
from sma_compiler.plan.cost import pick
from sma_compiler.plan.devices import H100
from sma_compiler.runtime.kernels import class_sizes
from sma_compiler.runtime.program import Program
from sma_compiler.runtime.state_layout import in_cache, layout

_PROBE = {"head": 13, "key": 47, "value": 19, "mode": 23, "lag": 29, "level": 31}
"""Sizes that no two axes share, nor any dimension that is no axis: they tell which dimension of a state is which."""
_AXIS_OF_SIZE = {size: axis for axis, size in _PROBE.items()}


@dataclass(frozen=True)
class Explanation:
    """Printing it shows the whole; `sizes` are by axis name, empty where no shape was asked about."""

    program: Program
    sizes: Mapping[str, int]

    def __str__(self) -> str:
        parts = [self.equation(), self.arguments(), self.facts(), self.plans(), self.backends(), self.state()]
        if self.sizes:
            parts.append(self.choice())
        return "\n\n".join(parts)

    def equation(self) -> str:
        """The spec of the op, as written."""
        op = self.program.op
        comment = [f"# {line}".rstrip() for line in op.doc.splitlines()]
        return "\n".join([*comment, op.text.rstrip()])

    def arguments(self) -> str:
        """The parameters with their dimensions, as a call takes them."""
        kinds = {Kind.BOOL: "bool", Kind.INT: "int", Kind.REAL: "real"}
        lines = ["Arguments"]
        for decl in self.program.op.params:
            what = "a Python number" if decl.number else dims_text(decl.dims)
            lines.append(f"  {decl.name:<12} {kinds[decl.kind]:<5} {what}")
        return "\n".join(lines)

    def facts(self) -> str:
        """Every mask with its facts and their reasons."""
        return f"Masks\n{self.program.plans.facts}"

    def plans(self) -> str:
        """The legal plans, and why the others are not."""
        plans = self.program.plans
        lines = ["Plans", *(f"  {plan}" for plan in plans.legal), "Refused"]
        lines += [f"  {name:<12} {reason}" for name, reason in plans.refused.items()]
        return "\n".join(lines)

    def backends(self) -> str:
        """What runs the op: torch everywhere, and on GPUs the plans that there are Triton kernels for."""
        kernels = self.program.kernels
        reasons = kernels.refusals()
        found = [plan for plan, reason in reasons.items() if not reason]
        lines = ["Backends", "  torch        every plan, on any device"]
        if found:
            trained = [plan for plan in found if kernels.has_gradients(plan)]
            gradients = f"with gradients {', '.join(trained)}" if trained else "without gradients"
            lines.append(f"  triton       {', '.join(found)} in bf16, fp16 and fp32 on GPUs, {gradients}")
        else:
            lines.append(f"  triton       no kernel: {next(iter(reasons.values()))}")
        return "\n".join([*lines, *self.fused()])

    def fused(self) -> list[str]:
        """The elementwise work that chunked and recurrent kernels do where they read and write tensors."""
        members = self.program.kernels.members
        if not members:
            return []
        texts: list[tuple[str, str]] = []
        rights = {stage.site: stage.right for stage in self.program.kernels.stages if stage.right is not None}
        for site, member in members.items():
            right = rights.get(site)
            own = "diagonal" if member.stabilised else "q"
            parts = [(own, member.q), ("k", member.k), ("v", member.v)]
            parts = parts if right is None else [("a", member.q), ("b", member.k), ("u", right)]
            for term in member.terms:
                parts += [("factor", x) for x in (*term.row, *term.col)]
                parts += [("log gate", gate.log) for gate in term.gates]
            texts += [(what, show_expr(unplaced(self.program.plans.graph, x))) for what, x in parts if not is_tensor(x)]
            if member.op.result is not member.attend and right is None:
                texts.append(("result", show_expr(member.op.result).replace(show_expr(member.attend), site)))
        if not texts:
            return ["  fused        nothing: operands, gates and the result are tensors as they are"]
        lines = [f"    {what:<10} {text}" for what, text in dict.fromkeys(texts)]
        return [
            "  fused        computed inside chunked and recurrent kernels, and so are its gradients:",
            *lines,
        ]

    def state(self) -> str:
        """The layout of the state: one line a tensor."""
        if not self.program.plans.causal:
            return "State\n  none: later positions matter"
        lines = ["State, a tensor a line", "  position: int64 [batch], the positions seen so far"]
        for name, (shape, dtype) in layout(self.program, _PROBE, torch.float32).items():
            if name != "position":
                dims = ["batch", *(_AXIS_OF_SIZE.get(size, str(size)) for size in shape)]
                if in_cache(name):
                    dims[1] = "slots"
                lines.append(f"  {name}: {str(dtype).removeprefix('torch.')} [{', '.join(dims)}]")
        return "\n".join(lines)

    def choice(self) -> str:
        """The plan that "auto" takes for every contraction at the sizes asked about."""
        from sma_compiler.emit.source import DEFAULTS  # loads what emits kernels
        from sma_compiler.runtime.forecast import Case, auto_pick

        sizes = {"batch": 1, "time": 1, "head": 1, "key": 1, "value": 1, **self.sizes}
        asked = ", ".join(f"{axis} {size}" for axis, size in self.sizes.items())
        choices = self.program.plans.choices
        case = Case(self.program, class_sizes({**DEFAULTS, **self.sizes}), {}, "bfloat16", H100, "sm_90")
        reason = self.program.kernels.refusal("auto", self.sizes)
        picks = (auto_pick(case, training=training) for training in (False, True))
        on_gpus = (
            f"torch: {reason}" if reason else ", with gradients ".join(dict.fromkeys(" ".join(one) for one in picks))
        )
        lines = [f"At {asked}", *(f"  {each.site.name:<12} {pick(each, sizes)}" for each in choices)]
        tiles = tile_counts(self.program.op, self.program.plans, sizes, "bfloat16", "sm_90")
        lines += [] if tiles is None else [f"  {tiles}"]
        return "\n".join([*lines, f"  {'on an H100':<12} {on_gpus}"])
