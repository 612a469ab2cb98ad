"""A file to checked ops: parses, defines, declares, expands; every mistake of the file is reported at once."""

from __future__ import annotations

from collections.abc import Mapping

from sma_compiler.errors import SpecError
from sma_compiler.ir.expand import Expander
from sma_compiler.ir.graph import Graph
from sma_compiler.ir.names import check_callable, check_fresh, define_all
from sma_compiler.ir.nodes import Expr, Kind, Op
from sma_compiler.ir.params import declare
from sma_compiler.ir.report import Budget, Definition, Enough, Report, Scope, quote
from sma_compiler.ir.rules import Rules
from sma_compiler.mistakes import (
    AfterReturn,
    DuplicateOp,
    NoOps,
    NoReturn,
    ResultAxis,
    ResultNotTensor,
    TooManyNodes,
)
from sma_compiler.source import Source, Span
from sma_compiler.syntax import tree
from sma_compiler.syntax.parse import parse_items, raise_all


def check_file(source: Source) -> tuple[Op, ...]:
    """The ops of a file, in order. SpecError with every mistake of the file: the one, or `SpecErrors` of several."""
    ops, mistakes = check_all(source)
    raise_all(mistakes)
    return ops


def check_all(source: Source) -> tuple[tuple[Op, ...], tuple[SpecError, ...]]:
    """The ops of a file that have no mistake, in order, and every mistake of the file."""
    parsed = parse_items(source)
    report = Report(parsed.errors)
    ops: list[Op] = []
    try:
        defs = define_all(parsed.file.items, parsed.lost, report)
        written = [item for item in parsed.file.items if isinstance(item, tree.Op)]
        if not written and not report.errors:
            report.add(NoOps(Span(source, 1, 1, 1, 1)))
        _check_names(written, report)
        budget = Budget()
        for item in written:
            ops.extend(_check_op(item, defs, budget, report))
    except TooManyNodes as mistake:
        report.errors.append(mistake)
    except Enough:
        pass
    return tuple(ops), tuple(report.errors)


def _check_names(written: list[tree.Op], report: Report) -> None:
    first: dict[str, int] = {}
    for op in written:
        at = tree.Name(op.name, span=op.name_span)
        check_callable(op.name, at, "op", report)
        if op.name in first:
            report.add(DuplicateOp(op.name_span, name=op.name, line=first[op.name]))
        first.setdefault(op.name, op.name_span.line)


def _check_op(op: tree.Op, defs: Mapping[str, Definition], budget: Budget, report: Report) -> list[Op]:
    """The checked op; nothing after a mistake."""
    before = len(report.errors)
    graph = Graph()
    params, values, taken = declare(op, graph, defs, report)
    declared = frozenset(axis for param in params if not param.number for axis in param.dims)
    expander = Expander(Rules(graph, report, budget), declared)
    result = _run(op, expander, values, taken, defs, report)
    if result is not None and len(report.errors) == before and not op.lost:
        _check_result(op, result, report)
    if result is None or len(report.errors) > before or op.lost:
        return []
    source = op.span.source
    lines = source.text.split("\n")[op.span.line - 1 : op.span.end_line]
    text = "\n".join(line.removesuffix("\r") for line in lines)
    return [Op(op.name, op.doc, params, result, op.span, text)]


def _run(
    op: tree.Op,
    expander: Expander,
    names: dict[str, Expr | None],
    taken: dict[str, tuple[str, int]],
    defs: Mapping[str, Definition],
    report: Report,
) -> Expr | None:
    """What the op returns; binds its statements' names as it goes."""
    result: Expr | None = None
    returned = False
    names.update(dict.fromkeys(op.lost))
    for statement in op.body:
        if returned:
            report.add(AfterReturn(statement.span))
            break
        value = expander.value(statement.value, Scope(names, defs))
        if isinstance(statement, tree.Return):
            result, returned = value, True
            continue
        at = tree.Name(statement.name, span=statement.name_span)
        if check_fresh(statement.name, at, taken, defs, report):
            names[statement.name] = value
            taken[statement.name] = ("a value", statement.name_span.line)
    if not returned and not op.lost:
        report.add(NoReturn(op.name_span, name=op.name))
    return result


def _check_result(op: tree.Op, result: Expr, report: Report) -> None:
    returned = next(statement for statement in op.body if isinstance(statement, tree.Return))
    value, what, hint = returned.value, "", ""
    if result.positions:
        what, hint = "a mask", "apply it: `L @ v` or `attend(L, q, k, v)`"
    elif "time" not in result.axes:
        what, hint = "the same at every position", "its parts over time are missing"
    elif result.kind is Kind.BOOL:
        what, hint = "true or false", "write `where(condition, x, y)`"
    if what:
        report.add(ResultNotTensor(value.span, text=quote(value), what=what, hint=hint))
        return
    for axis in ("mode", "lag", "level"):
        if axis in result.axes:
            report.add(ResultAxis(value.span, axis=axis))
