"""The file of an op of several contractions: the kernels and launchers of its stages, and launchers that call these."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from sma_compiler.emit.file import MODULES, REFUSED, Emitted, checked, header
from sma_compiler.emit.module import library
from sma_compiler.ir.nodes import Op
from sma_compiler.kernel.check import mentioned
from sma_compiler.kernel.launch_stages import BackwardStages, ForwardStages
from sma_compiler.kernel.nodes import Function
from sma_compiler.kernel.stages import Stage
from sma_compiler.plan.choose import Plans


def staged(op: Op, plans: Plans, plan: str, stages: Sequence[Stage], files: Sequence[Emitted]) -> Emitted:
    """The file of an op whose stages have these files. plan: as its header says it."""
    functions = tuple(chain.from_iterable(file.functions for file in files))
    launchers = {function.name: function for function in functions if not function.jit}
    reserved = frozenset({*MODULES, *library(), *(function.name for function in functions)})
    top = header(op, plans, f"{plan}, {len(stages)} contractions one after the other")
    made = [ForwardStages(op, stages, launchers, reserved).build()]
    refused = [line for file in files for line in file.header if line.startswith(REFUSED)]
    if refused:
        top = (*top, refused[0])
    else:
        made.append(BackwardStages(op, stages, launchers, reserved).build())
    found = checked(top, (), (*_called(functions, made), *made))
    configs = {
        f"{stage.site}.{role}": config
        for stage, file in zip(stages, files, strict=True)
        for role, config in file.configs.items()
    }
    return Emitted(found.header, found.helpers, found.functions, configs)


def _called(functions: Sequence[Function], launchers: Sequence[Function]) -> list[Function]:
    """Those that some launchers come to call: stages have steps and caches of their own."""
    known = {function.name: function for function in functions}
    found: set[str] = set()
    stack = list(launchers)
    while stack:
        new = (mentioned(stack.pop().body) & known.keys()) - found
        found |= new
        stack += [known[name] for name in new]
    return [function for function in functions if function.name in found]
