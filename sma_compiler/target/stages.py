"""The kernel stages of `sma inspect`: what an op becomes on its way to a GPU, with no GPU."""

from __future__ import annotations

from collections.abc import Mapping

from sma_compiler.emit.file import Emitted
from sma_compiler.emit.source import DEFAULTS
from sma_compiler.ir.nodes import Op
from sma_compiler.kernel.errors import UnknownOption
from sma_compiler.target.compile import Compiled, compile_text
from sma_compiler.target.resources import resources, sass


def kernel_stage(
    op: Op, emitted: Emitted, stage: str, sizes: Mapping[str, int], dtype: str, target: str
) -> dict[str, str]:
    """The text of a stage by kernel; of `tile` and `triton`, that of the whole file under "".

    Raises:
        UnknownOption: the target has no such stage, as `ptx` of an AMD GPU.
    """
    if stage == "tile":
        return {"": emitted.tiles}
    if stage == "triton":
        return {"": emitted.text}
    compiled = compile_text(emitted.text, op, {**DEFAULTS, **sizes}, dtype, target)
    return {made.launch.kernel: _text(made, stage) for made in compiled}


def _text(compiled: Compiled, stage: str) -> str:
    if stage == "resources":
        return str(resources(compiled))
    if stage == "sass" and "ptx" in compiled.stages:
        return sass(compiled)
    if stage not in compiled.stages:
        raise UnknownOption("stage", f"{stage} for {compiled.target}", (*compiled.stages, "resources"))
    return compiled.stages[stage]
