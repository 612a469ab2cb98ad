"""The pipeline, from the text of a spec to an op that can be called, and where it can be stopped."""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sma_compiler.driver_errors import NoSuchOp, SeveralOps
from sma_compiler.errors import SpecError
from sma_compiler.ir.check import check_all
from sma_compiler.ir.nodes import Op
from sma_compiler.plan.choose import Plans, plan
from sma_compiler.runtime.compiled import keep, recall
from sma_compiler.runtime.op import CompiledOp
from sma_compiler.runtime.program import Program
from sma_compiler.source import Source
from sma_compiler.syntax import tree
from sma_compiler.syntax.parse import parse, raise_all

STAGES = ("tree", "op", "plans", "compiled")
"""What `lower` can stop after."""


@dataclass(frozen=True)
class Lowered:
    """What the pipeline made of one op of a spec, up to the stage it was stopped after.

    tree: the file as written. op: typed expressions, names and defs expanded. plans: the streams of every mask, their
    facts, the legal plans. compiled: what `sma.compile` returns.
    """

    source: Source
    tree: tree.File
    op: Op | None = None
    plans: Plans | None = None
    compiled: CompiledOp | None = None


def lower(source: Source, name: str | None = None, stop_after: str = "compiled") -> Lowered:
    """Take one op of a spec through the pipeline.

    Args:
        source: the spec.
        name: which op, where the file holds several.
        stop_after: one of `STAGES`.

    Raises:
        SpecError: with every mistake of the file.
    """
    assert stop_after in STAGES
    file = parse(source)  # text -> tree
    if stop_after == "tree":
        return Lowered(source, file)
    op = pick_op(sound_ops(source), name)  # tree -> typed expressions
    if stop_after == "op":
        return Lowered(source, file, op)
    plans = plan(op)  # masks -> streams -> facts -> legal plans
    if stop_after == "plans":
        return Lowered(source, file, op, plans)
    return Lowered(source, file, op, plans, CompiledOp(Program(op, plans)))


def compile_source(source: Source, name: str | None = None) -> CompiledOp:
    """The op of a spec, or the one of several with this name."""
    op = pick_op(sound_ops(source), name)
    return CompiledOp(Program(op, plan(op)))


def compile_once(source: Source, name: str | None = None) -> CompiledOp:
    """The same op; by what another process found out about the spec, where one compiled it before."""
    found = recall(source, name)
    if found is None:
        compiled = compile_source(source, name).program
        found = compiled.op, compiled.plans
        keep(source, name, *found)
    return CompiledOp(Program(*found))


def compile_all(source: Source) -> tuple[CompiledOp, ...]:
    """Every op of a spec, in order. SpecError with the mistakes of all of them."""
    compiled: list[CompiledOp] = []
    errors: list[SpecError] = []
    for op in sound_ops(source):
        try:
            compiled.append(CompiledOp(Program(op, plan(op))))
        except SpecError as error:
            errors.extend(error.errors)
    raise_all(tuple(errors))
    return tuple(compiled)


def sound_ops(source: Source) -> tuple[Op, ...]:
    """The ops of a file. SpecError with every mistake where there is one, those that only facts show among them."""
    ops, mistakes = check_all(source)
    raise_all(mistakes and (*mistakes, *mistakes_of(ops)))
    return ops


def mistakes_of(ops: Sequence[Op]) -> tuple[SpecError, ...]:
    """What only the facts of their masks show."""
    found: list[SpecError] = []
    for op in ops:
        try:
            plan(op)
        except SpecError as error:
            found.extend(error.errors)
    return tuple(found)


def _reduce(op: CompiledOp) -> tuple[Callable[[Source, str | None], CompiledOp], tuple[Source, str]]:
    """An op is pickled as its spec, and compiled again where it is loaded."""
    return compile_source, (op.ir.span.source, op.name)


copyreg.pickle(CompiledOp, _reduce)


def pick_op(ops: tuple[Op, ...], name: str | None) -> Op:
    """The only op, or the one of several with this name."""
    if name is None:
        if len(ops) > 1:
            raise SeveralOps(ops)
        return ops[0]
    for op in ops:
        if op.name == name:
            return op
    raise NoSuchOp(name, ops)
