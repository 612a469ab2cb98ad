"""From a planned op to the text of a standalone Triton file."""

from __future__ import annotations

from collections.abc import Mapping

from sma_compiler.emit.module import library, module, with_uses
from sma_compiler.ir.canonical import spec_hash
from sma_compiler.ir.nodes import Op
from sma_compiler.kernel import config
from sma_compiler.kernel.check import prune, verify
from sma_compiler.kernel.chunk import CONSTANTS, Forward
from sma_compiler.kernel.errors import NoTritonKernel
from sma_compiler.kernel.host import host
from sma_compiler.kernel.launch import HELPERS, Launcher
from sma_compiler.kernel.linear import linear
from sma_compiler.kernel.nodes import Function
from sma_compiler.plan.choose import Plans

MODULES = frozenset({"torch", "triton", "tl"})
DTYPES = ("bfloat16", "float16", "float32")
TARGETS = ("sm_80", "sm_90", "gfx942")


def source(op: Op, plans: Plans, plan: str, sizes: Mapping[str, int], dtype: str, target: str) -> str:
    """The text of a file that computes an op: kernels, and a launcher named after the op.

    Args:
        op: the checked op.
        plans: what was decided about it.
        plan: "chunked".
        sizes: by axis; they choose the configuration, the file works at any.
        dtype: of the tensors, one of `DTYPES`; chooses the configuration.
        target: one of `TARGETS`; likewise.

    Raises:
        NoTritonKernel: this version emits nothing for the op, the plan or the sizes.
    """
    if plan != "chunked":
        raise NoTritonKernel(op.name, plan, "Triton is emitted for plan='chunked'")
    member = linear(op, plans, plan)
    if sizes["key"] > 256:
        raise NoTritonKernel(op.name, plan, f"a state of {sizes['key']} key channels does not fit on chip, 256 do")
    kernel_name = f"{op.name}_forward_kernel"
    reserved = MODULES | set(library()) | {kernel_name}
    names = host(member, frozenset(reserved))
    chosen = config.forward(sizes, dtype, target)
    forward = Forward(member, names, frozenset(reserved))
    kernel = prune(forward.build(kernel_name))
    launcher = Launcher(member, names, chosen).build(kernel_name, forward.arguments)
    kernel = Function(kernel.name, kernel.doc, forward.arguments.parameters, kernel.body, jit=True)
    functions = (kernel, launcher)
    helpers = with_uses((*forward.b.helpers, *HELPERS))
    for made in functions:
        verify(made, (*helpers, *CONSTANTS, *(f.name for f in functions)))
    return module(header(op, plans, plan), helpers, functions)


def header(op: Op, plans: Plans, plan: str) -> list[str]:
    """Comment lines that say what a file computes and why it may."""
    spec = op.text.splitlines()
    lines = [f"{op.name}, emitted by sma_compiler.", "", *spec, ""]
    for mask in plans.facts.masks:
        lines.append(f"{mask.contraction}: gate {mask.gate}, state of {mask.state_size} elements a head")
    return [*lines, f"plan: {plan}, fused", f"spec: sha256 {spec_hash(op)}"]
