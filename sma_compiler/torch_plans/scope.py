"""Evaluates an expression where its position letters have one meaning: values, logarithms and supports.

What a boolean factor or a `where` leaves out has the gradient 0, even where the derivative of what it leaves out is
infinite or NaN: there, functions are given the argument 1 instead of their own (a *guard* says where). So has a log
gate or an exponent of -inf, which leaves out all that it is made of (`Scope.limit`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple

import torch

from sma_compiler.ir.nodes import Apply, At, Const, Expr, Kind, Lag, Reduce, Rename, Rope, one_less_exp
from sma_compiler.torch_plans import functions
from sma_compiler.torch_plans.guards import Guard, Guards
from sma_compiler.torch_plans.named import Named, aligned
from sma_compiler.torch_plans.named_ops import (
    add,
    any_over,
    both,
    dropped,
    look_up,
    rope,
    select,
    spread,
)
from sma_compiler.torch_plans.readable import readable
from sma_compiler.torch_plans.traits import Traits


class Mode(Enum):
    """What is asked of a node: its value, its value in fp64, its logarithm, or where nothing selects it away."""

    PLAIN = "plain"
    WIDE = "wide"
    LOG = "log"
    SUPPORT = "support"


class Ask(NamedTuple):
    """One thing to evaluate."""

    node: Expr
    mode: Mode
    guard: Guard | None


class Rule(NamedTuple):
    """How: the operands to ask for, and what to make of their values."""

    needs: Sequence[Ask]
    combine: Callable[..., Named]


class Scope(ABC):
    """Evaluates expressions in `dtype` (and what feeds phases in fp64); subclasses say what the leaves are."""

    def __init__(self, dtype: torch.dtype, device: torch.device, traits: Traits) -> None:
        self.dtype = dtype
        self.device = device
        self.traits = traits
        self._done: dict[Ask, Named] = {}
        self._limits: dict[tuple[Expr, Mode], Named | None] = {}
        self._guards = Guards()

    @abstractmethod
    def leaf(self, node: Expr, mode: Mode) -> Named | None:
        """The value of a node whose operands are evaluated elsewhere; None: it has operands here."""

    @abstractmethod
    def axis_size(self, axis: str) -> int:
        """The size of an axis in this call."""

    def value(self, expr: Expr, mode: Mode = Mode.PLAIN) -> Named:
        """The value of an expression (or its logarithm, its support)."""
        return self._evaluated(self._ask(expr, mode, None))

    def limit(self, expr: Expr, mode: Mode = Mode.PLAIN) -> Named:
        """The value of an expression, with gradients only where it is not -inf."""
        found = self.value(expr, mode)
        if expr.kind is not Kind.REAL or self.traits.linear(expr):
            return found
        guard = self._limited(None, expr, mode, found)
        if guard is None:
            return found
        return select(guard.holds, self._evaluated(self._ask(expr, mode, guard)), -torch.inf)

    def _evaluated(self, root: Ask) -> Named:
        """One thing and all that it needs, without recursion."""
        rules: dict[Ask, Rule] = {}
        stack = [root]
        while stack:
            ask = stack[-1]
            if ask in self._done:
                stack.pop()
                continue
            missing = [need for need in self._supports(ask) if need not in self._done]
            if not missing:
                if ask not in rules:
                    rules[ask] = self._rule(ask)
                rule = rules[ask]
                missing = [need for need in rule.needs if need not in self._done]
                if not missing:
                    self._done[ask] = rule.combine(*(self._done[need] for need in rule.needs))
                    del rules[ask]
            stack.extend(reversed(missing))
        return self._done[root]

    def number(self, value: float, dtype: torch.dtype) -> Named:
        """A number as a tensor."""
        return Named(torch.full((), value, dtype=dtype, device=self.device), ())

    def _width(self, mode: Mode) -> torch.dtype:
        return torch.float64 if mode is Mode.WIDE else self.dtype

    def _ask(self, node: Expr, mode: Mode, guard: Guard | None) -> Ask:
        if mode is Mode.WIDE and (node.kind is not Kind.REAL or self.dtype == torch.float64):
            mode = Mode.PLAIN
        if mode is Mode.SUPPORT or (mode is not Mode.LOG and self.traits.linear(node)):
            guard = None
        return Ask(node, mode, guard)

    def _asks(self, nodes: Sequence[Expr], mode: Mode, guard: Guard | None = None) -> list[Ask]:
        return [self._ask(node, mode, guard) for node in nodes]

    def _selecting(self, node: Expr) -> tuple[Expr, ...]:
        """The operands that select: where they are 0, a product or a quotient is."""
        match node:
            case Apply(fn="where", args=(condition, _, _)):
                return (condition,)
            case Apply(fn="mul", args=args) if node.kind is not Kind.BOOL:
                return tuple(arg for arg in args if self.traits.parts(arg))
            case Apply(fn="div", args=(x, _)) if self.traits.parts(x):
                return (x,)
        return ()

    def _supports(self, ask: Ask) -> list[Ask]:
        """What must be known before the guards of the operands are."""
        if ask.mode is Mode.SUPPORT:
            return []
        found = self._asks(self._selecting(ask.node), Mode.SUPPORT)
        exponent = self._exponent(ask.node)
        return found if exponent is None else [*found, self._ask(exponent, Mode.PLAIN, None)]

    def _exponent(self, node: Expr) -> Expr | None:
        """The argument of an exponential, where its own derivatives may be infinite."""
        match node:
            case Apply(fn="exp", args=(x,)) if x.kind is Kind.REAL and not self.traits.linear(x):
                return x
            case Apply(fn="sub", args=(one, other)) if one_less_exp(one, other) is not None:
                return self._exponent(other)
            case Apply(fn="mul", args=args) if self._selecting(node):
                found = [self._exponent(arg) for arg in args if arg.kind is not Kind.BOOL]
                return found[0] if len(found) == 1 else None
        return None

    def _limited(self, guard: Guard | None, expr: Expr, mode: Mode, value: Named) -> Guard | None:
        """A guard, and where an expression is not -inf; the guard as it is, where that is known to be nowhere."""
        key = expr, mode
        if key not in self._limits:
            dead = functions.is_infinite(value.data)
            known = dead.device.type == "cpu" and readable(dead) and not bool(dead.any())
            self._limits[key] = None if known else Named(~dead, value.axes)
        holds = self._limits[key]
        return guard if holds is None else self._guards.meet(guard, holds, ("limit", *key))

    def _inside_exp(self, guard: Guard | None, x: Expr) -> Guard | None:
        """The guard of an exponent under that of its exponential."""
        known = self._done.get(self._ask(x, Mode.PLAIN, None))
        return guard if known is None or self.traits.linear(x) else self._limited(guard, x, Mode.PLAIN, known)

    def _support_of(self, node: Expr) -> Named:
        return self._done[self._ask(node, Mode.SUPPORT, None)]

    def _within(self, guard: Guard | None, selecting: Sequence[Expr]) -> Guard:
        """The guard of the operands of a product that some of them select."""
        for node in selecting:
            parts = self.traits.parts(node)
            if guard is None or not parts <= guard.parts:
                guard = self._guards.meet(guard, self._support_of(node), (node,), parts)
        assert guard is not None
        return guard

    def _rule(self, ask: Ask) -> Rule:
        node, mode, guard = ask
        if mode is Mode.SUPPORT:
            return self._support_rule(node)
        if mode is Mode.LOG:
            return self._log_rule(node, guard)
        if guard is None:
            found = self.leaf(node, mode)
            if found is not None:
                return Rule((), lambda: found)
        match node:
            case Apply(fn="where"):
                return self._where_rule(node, mode, guard)
            case Apply() if self._selecting(node):
                return self._product_rule(node, mode, guard)
            case Apply(fn="exp", args=(x,)) if self._exponent(node) is not None:
                return self._exp_rule(x, mode, guard)
            case Apply(fn="sub", args=args) if (exponent := one_less_exp(*args)) is not None:
                return self._exp_rule(exponent, mode, guard, _one_less)
            case Apply(fn="sin" | "cos", args=args):
                return Rule(self._asks(args, Mode.WIDE, guard), self._pointwise(node, mode, guard))
            case Apply(args=args):
                return Rule(self._asks(args, mode, guard), self._pointwise(node, mode, guard))
            case Reduce(fn=fn, x=x, axis=axis):
                guard = self._guards.without(guard, axis)
                return Rule([self._ask(x, mode, guard)], lambda x: self._reduce(fn, x, axis, self._width(mode)))
            case Rename(x=x, old=old, new=new):
                guard = self._guards.renamed(guard, new, old)
                return Rule([self._ask(x, mode, guard)], lambda x: x.rename(old, new))
            case Rope(x=x, angle=angle):
                guard = self._guards.without(self._guards.without(guard, "key"), "mode")
                needs = [self._ask(x, mode, guard), self._ask(angle, Mode.WIDE, guard)]
                return Rule(needs, lambda x, angle: rope(*self._guarded(guard, x.to(self._width(mode)), angle)))
            case Lag(table=table, index=index):
                needs = [self._ask(table, mode, None), self._ask(index, Mode.PLAIN, None)]
                return Rule(needs, lambda table, index: look_up(table, "lag", index))
            case Const(value=value):
                return Rule((), lambda: self.number(value, _dtype_of(node.kind, self._width(mode))))
        raise TypeError(f"{type(node).__name__} has no value here")

    def _guarded(self, guard: Guard | None, *args: Named) -> tuple[Named, ...]:
        """Arguments of a function, 1 where its value is not used."""
        if guard is None:
            return args
        return tuple(select(guard.holds, x, 1) if x.data.is_floating_point() else x for x in args)

    def _pointwise(self, node: Apply, mode: Mode, guard: Guard | None) -> Callable[..., Named]:
        dtype = self._width(mode)

        def combine(*args: Named) -> Named:
            if node.kind is Kind.REAL and node.fn not in functions.LINEAR:
                args = self._guarded(guard, *args)
            axes, views = aligned(*args)
            found = functions.apply(node.fn, views, node.kind, torch.float64 if node.fn in _PHASE else dtype)
            return Named(found.to(_dtype_of(node.kind, dtype)), axes)

        return combine

    def _where_rule(self, node: Apply, mode: Mode, guard: Guard | None) -> Rule:
        """`where(c, a, b)`: each branch is used where the condition chooses it."""
        condition, yes, no = node.args
        held = self._support_of(condition)
        fails = Named(~held.data, held.axes)
        holds = self._guards.meet(guard, held, (condition, True), frozenset((condition,)))
        other = self._guards.meet(guard, fails, (condition, False))
        needs = [self._ask(condition, Mode.PLAIN, None), self._ask(yes, mode, holds), self._ask(no, mode, other)]

        def combine(condition: Named, yes: Named, no: Named) -> Named:
            axes, (chosen, first, second) = aligned(condition, yes, no)
            dtype = self.dtype if mode is Mode.LOG else _dtype_of(node.kind, self._width(mode))
            return Named(torch.where(chosen, first.to(dtype), second.to(dtype)), axes)

        return Rule(needs, combine)

    def _product_rule(self, node: Apply, mode: Mode, guard: Guard | None) -> Rule:
        """A product or quotient that is 0 wherever one of its operands is selected away."""
        selecting = self._selecting(node)
        inner = self._within(guard, selecting)
        selected = frozenset[Expr]().union(*(self.traits.parts(operand) for operand in selecting))
        outside = guard is not None and selected <= guard.parts  # whoever set the guard selects
        numbers = [arg for arg in node.args if arg.kind is not Kind.BOOL]
        if node.fn == "mul" and len(numbers) == 1:
            (only,) = numbers
            if isinstance(only, Apply) and only.fn == "exp":
                return self._exp_rule(only.args[0], mode, inner)
            return Rule([self._ask(only, mode, inner)], lambda x: x if outside else select(inner.holds, x, 0))
        pointwise = self._pointwise(node, mode, inner)
        return Rule(
            self._asks(node.args, mode, inner),
            lambda *args: pointwise(*args) if outside else select(inner.holds, pointwise(*args), 0),
        )

    def _exp_rule(
        self, x: Expr, mode: Mode, guard: Guard | None, of: Callable[[torch.Tensor], torch.Tensor] = torch.exp
    ) -> Rule:
        """exp(x), or `of` x, where its guard holds, and as of -inf elsewhere; where x is -inf it has the gradient 0."""
        within = self._inside_exp(guard, x)

        def combine(x: Named) -> Named:
            x = x.to(self._width(mode))
            held = x if within is None else select(within.holds, x, -torch.inf)
            return Named(of(held.data), held.axes)

        return Rule([self._ask(x, mode, within)], combine)

    def _reduce(self, fn: str, x: Named, axis: str, dtype: torch.dtype) -> Named:
        x = spread(x, axis, self.axis_size(axis))
        at, rest = x.axes.index(axis), dropped(x.axes, axis)
        if fn == "sum":
            return Named(x.data.sum(at), rest)
        data = x.data.to(dtype)
        return Named(data.mean(at), rest) if fn == "mean" else Named(data.softmax(at), x.axes)

    def _support_rule(self, node: Expr) -> Rule:
        """Where no boolean factor and no `where` makes the node 0 (`Traits.parts` is not empty)."""
        parts = self.traits.parts
        match node:
            case Const(value=value):
                return Rule((), lambda: self.number(value, torch.bool))
            case Expr(kind=Kind.BOOL):
                return Rule([self._ask(node, Mode.PLAIN, None)], lambda holds: holds)
            case Apply(fn="mul", args=args):
                operands = [arg for arg in args if parts(arg)]
                return Rule(self._asks(operands, Mode.SUPPORT), _all)
            case Apply(fn="neg" | "abs" | "div", args=(x, *_)):
                return Rule([self._ask(x, Mode.SUPPORT, None)], lambda holds: holds)
            case Apply(fn="add" | "sub", args=args):
                return Rule(self._asks(args, Mode.SUPPORT), lambda a, b: _not(both(_not(a), _not(b))))
            case Apply(fn="where", args=(condition, *branches)):
                operands = [branch for branch in branches if parts(branch)]
                needs = [self._ask(condition, Mode.PLAIN, None), *self._asks(operands, Mode.SUPPORT)]
                return Rule(needs, lambda holds, *rest: self._where_support(holds, [parts(b) for b in branches], rest))
            case Reduce(x=x, axis=axis):
                return Rule([self._ask(x, Mode.SUPPORT, None)], lambda holds: any_over(holds, axis))
            case Rename(x=x, old=old, new=new):
                return Rule([self._ask(x, Mode.SUPPORT, None)], lambda holds: holds.rename(old, new))
        raise TypeError(f"{type(node).__name__} has no support")

    def _where_support(self, condition: Named, known: Sequence[object], supports: Sequence[Named]) -> Named:
        rest = iter(supports)
        yes, no = (next(rest) if one else self.number(True, torch.bool) for one in known)
        axes, (chosen, first, second) = aligned(condition, yes, no)
        return Named(torch.where(chosen, first, second), axes)

    def _log_rule(self, node: Expr, guard: Guard | None) -> Rule:
        """The logarithm of a node that is never negative where it is used; -inf where it is 0."""
        positive = self.traits.positive
        match node:
            case Expr(kind=Kind.BOOL):
                zero = self.number(0, self.dtype)
                return Rule([self._ask(node, Mode.PLAIN, None)], lambda holds: select(holds, zero, -torch.inf))
            case At(x=x) if positive(x) and (found := self.leaf(node, Mode.LOG)) is not None:
                return Rule((), lambda: found)
            case Apply(fn="exp", args=(x,)):
                return self._log_exp_rule(x, guard)
            case Apply(fn="sigmoid", args=(x,)):
                return Rule(
                    [self._ask(x, Mode.PLAIN, guard)],
                    lambda x: self._map(functions.REAL_FUNCTIONS["logsigmoid"], *self._guarded(guard, x)),
                )
            case Apply(fn="pow", args=(base, exponent)) if positive(node):
                return Rule(
                    [self._ask(base, Mode.LOG, guard), self._ask(exponent, Mode.PLAIN, guard)],
                    lambda base, exponent: self._map(functions.scaled_log, *self._guarded(guard, base, exponent)),
                )
            case Apply(fn="where"):
                return self._where_rule(node, Mode.LOG, guard)
            case Apply(fn="mul" | "div", args=args) if any(positive(arg) for arg in args):
                return self._log_product_rule(node, guard)
            case Apply(fn="add" | "min" | "max" as fn, args=args) if positive(node):
                return Rule(self._asks(args, Mode.LOG, guard), lambda *args: self._map(functions.OF_LOGS[fn], *args))
            case Reduce(fn="sum" | "mean" as fn, x=x, axis=axis) if positive(x):
                guard = self._guards.without(guard, axis)
                return Rule([self._ask(x, Mode.LOG, guard)], lambda x: self._log_total(fn, x, axis))
            case Rename(x=x, old=old, new=new):
                guard = self._guards.renamed(guard, new, old)
                return Rule([self._ask(x, Mode.LOG, guard)], lambda x: x.rename(old, new))
        return Rule([self._ask(node, Mode.PLAIN, guard)], lambda x: self._map(functions.safe_log, x))

    def _log_exp_rule(self, x: Expr, guard: Guard | None) -> Rule:
        within = self._inside_exp(guard, x)

        def combine(x: Named) -> Named:
            return x.to(self.dtype) if within is None else select(within.holds, x.to(self.dtype), -torch.inf)

        return Rule([self._ask(x, Mode.PLAIN, within)], combine)

    def _log_product_rule(self, node: Apply, guard: Guard | None) -> Rule:
        sign = -1 if node.fn == "div" else 1
        selecting = self._selecting(node)
        if not selecting:
            return Rule(self._asks(node.args, Mode.LOG, guard), lambda a, b: add(a, Named(sign * b.data, b.axes)))
        inner = self._within(guard, selecting)
        factors = [arg for arg in node.args if arg.kind is not Kind.BOOL]

        def combine(first: Named, *rest: Named) -> Named:
            total = add(first, *(Named(sign * one.data, one.axes) for one in rest))
            return select(inner.holds, total, -torch.inf)

        return Rule(self._asks(factors, Mode.LOG, inner), combine)

    def _log_total(self, fn: str, x: Named, axis: str) -> Named:
        size = self.axis_size(axis)
        x = spread(x, axis, size)
        total = functions.log_sum(x.data, x.axes.index(axis))
        if fn == "mean":
            total = total - torch.full_like(total, size).log()
        return Named(total, dropped(x.axes, axis))

    def _map(self, fn: Callable[..., torch.Tensor], *args: Named) -> Named:
        axes, views = aligned(*(arg.to(self.dtype) for arg in args))
        return Named(fn(*views), axes)


_PHASE = frozenset({"sin", "cos"})


def _dtype_of(kind: Kind, dtype: torch.dtype) -> torch.dtype:
    return {Kind.BOOL: torch.bool, Kind.INT: torch.int64, Kind.REAL: dtype}[kind]


def _one_less(x: torch.Tensor) -> torch.Tensor:
    """1 - exp(x)."""
    return -torch.expm1(x)


def _not(holds: Named) -> Named:
    return Named(~holds.data, holds.axes)


def _all(*conditions: Named) -> Named:
    found = conditions[0]
    for condition in conditions[1:]:
        found = both(found, condition)
    return found
