"""`Program`: a checked op with everything the compiler decided about it, and the choice of a plan for given sizes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import cache, cached_property
from importlib import import_module
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sma_compiler.call_errors import NoStates, RefusedPlan, UnknownPlan
from sma_compiler.ir.canonical import spec_hash
from sma_compiler.ir.nodes import Attend, Expr, Op, postorder
from sma_compiler.ir.roles import Roles, roles
from sma_compiler.plan.choose import PLANS, Plans
from sma_compiler.plan.cost import pick
from sma_compiler.plan.devices import CPU, Device, device_row
from sma_compiler.runtime.kernels import Kernels
from sma_compiler.runtime.replay import Replays
from sma_compiler.runtime.state import State

if TYPE_CHECKING:
    from sma_compiler.runtime.direct import Direct


Outputs = tuple[Tensor | State, ...]
"""What a call gives: the result, then the state where it is wanted, or the logarithms of what rows sum to."""

PLAIN = " ()[]{},:;=*+-/<>@!|&^~?."
"""Characters that stand for themselves in a handle, as letters, digits and `_` do."""


class Program:
    """A compiled op. Two programs are equal when they compute the same thing under the same name.

    Args:
        op: the checked op.
        plans: the streams and facts of its masks, and the plans that are legal.
    """

    # no dataclass: torch.compile rebuilds frozen dataclasses field by field, and this one is a constant to it
    def __init__(self, op: Op, plans: Plans) -> None:
        self.op = op
        self.plans = plans

    def __repr__(self) -> str:
        return f"<program of {self.op.name}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and (self.op.name, self.spec_hash) == (other.op.name, other.spec_hash)

    def __hash__(self) -> int:
        return hash(self.spec_hash)

    @cached_property
    def spec_hash(self) -> str:
        """SHA-256 of the canonical text of the op."""
        return spec_hash(self.op)

    @cached_property
    def roles(self) -> Roles:
        """What each parameter feeds."""
        return roles(self.op)

    @cached_property
    def kernels(self) -> Kernels:
        """The Triton kernels of the op."""
        return Kernels(self.op, self.plans)

    @cached_property
    def stages(self) -> tuple[Program, ...]:
        """Of an op of several contractions, each as a program of its own; none of others."""
        return tuple(Program(stage.op, stage.plans) for stage in self.kernels.stages)

    @cached_property
    def replays(self) -> Replays[Outputs]:
        """The forms of whole calls without gradients that were made before."""
        return Replays()

    @cached_property
    def direct(self) -> dict[Hashable, Direct | None]:
        """What makes calls with gradients again, by their forms; None: nothing simpler than the first call."""
        return {}

    @cached_property
    def handle(self) -> str:
        """A string that `program_of` finds the program by: the op's name, and the text of its spec.

        Inductor writes it into comments of the kernels that it makes: one line, without quotes.
        """
        found = f"{self.op.name} {quote(self.op.span.source.text, safe=PLAIN)}"
        _programs.setdefault(found, self)
        return found

    @cached_property
    def softmaxes(self) -> int:
        """How many contractions are normalised by softmax."""
        nodes = postorder((self.op.result,))
        return sum(isinstance(node, Attend) and node.normalize == "softmax" for node in nodes)

    @cached_property
    def layouts(self) -> dict[tuple[object, ...], dict[str, tuple[tuple[int, ...], torch.dtype]]]:
        """The shapes and dtypes of a state, by the sizes and numbers of a call: filled by `state_layout`."""
        return {}

    @cached_property
    def _picked(self) -> dict[tuple[object, ...], dict[Expr, str]]:
        return {}

    def choose(
        self, plan: str, sizes: Mapping[str, int], numbers: Mapping[str, int | float], device: Device = CPU
    ) -> Mapping[Expr, str]:
        """The plan of every contraction: the one asked for wherever it is legal, else the fastest at these sizes.

        device: that the torch backend runs on.

        Raises:
            UnknownPlan: a name that no plan has.
            RefusedPlan: a plan that is legal in none of the contractions.
        """
        self.check_plan(plan)
        counts = {name: concrete(n) for name, n in {**sizes, **numbers}.items() if isinstance(n, int | torch.SymInt)}
        key = (plan, device.name, *sorted(counts.items()))
        if key not in self._picked:
            if len(self._picked) >= 1024:  # the lengths of a long-running server are many
                self._picked.clear()
            choices = self.plans.choices
            wanted = "recurrent" if plan == "auto" and counts["time"] == 1 else plan  # a step of a recurrence is one
            self._picked[key] = {choice.site.node: pick(choice, counts, wanted, device) for choice in choices}
        return self._picked[key]

    def check_plan(self, plan: str) -> None:
        """Refuse a plan that does not exist, or that is legal in none of the contractions."""
        legal = [found.name for found in self.plans.legal]
        if plan == "auto" or plan in legal:
            return
        if plan in PLANS:
            raise RefusedPlan(self.op.label, plan, self.plans.refused[plan], legal)
        raise UnknownPlan(self.op.label, plan, legal)

    def check_causal(self, asked: str) -> None:
        """Refuse `asked` (what needs a state) of an op that is not causal."""
        if not self.plans.causal:
            raise NoStates(self.op.label, asked, self._why_not_causal())

    def _why_not_causal(self) -> str:
        for mask in self.plans.facts.masks:
            if not mask.causal:
                return f"in {mask.contraction}, {mask.reasons['causal']}"
        return "a shift looks ahead"


def concrete(size: int | torch.SymInt) -> int:
    """A size as a plain number; the one that torch traces with, where it is symbolic."""
    if isinstance(size, torch.SymInt):
        hint = size.node.hint
        return int(hint) if hint is not None else 4096
    return size


@cache
def row_of(device: torch.device) -> Device:
    """What a device can do, for the cost model."""
    return device_row(device.type, torch.cuda.get_device_name(device) if device.type == "cuda" else "")


_programs: dict[str, Program] = {}


def program_of(handle: str) -> Program:
    """The program with this handle; compiled, where a graph that was saved by another process names it."""
    if handle not in _programs:
        name, _, text = handle.partition(" ")
        interface = import_module("sma_compiler.interface")  # a layer above, which need not be loaded yet
        _programs[handle] = interface.compile(unquote(text), name).program
    return _programs[handle]


pytree.register_constant(Program)
