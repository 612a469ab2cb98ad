"""Verification and cleaning of kernel IR, between its construction and the printer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from sma_compiler.kernel.build import TileError
from sma_compiler.kernel.nodes import (
    Assign,
    Binary,
    Call,
    Do,
    Expr,
    For,
    Function,
    If,
    Name,
    Raise,
    Return,
    Section,
    Statement,
    Tile,
    names,
    operands,
)

GLOBALS = frozenset({"tl", "triton", "torch", "float", "max", "min", "range", "ValueError"})
"""What an emitted file can name without defining it."""
UNUSED = "_"
"""Stands for an item of a tuple that nothing reads."""


def verify(function: Function, known: Iterable[str]) -> None:
    """Check that every name is defined before it is used, and that a variable keeps its type.

    Args:
        function: a kernel or a launcher.
        known: names of the file: helpers, other functions.

    Raises:
        TileError: the function is not well formed.
    """
    defined = {*GLOBALS, *known, *(parameter.name for parameter in function.parameters)}
    _verify(function.body, defined, {}, function.name, {})


def _verify(
    body: Iterable[Statement],
    defined: set[str],
    types: dict[str, Tile | None],
    where: str,
    optional: Mapping[Expr, frozenset[str]],
) -> None:
    """Check a block. optional: what is defined wherever a condition `pointer is not None` of a kernel holds."""
    optional = dict(optional)
    for statement in body:
        for expr in _expressions(statement):
            unknown = names(expr) - defined
            if unknown:
                raise TileError(f"{where}: {', '.join(sorted(unknown))} used before it is defined")
        match statement:
            case Assign(targets=targets):
                for target in targets:
                    if target.name == UNUSED:
                        continue
                    if types.setdefault(target.name, target.tile) != target.tile:
                        raise TileError(f"{where}: {target.name} changes its type")
                    defined.add(target.name)
            case For(variable=variable, body=inner):
                _verify(inner, {*defined, variable.name}, dict(types), where, optional)
            case If(condition=condition, body=inner, orelse=orelse):
                branches = [defined | optional.get(condition, frozenset()), set(defined)]
                _verify(inner, branches[0], types, where, optional)
                _verify(orelse, branches[1], types, where, optional)
                defined |= branches[0] & branches[1]
                if isinstance(condition, Binary) and condition.op == "is not" and condition.left.tile is not None:
                    optional[condition] = frozenset(branches[0] - defined)


def _expressions(statement: Statement) -> tuple[Expr, ...]:
    """The expressions of a statement itself, not of its blocks."""
    match statement:
        case Assign(value=value) | Do(value=value) | Raise(value=value):
            return (value,)
        case For(iterable=iterable):
            return (iterable,)
        case If(condition=condition):
            return (condition,)
        case Return(value=value):
            return () if value is None else (value,)
    return ()


def prune(function: Function) -> Function:
    """The function without variables that nothing reads, parameters included where the kernel is called by name."""
    body = function.body
    while True:
        used = _used(body)
        cleaned = _clean(body, used)
        if cleaned == body:
            break
        body = cleaned
    return replace(function, body=body)


def _used(body: Iterable[Statement]) -> set[str]:
    """Names that some statement reads for another purpose than giving itself a new value."""
    found: set[str] = set()
    for statement in body:
        for expr in _expressions(statement):
            read = set(names(expr))
            if isinstance(statement, Assign):
                read -= {target.name for target in statement.targets}
            found |= read
        match statement:
            case For(body=inner):
                found |= _used(inner)
            case If(body=inner, orelse=orelse):
                found |= _used(inner) | _used(orelse)
    return found


def mentioned(body: Iterable[Statement]) -> frozenset[str]:
    """Every name that a block reads or binds."""
    found: set[str] = set()
    for statement in body:
        for expr in _expressions(statement):
            found |= names(expr)
        match statement:
            case For(body=inner):
                found |= mentioned(inner)
            case If(body=inner, orelse=orelse):
                found |= mentioned(inner) | mentioned(orelse)
    return frozenset(found)


def _clean(body: tuple[Statement, ...], used: set[str], looped: bool = False) -> tuple[Statement, ...]:
    """A block without what nothing reads. looped: whether it is in a loop, where a name must keep its type."""
    kept: list[Statement] = []
    for statement in body:
        match statement:
            case Assign(targets=targets, value=value):
                if len(targets) > 1 and any(target.name in used for target in targets):
                    held = tuple(x if x.name in used else _unused(x, looped) for x in targets)
                    kept.append(replace(statement, targets=held))
                elif any(target.name in used for target in targets) or _has_effect(value):
                    kept.append(statement)
            case For(body=inner):
                kept.append(replace(statement, body=_clean(inner, used, True)))
            case If(body=inner, orelse=orelse):
                kept.append(replace(statement, body=_clean(inner, used, looped), orelse=_clean(orelse, used, looped)))
            case _:
                kept.append(statement)
    return tuple(
        statement
        for n, statement in enumerate(kept)
        if not (isinstance(statement, Section) and (n + 1 == len(kept) or isinstance(kept[n + 1], Section)))
    )


def _unused(target: Name, looped: bool) -> Name:
    """What stands for a target that nothing reads."""
    return Name(target.tile, f"{UNUSED}{target.name.lstrip(UNUSED)}" if looped else UNUSED)


def _has_effect(value: Expr) -> bool:
    """Whether evaluating the expression does more than compute it (calls of the host may)."""
    if isinstance(value, Call) and value.tile is None:
        return True
    return any(_has_effect(x) for x in operands(value))
