"""Evaluates tensors (expressions without positions), and factors of masks along one position.

Real numbers are computed in one dtype, except that what feeds the phases of sin, cos and rope is computed in fp64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sma_compiler.ir.graph import sort_axes
from sma_compiler.ir.nodes import (
    Apply,
    At,
    Attend,
    Const,
    Expr,
    Kind,
    MaskTimes,
    Param,
    ParamDecl,
    Position,
    Size,
    Solve,
    postorder,
)
from sma_compiler.torch_plans import functions
from sma_compiler.torch_plans.frame import Frame
from sma_compiler.torch_plans.named import Named
from sma_compiler.torch_plans.named_ops import spread
from sma_compiler.torch_plans.scope import Mode, Scope
from sma_compiler.torch_plans.traits import Traits

Number = int | float


def bind_params(params: Sequence[ParamDecl], arguments: Mapping[str, Tensor | Number]) -> dict[str, Named | Number]:
    """The arguments under their names, tensors with named axes.

    A tensor of head size G serves head h with entry h // (H / G), H the largest head size: its heads are repeated.
    """
    found: dict[str, Named | Number] = {}
    for param in params:
        value = arguments[param.name]
        if isinstance(value, Tensor):
            axes = sort_axes(param.dims)
            found[param.name] = Named(value.permute([param.dims.index(axis) for axis in axes]), axes)
        else:
            found[param.name] = value
    tensors = [value for value in found.values() if isinstance(value, Named)]
    heads = max((value.size("head") for value in tensors), default=1)
    return {name: _grouped(value, heads) if isinstance(value, Named) else value for name, value in found.items()}


def _grouped(x: Named, heads: int) -> Named:
    size = x.size("head")
    if "head" not in x.axes or size == heads:
        return x
    if size == 1:
        return spread(x, "head", heads)
    return Named(x.data.repeat_interleave(heads // size, x.axes.index("head"), output_size=heads), x.axes)


class Evaluator(Scope):
    """Evaluates the tensors of one call.

    params: by name, heads already repeated (`bind_params`). sizes: of the axes in this call. dtype: of real numbers.
    traits: what is known of the expressions from other calls.
    """

    def __init__(
        self,
        params: Mapping[str, Named | Number],
        sizes: Mapping[str, int],
        dtype: torch.dtype,
        traits: Traits | None = None,
    ) -> None:
        tensors = [value for value in params.values() if isinstance(value, Named)]
        device = tensors[0].data.device if tensors else torch.device("cpu")
        super().__init__(dtype, device, traits or Traits())
        self.params = params
        self.sizes = sizes
        self._bound: dict[Expr, Named] = {}
        self._along: dict[str, Scope] = {}

    def tensor(self, expr: Expr, wide: bool = False) -> Named:
        """An expression without positions, in fp64 where `wide`."""
        return self.value(expr, Mode.WIDE if wide else Mode.PLAIN)

    def along(self, expr: Expr, frame: Frame, log: bool = False) -> Named:
        """An expression that mentions at most one position letter, which becomes the `time` axis of the frame.

        A static expression comes back without `time`. `log`: its logarithm, -inf where it is 0.
        """
        return self._scope(expr, frame).value(expr, Mode.LOG if log else Mode.PLAIN)

    def gate(self, expr: Expr, frame: Frame) -> Named:
        """A log gate, like `along`; where it is -inf, all that it is made of has the gradient 0.

        But the logarithm of a static base (`gamma ** (i - j)`): a base of 0 has a gradient other than 0, which its
        logarithm does not know.
        """
        scope = self._scope(expr, frame)
        if isinstance(expr, Apply) and expr.fn == "log" and "time" not in expr.axes and not expr.positions:
            return scope.value(expr)
        return scope.limit(expr)

    def _scope(self, expr: Expr, frame: Frame) -> Scope:
        if not expr.positions:
            return self
        (letter,) = expr.positions
        if letter not in self._along:
            self._along[letter] = Along(self, letter, frame)
        return self._along[letter]

    def bind(self, expr: Expr, value: Named) -> None:
        """Says what the value of a contraction is, before anything that uses it is evaluated."""
        self._bound[expr] = value

    def axis_size(self, axis: str) -> int:
        return self.sizes[axis.split("'")[0]]

    def leaf(self, node: Expr, mode: Mode) -> Named | None:
        dtype = torch.float64 if mode is Mode.WIDE else self.dtype
        match node:
            case Param(name=name):
                value = self.params[name]
                if not isinstance(value, Named):
                    value = self.number(value, torch.float64 if node.kind is Kind.REAL else torch.int64)
                return value.to({Kind.BOOL: torch.bool, Kind.INT: torch.int64, Kind.REAL: dtype}[node.kind])
            case Size(axis=axis):
                return self.number(self.axis_size(axis), torch.int64)
            case Attend() | MaskTimes() | Solve():
                value = self._bound[node]
                return value.to(dtype) if node.kind is Kind.REAL else value
        return None

    def static_int(self, expr: Expr) -> int:
        """An integer expression of constants, sizes and number parameters, as a Python integer."""
        done: dict[Expr, Number] = {}
        for node in postorder((expr,)):
            match node:
                case Const(value=value):
                    done[node] = value
                case Size(axis=axis):
                    done[node] = self.axis_size(axis)
                case Param(name=name):
                    number = self.params[name]
                    assert not isinstance(number, Named), f"{name} is no number"
                    done[node] = number
                case Apply(fn=fn, args=args):
                    done[node] = functions.static(fn, [done[arg] for arg in args])
                case _:
                    raise TypeError(f"{type(node).__name__} is no static integer")
        return int(done[expr])


class Along(Scope):
    """Where one letter is the `time` axis of a frame."""

    def __init__(self, evaluator: Evaluator, letter: str, frame: Frame) -> None:
        super().__init__(evaluator.dtype, evaluator.device, evaluator.traits)
        self.evaluator = evaluator
        self.letter = letter
        self.frame = frame

    def axis_size(self, axis: str) -> int:
        return self.evaluator.axis_size(axis)

    def leaf(self, node: Expr, mode: Mode) -> Named | None:
        match node:
            case _ if not node.positions:
                return self.evaluator.value(node, mode)
            case At(x=x):
                return self.evaluator.limit(x, mode)
            case Position():
                return positions(self.frame.start, self.frame.length, self.device)
        return None


def positions(start: Tensor | None, length: int, device: torch.device) -> Named:
    """Absolute positions start .. start + length - 1: [batch, time], or [time] where all rows start at 0."""
    steps = torch.arange(length, device=device)
    if start is None:
        return Named(steps, ("time",))
    return Named(start[:, None] + steps, ("batch", "time"))
