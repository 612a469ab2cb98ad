"""The pointwise functions of the language on torch tensors, and logarithms that have safe gradients."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from sma_compiler.ir.graph import COMPARISONS, LOGIC
from sma_compiler.ir.nodes import Kind

REAL_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "div": torch.div,
    "pow": torch.pow,
    "exp": torch.exp,
    "log": torch.log,
    "log2": torch.log2,
    "sqrt": torch.sqrt,
    "relu": torch.relu,
    "silu": functional.silu,
    "sigmoid": torch.sigmoid,
    "logsigmoid": functional.logsigmoid,
    "softplus": functional.softplus,
    "tanh": torch.tanh,
    "elu": functional.elu,
    "gelu": functional.gelu,
    "sin": torch.sin,
    "cos": torch.cos,
}
_COMPARE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {name: getattr(torch, name) for name in COMPARISONS}
_STATIC: dict[str, Callable[..., int | float | bool]] = {
    **{name: getattr(operator, name) for name in COMPARISONS},
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "floordiv": lambda a, b: a // b if b else 0,
    "mod": lambda a, b: a % b if b else 0,
    "pow": operator.pow,
    "neg": operator.neg,
    "abs": abs,
    "min": min,
    "max": max,
    "and": lambda a, b: a and b,
    "or": lambda a, b: a or b,
    "not": operator.not_,
    "where": lambda c, a, b: a if c else b,
}

LINEAR = frozenset({"add", "sub", "neg"})
"""Functions whose derivative does not depend on their arguments."""


def is_infinite(x: Tensor) -> Tensor:
    """Where x is -inf."""
    return x == -torch.inf


def _floor(divide: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """Floored division or remainder; integers divided by 0 give 0."""
    if a.is_floating_point():
        return divide(a, b)
    return torch.where(b == 0, 0, divide(a, torch.where(b == 0, 1, b)))


def _floor_divide(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b, rounding_mode="floor")


def apply(fn: str, args: Sequence[Tensor], kind: Kind, dtype: torch.dtype) -> Tensor:
    """A pointwise function of broadcastable tensors.

    kind: of the result. dtype: of real numbers. Booleans count as integers wherever they are added or compared.
    """
    if fn in LOGIC:
        return _logic(fn, args)
    if fn in COMPARISONS:
        left, right = _joined(args, dtype)
        return _COMPARE[fn](left, right)
    if fn == "where":
        yes, no = (arg.to(_dtype_of(kind, dtype)) for arg in args[1:])
        return torch.where(args[0], yes, no)
    if kind is Kind.BOOL:
        return torch.logical_and(*args)
    values = [arg.to(_dtype_of(kind, dtype)) for arg in args]
    match fn:
        case "add":
            return values[0] + values[1]
        case "sub":
            return values[0] - values[1]
        case "mul":
            return values[0] * values[1]
        case "neg":
            return -values[0]
        case "abs":
            return values[0].abs()
        case "floordiv":
            return _floor(_floor_divide, *values)
        case "mod":
            return _floor(torch.remainder, *values)
        case "min":
            return functools.reduce(torch.minimum, values)
        case "max":
            return functools.reduce(torch.maximum, values)
    return REAL_FUNCTIONS[fn](*values)


def static(fn: str, args: Sequence[int | float | bool]) -> int | float | bool:
    """The same functions on Python numbers, as far as bounds of a band use them."""
    return _STATIC[fn](*args)


def _dtype_of(kind: Kind, dtype: torch.dtype) -> torch.dtype:
    return {Kind.BOOL: torch.bool, Kind.INT: torch.int64, Kind.REAL: dtype}[kind]


def _joined(args: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    real = any(arg.is_floating_point() for arg in args)
    return [arg.to(dtype if real else torch.int64) for arg in args]


def _logic(fn: str, args: Sequence[Tensor]) -> Tensor:
    if fn == "not":
        return torch.logical_not(args[0])
    return functools.reduce(torch.logical_and if fn == "and" else torch.logical_or, args)


def safe_log(x: Tensor) -> Tensor:
    """log of x >= 0; at 0 it is -inf and has the gradient 0."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1).log(), -torch.inf)


def scaled_log(log: Tensor, exponent: Tensor) -> Tensor:
    """log(x ** exponent) from log(x): 0 where the exponent is 0, even for x = 0."""
    dead = is_infinite(log) & (exponent != 0)
    never = torch.where(exponent > 0, -torch.inf, torch.inf)
    return torch.where(dead, never.to(log.dtype), exponent * torch.where(is_infinite(log), 0, log))


def log_add(a: Tensor, b: Tensor) -> Tensor:
    """log(exp(a) + exp(b)); where both are -inf it is -inf and has the gradient 0."""
    top = finite(torch.maximum(a.detach(), b.detach()))
    return safe_log((a - top).exp() + (b - top).exp()) + top


def log_sum(x: Tensor, dim: int) -> Tensor:
    """torch.logsumexp, with the gradient 0 where every term is -inf; -inf over no terms at all."""
    if x.shape[dim] == 0:
        return x.sum(dim) - torch.inf
    top = finite(x.detach().amax(dim))
    return safe_log((x - top.unsqueeze(dim)).exp().sum(dim)) + top


def finite(top: Tensor) -> Tensor:
    """The largest entries of rows as something to subtract: 0 for rows of -inf."""
    return torch.where(is_infinite(top), 0, top)


def divide(x: Tensor, divisor: Tensor) -> Tensor:
    """x / divisor; 0 where the divisor is 0, gradients too."""
    zero = divisor == 0
    return torch.where(zero, 0, x / torch.where(zero, 1, divisor))


OF_LOGS: dict[str, Callable[..., Tensor]] = {"add": log_add, "min": torch.minimum, "max": torch.maximum}
"""What a function of numbers that are never negative does to their logarithms."""
