"""The parameters of an op: groups that share an annotation, default axes, kinds, and the order of dimensions."""

from __future__ import annotations

from collections.abc import Mapping

from sma_compiler.ir.graph import Graph
from sma_compiler.ir.names import check_callable, check_fresh
from sma_compiler.ir.nodes import AXES, Expr, Kind, ParamDecl
from sma_compiler.ir.report import Definition, Report, nearest
from sma_compiler.mistakes import MissingAnnotation, RepeatedAxis, UnknownAxis, UnknownKind
from sma_compiler.syntax import tree

DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "q": ("time", "head", "key"),
    "k": ("time", "head", "key"),
    "v": ("time", "head", "value"),
}
"""The axes of the three parameters that need no annotation."""

_KINDS = {"bool": Kind.BOOL, "int": Kind.INT, "real": Kind.REAL}


def declare(
    op: tree.Op, graph: Graph, defs: Mapping[str, Definition], report: Report
) -> tuple[tuple[ParamDecl, ...], dict[str, Expr | None], dict[str, tuple[str, int]]]:
    """The declared parameters, their values by name (None after a mistake), and what each name is for `check_fresh`."""
    decls: list[ParamDecl] = []
    values: dict[str, Expr | None] = {}
    taken: dict[str, tuple[str, int]] = {}
    annotated = _annotations(op, report)
    for param in op.params:
        fresh = check_fresh(param.name, _name_of(param), taken, defs, report)
        check_callable(param.name, _name_of(param), "parameter", report)
        taken.setdefault(param.name, ("a parameter", param.span.line))
        decl = annotated[id(param)] if fresh else None
        values.setdefault(param.name, None)
        if decl:
            decls.append(decl)
            values[param.name] = graph.param(decl.name, decl.kind, decl.dims, decl.number, decl.span)
    return tuple(decls), values, taken


def _annotations(op: tree.Op, report: Report) -> dict[int, ParamDecl | None]:
    """Each parameter with the kind and axes of its own annotation, its default, or the next annotation after it."""
    found: dict[int, ParamDecl | None] = {}
    waiting: list[tree.Param] = []
    for param in op.params:
        if param.kind is None and param.axes is None:
            if param.name in DEFAULTS:
                found[id(param)] = _decl(param, Kind.REAL, False, DEFAULTS[param.name])
            else:
                waiting.append(param)
            continue
        read = _read(param, report)
        for each in (*waiting, param):
            found[id(each)] = _decl(each, *read) if read else None
        waiting.clear()
    for param in waiting:
        report.add(MissingAnnotation(param.span, name=param.name))
        found[id(param)] = None
    return found


def _read(param: tree.Param, report: Report) -> tuple[Kind, bool, tuple[str, ...]] | None:
    """Kind, whether it is a Python number, and axes of one annotation; None after a mistake."""
    if param.kind is not None and (param.kind not in _KINDS or (param.axes is None and param.kind == "bool")):
        if param.kind in AXES:
            hint = f"write `{param.name}: [{param.kind}]`"
        elif param.axes is None:
            hint = "a number is `int` or `real`"
        else:
            hint = "a tensor is `[axes]`, `int[axes]`, `bool[axes]` or `real[axes]`"
        report.add(UnknownKind(param.span, name=param.kind, hint=hint))
        return None
    kind = Kind.REAL if param.kind is None else _KINDS[param.kind]
    axes: list[str] = []
    fits = True
    for axis in param.axes or ():
        if axis.name not in AXES:
            near = nearest(axis.name, AXES)
            guess = f"; did you mean `{near}`?" if near else ""
            report.add(UnknownAxis(axis.span, name=axis.name, axes=", ".join(AXES), guess=guess))
            fits = False
        elif axis.name in axes:
            report.add(RepeatedAxis(axis.span, name=axis.name, param=param.name))
            fits = False
        axes.append(axis.name)
    return (kind, param.axes is None, tuple(axes)) if fits else None


def _decl(param: tree.Param, kind: Kind, number: bool, axes: tuple[str, ...]) -> ParamDecl:
    batch = ("batch",) if "time" in axes or "batch" in axes else ()
    dims = batch + tuple(axis for axis in axes if axis != "batch")
    return ParamDecl(param.name, kind, number, dims, _name_of(param).span)


def _name_of(param: tree.Param) -> tree.Name:
    span = param.span
    stop = span.column + len(param.name)
    return tree.Name(param.name, span=type(span)(span.source, span.line, span.column, span.line, stop))
