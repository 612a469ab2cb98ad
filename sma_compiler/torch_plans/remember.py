"""What a call leaves behind, without its contractions: for kernels that give the result alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sma_compiler.ir.nodes import Expr, Op
from sma_compiler.plan.choose import Plans
from sma_compiler.torch_plans.contractions import within
from sma_compiler.torch_plans.elementary import Elementary
from sma_compiler.torch_plans.evaluate import Evaluator, Number, bind_params
from sma_compiler.torch_plans.frame import Frame
from sma_compiler.torch_plans.named_ops import arranged
from sma_compiler.torch_plans.sites import layout_of


def remember(
    op: Op,
    plans: Plans,
    arguments: Mapping[str, Tensor | Number],
    sizes: Mapping[str, int],
    compute: torch.dtype,
    state: Mapping[str, Tensor] | None,
    wanted: Sequence[Expr] = (),
    *,
    caches: bool,
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The state after the new positions of an op whose only other memory is caches, and some tensors over them.

    state: what an earlier call left, its caches in order; None is the empty state. wanted: [batch, time] each.
    caches: whether the state's caches are made as well.
    """
    layout = layout_of(op, plans)
    evaluator = Evaluator(bind_params(op.params, arguments), sizes, compute, layout.traits)
    start = None if state is None else state["position"]
    frame = Frame(sizes["batch"], sizes["time"], start, None, compute, compute, evaluator.device, evaluator)
    new = torch.full((frame.batch,), frame.length, dtype=torch.int64, device=frame.device)
    after = {"position": new if start is None else start + new}
    for site in layout.sites:
        own = None if state is None else within(state, f"{site.name}.")
        kept: dict[str, Tensor] = {}
        if isinstance(site, Elementary):
            value, kept = site.run(evaluator, frame, own)
            evaluator.bind(site.node, value)
        elif caches and (cache := site.cache(evaluator)) is not None:
            past = None if own is None else within(own, "cache.")
            line = cache.hold(cache.line(frame, past), evaluator, frame, past, cache.held)
            made = cache.renewed(line, evaluator, frame, None)
            kept = {f"cache.{name}": x for name, x in made.items()}
        after.update({f"{site.name}.{name}": x for name, x in kept.items()})
    shape = [frame.batch, frame.length]
    found = [arranged(evaluator.limit(expr), ("batch", "time"), shape).contiguous() for expr in wanted]
    return after, found
