"""What names are taken: axes, positions, functions with their arguments, the prelude; and the names in a `def`."""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from sma_compiler.ir.graph import FUNCTIONS
from sma_compiler.ir.nodes import AXES
from sma_compiler.ir.report import Definition, Report, Scope, nearest
from sma_compiler.mistakes import (
    BoundTwice,
    CallKeyword,
    DefinedLater,
    FunctionNotCalled,
    NotAFunction,
    PythonKeyword,
    ReservedName,
    UnknownFunction,
    UnknownName,
    WrongArity,
)
from sma_compiler.source import Span
from sma_compiler.syntax import tree
from sma_compiler.syntax.locate import prelude_source
from sma_compiler.syntax.parse import parse

POSITIONS = ("i", "j", "t")
SIZES = ("head", "key", "value", "mode")
"""The axes whose sizes an expression may use as numbers."""
REDUCTIONS = ("sum", "mean", "softmax")
CALL_KEYWORDS = frozenset(
    [
        "plan",
        "state",
        "backend",
        "precision",
        "initial_state",
        "return_state",
        "return_lse",
        "cu_seqlens",
        "inplace",
    ]
)


@dataclass(frozen=True)
class Signature:
    """How many arguments a function takes, the options it has, and a call to show. `most` None: any number."""

    least: int
    most: int | None
    example: str
    options: tuple[str, ...] = ()

    @property
    def count(self) -> str:
        """The number of arguments in words."""
        number = f"{self.least}" if self.most == self.least else f"{self.least} or more"
        return f"{number} argument{'' if number == '1' else 's'}"

    def fits(self, given: int) -> bool:
        """Whether a call may have this many arguments."""
        return given >= self.least and (self.most is None or given <= self.most)


SIGNATURES: Mapping[str, Signature] = {
    **{name: Signature(1, 1, f"{name}(x)") for name in FUNCTIONS - {"min", "max"}},
    "min": Signature(2, None, "min(x, y)"),
    "max": Signature(2, None, "max(x, y)"),
    "where": Signature(3, 3, "where(condition, x, y)"),
    "sum": Signature(2, 2, "sum(x, key)` or `sum(g[t], j < t <= i)"),
    "mean": Signature(2, 2, "mean(x, key)"),
    "softmax": Signature(2, 2, "softmax(x, key)"),
    "rope": Signature(2, 2, "rope(x, angle)"),
    "levels": Signature(1, 1, "levels(w)"),
    "transpose": Signature(1, 1, "transpose(L)"),
    "attend": Signature(4, 4, "attend(L, q, k, v)", ("normalize", "activation", "scale")),
    "solve": Signature(4, 4, "solve(L, a, b, u)"),
}


@cache
def prelude() -> Mapping[str, Definition]:
    """The definitions of `grammar/prelude.sma`, which every spec sees."""
    return _define(parse(prelude_source()).items, {}, Report())


def define_all(
    items: Iterable[tree.Op | tree.Define], lost: Mapping[str, Span], report: Report
) -> dict[str, Definition]:
    """The defs of a file upon the prelude. A def with a mistake in its names, or a lost one, is there but broken."""
    defs = dict(prelude())
    for name, span in lost.items():
        if name not in defs:
            defs[name] = Definition(name, None, tree.Number(0), len(defs), span, broken=True)
    return _define(items, defs, report)


def _define(
    items: Iterable[tree.Op | tree.Define], known: Mapping[str, Definition], report: Report
) -> dict[str, Definition]:
    defs = dict(known)
    written = [item for item in items if isinstance(item, tree.Define)]
    later = {item.name for item in written}
    for item in written:
        before = len(report.errors)
        if not check_fresh(item.name, tree.Name(item.name, span=item.name_span), {}, defs, report):
            continue
        _check_def_params(item, defs, report)
        _check_body(item, defs, later, report)
        params = None if item.params is None else tuple(param.id for param in item.params)
        broken = len(report.errors) > before
        prelude = not known
        defs[item.name] = Definition(item.name, params, item.value, len(defs), item.name_span, prelude, broken)
    return defs


def reserved(name: str) -> str:
    """What a reserved name is, in words; empty for a free one. The prelude's names are not looked at."""
    if name in POSITIONS:
        return "a position"
    if name in AXES:
        return "an axis"
    return "a function" if name in SIGNATURES else ""


def check_fresh(
    name: str, node: tree.Node, taken: Mapping[str, tuple[str, int]], defs: Mapping[str, Definition], report: Report
) -> bool:
    """Whether a parameter or local may have this name; `taken` says what a name is already and in which line."""
    what = reserved(name) or ("a definition of the prelude" if name in defs and defs[name].prelude else "")
    if what:
        report.add(ReservedName(node.span, name=name, what=what))
    elif name in taken:
        report.add(BoundTwice(node.span, name=name, what=taken[name][0], line=taken[name][1]))
    elif name in defs:
        report.add(BoundTwice(node.span, name=name, what="a definition", line=defs[name].span.line))
    else:
        return True
    return False


def check_callable(name: str, node: tree.Node, what: str, report: Report) -> None:
    """A mistake where Python could not call an op, or pass a parameter, of this name."""
    if name in CALL_KEYWORDS and what == "parameter":
        report.add(CallKeyword(node.span, name=name))
    elif keyword.iskeyword(name):
        report.add(PythonKeyword(node.span, name=name, what=what))


def _check_def_params(item: tree.Define, defs: Mapping[str, Definition], report: Report) -> None:
    taken: dict[str, tuple[str, int]] = {}
    for param in item.params or ():
        if check_fresh(param.id, param, taken, defs, report):
            taken[param.id] = ("a parameter", param.span.line)


def _check_body(item: tree.Define, defs: Mapping[str, Definition], later: set[str], report: Report) -> None:
    """The names in a def's body, which are wrong whether it is ever used or not."""
    names = {param.id for param in item.params or ()}
    scope = Scope(dict.fromkeys(names), defs)
    words = {id(option.value) for option in tree.walk(item.value) if isinstance(option, tree.Option)}
    for node in tree.walk(item.value):
        called = isinstance(node, tree.Call)
        name = node.fn if isinstance(node, tree.Call) else node.id if isinstance(node, tree.Name) else None
        if name is None or id(node) in words or (name in names and not called):
            continue
        if name in later and name not in defs:
            what = "is itself" if name == item.name else "comes later"
            report.add(DefinedLater(node.span, define=item.name, name=name, what=what))
        elif isinstance(node, tree.Call):
            check_call(node, scope, report)
        elif isinstance(node, tree.Name) and name not in POSITIONS and name not in AXES:
            check_name(node, scope, report)


def check_name(node: tree.Name, scope: Scope, report: Report) -> bool:
    """Whether a name that is no position and no axis stands for a value."""
    name = node.id
    define = scope.defs.get(name)
    if name in scope.names or (define and define.params is None):
        return True
    if define:
        report.say(FunctionNotCalled, scope, node, name=name, call=_call(define))
    elif name in SIGNATURES:
        report.say(FunctionNotCalled, scope, node, name=name, call=SIGNATURES[name].example)
    else:
        guess = nearest(name, (*scope.names, *scope.defs, *SIGNATURES, *POSITIONS, *AXES))
        hint = f"did you mean `{guess}`?" if guess else "declare it as a parameter, or bind it before"
        report.say(UnknownName, scope, node, name=name, hint=hint)
    return False


def check_call(node: tree.Call, scope: Scope, report: Report) -> bool:
    """Whether a call names a function, or a def with parameters, and gives it as many arguments as it takes."""
    name, given = node.fn, len(node.args)
    at = tree.Name(name, span=node.fn_span)
    define = scope.defs.get(name)
    if define and define.broken:
        return True
    if name in scope.names or (define and define.params is None):
        what = "a value" if name in scope.names else "a definition without parameters"
        report.say(NotAFunction, scope, at, name=name, what=what, hint=f"write `{name}` alone, or `{name} * ...`")
        return False
    if define:
        signature = Signature(len(define.params or ()), len(define.params or ()), _call(define))
    elif name in SIGNATURES:
        signature = SIGNATURES[name]
    else:
        guess = nearest(name, (*SIGNATURES, *(known for known in scope.defs if scope.defs[known].params is not None)))
        hint = f"did you mean `{guess}`?" if guess else "define it: `def name(x) = ...`"
        report.say(UnknownFunction, scope, at, name=name, hint=hint)
        return False
    if not signature.fits(given):
        words = {"name": name, "expected": signature.count, "got": given or "none", "call": signature.example}
        report.say(WrongArity, scope, at, **words)
        return False
    return True


def _call(define: Definition) -> str:
    return f"{define.name}({', '.join(define.params or ())})"
