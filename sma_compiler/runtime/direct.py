"""Calls with gradients whose arguments are already what a kernel takes: straight from autograd to tapes.

`opaque.Forward` is what torch can trace, transform and map; on plain tensors its generality costs more time on the
host than the launches do. A call that was made once, and needs none of it, is made by the function here.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

from sma_compiler.runtime import job as launches
from sma_compiler.runtime.job import Job
from sma_compiler.runtime.kernels import Kernel
from sma_compiler.runtime.opaque import Backward
from sma_compiler.runtime.replay import Replays, form, plain


class Direct:
    """A call of one form. order: of each tensor parameter, the place of its argument among those of the call."""

    def __init__(self, job: Job, kernel: Kernel, order: Sequence[int]) -> None:
        self.job = job
        self.kernel = kernel
        self.order = tuple(order)
        self.replays = Replays[tuple[Tensor, ...]]()

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        """The result, differentiable."""
        found: Tensor = _apply(self, *[inputs[at] for at in self.order])
        return found

    def forward(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The result, and the divisors of a normalised op."""
        return self.replays.call("forward", tensors, lambda: launches.forward(self.job, self.kernel, tensors))

    def backward(self, needs: tuple[bool, ...], dy: Tensor, held: Sequence[Tensor], hooked: bool) -> Sequence[Tensor]:
        """The gradients that are needed. held: the tensors, then what was saved beside them.

        hooked: whether hooks kept them, who may give them back in another form.
        """
        own = len(self.order)

        def run() -> tuple[Tensor, ...]:
            return launches.backward(self.job, self.kernel, held[:own], dy, held[own:], (), needs)

        key: Hashable = needs, form(dy), tuple([form(x) for x in held]) if hooked else None
        return self.replays.call(key, (*held, dy), run)


class _Context(Protocol):
    """What autograd hands to `_Direct`, with what is kept there."""

    call: Direct
    hooked: bool
    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep tensors for the gradients."""


class _Direct(Function):
    @staticmethod
    def forward(ctx: _Context, call: Direct, *tensors: Tensor) -> Tensor:
        found = call.forward(tensors)
        ctx.call = call
        ctx.hooked = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        saved = found[0 if call.job.keeps_result else 1 :] if call.job.want_norm else ()
        ctx.save_for_backward(*tensors, *saved)
        return found[0]

    @staticmethod
    def backward(ctx: _Context, dy: Tensor) -> tuple[Tensor | None, ...]:
        call = ctx.call
        needs = ctx.needs_input_grad[1:]
        held = ctx.saved_tensors
        if torch.is_grad_enabled() or not plain((dy,)):
            grads = iter(Backward.apply(call.job, needs, dy, *held))
        else:
            grads = iter(call.backward(needs, dy, held, ctx.hooked))
        return (None, *[next(grads) if need else None for need in needs])


_apply: Callable[..., Any] = super(Function, _Direct).apply
"""`_Direct.apply` without what it does for transforms, which are none here."""
