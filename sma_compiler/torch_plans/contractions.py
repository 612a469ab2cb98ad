"""Runs one contraction by its plan: streams with their states, near parts and whole masks written out, caches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from sma_compiler.ir.nodes import Attend, Expr, MaskTimes, Solve
from sma_compiler.torch_plans import dense
from sma_compiler.torch_plans.cache import stored_axes
from sma_compiler.torch_plans.dense import Mask, Partial
from sma_compiler.torch_plans.evaluate import Evaluator
from sma_compiler.torch_plans.frame import Frame
from sma_compiler.torch_plans.named import Named
from sma_compiler.torch_plans.named_ops import add, contract, cut, join, multiply, negative, picked, select, spread
from sma_compiler.torch_plans.pairs import Line, Sums, fresh_line
from sma_compiler.torch_plans.sites import Site, band_of
from sma_compiler.torch_plans.solve_chunks import solve_chunked
from sma_compiler.torch_plans.solve_dense import solve
from sma_compiler.torch_plans.solve_streams import solve_recurrent
from sma_compiler.torch_plans.stabilised import run_stabilised
from sma_compiler.torch_plans.streams import advance_streams, run_streams
from sma_compiler.torch_plans.toeplitz import convolve

P = TypeVar("P")

STREAMED = frozenset({"chunked", "recurrent", "global"})
"""The plans that run streams; the others write the whole mask out."""
SHORT = 64
"""Fewer new positions than this are not worth an FFT."""


class Contracting:
    """One contraction in one call. `after`: its states behind the new positions, where they are wanted.

    state: its own states, by name; None at the start of the sequences. slots: how many an unbounded cache keeps;
    None: all.
    """

    def __init__(
        self,
        site: Site,
        plan: str,
        evaluator: Evaluator,
        frame: Frame,
        state: Mapping[str, Tensor] | None,
        want_state: bool,
        slots: int | None,
    ) -> None:
        self.site = site
        self.plan = plan
        self.evaluator = evaluator
        self.frame = frame
        self.state = state
        self.want_state = want_state
        self.slots = slots
        self.after: dict[str, Tensor] = {}
        self._past = None if state is None else within(state, "cache.")
        self._cache = site.cache(evaluator)
        self._fresh = fresh_line(frame)
        self._line = self._remembered()
        self._sums = {id(line): Sums(evaluator, line) for line in (self._fresh, self._line)}

    def run(self) -> tuple[Named, Named | None]:
        """The result at the new positions, and under softmax the log-sum-exp of its rows."""
        node, lse = self.site.node, None
        if isinstance(node, Attend):
            found, lse = self._attend(node)
        elif isinstance(node, MaskTimes):
            found = self._times(node)
        else:
            found = self._solve(node)
        self.evaluator.bind(node, found)
        self._renew()
        return found, lse

    def _attend(self, node: Attend) -> tuple[Named, Named | None]:
        q = self._tensor(node.q)

        def written_out(mask: Mask) -> Partial:
            k, v = self._over(mask.line, node.k), self._over(mask.line, node.v)
            if self._by_fft(mask):
                return Partial(multiply(self._convolved(mask, multiply(k, v)), q, self._scale(node)))
            return dense.attend(node, mask, q, k, v, self.frame)

        carried = self._stabilised if node.normalize == "softmax" else self._linear
        parts = self._parts(written_out, lambda plan: carried(node, plan))
        return dense.finished(node.normalize, dense.merged(parts))

    def _times(self, node: MaskTimes) -> Named:
        def written_out(mask: Mask) -> Named:
            x = self._over(mask.line, node.x)
            return self._convolved(mask, x) if self._by_fft(mask) else dense.times(node.kind, mask, x, self.frame)

        return add(*self._parts(written_out, lambda plan: self._streamed(plan, self._tensor(node.x), "")))

    def _solve(self, node: Solve) -> Named:
        a, b, right = self._tensor(node.a), self._tensor(node.b), self._tensor(node.u)
        if self.plan in ("recurrent", "chunked"):
            solved_by = solve_recurrent if self.plan == "recurrent" else solve_chunked
            key = self._key_size(node.mask, node.a, node.b)
            streams, frame = self.site.streams, self.frame
            found, after = solved_by(streams, a, b, right, frame, self.state, key, self.want_state)
            self._keep(after, "")
            return found
        if self.site.streams and self.state is not None:
            sizes = [self._size(axis) for axis in node.axes]
            nothing = torch.zeros(sizes, dtype=self.frame.compute, device=self.frame.device)
            right = self._less(right, self._streamed("advance", Named(nothing, node.axes), ""))
        if self._past and self._cache is not None:
            solved = Named(self._past["x"].to(self.frame.compute), stored_axes(node))
            for mask in self._near(history=True):
                earlier = self._over(mask.line, node.b)
                right = self._less(right, dense.weighted_sum(mask, a, earlier, solved, self.frame))
        line = self._fresh if self.site.streams else self._line
        found = solve(self._whole(line), a, b, right, self.frame)
        if self.site.streams and self.want_state:
            self._streamed("advance", found, "")
        return found

    def _parts(self, written_out: Callable[[Mask], P], carried: Callable[[str], P | None]) -> list[P]:
        """Contributions to the new positions: masks written out, streams by a plan, or what a state adds."""
        site = self.site
        if self.plan in STREAMED and site.streams:
            streamed = carried(self.plan)
            return [*([] if streamed is None else [streamed]), *map(written_out, self._near(history=False))]
        if not site.streams:
            return [written_out(self._whole(self._line))]
        parts = [written_out(self._whole(self._fresh))]
        if self.state is None:
            if self.want_state:
                carried("advance")
            return parts
        before = carried("advance")
        assert before is not None
        return [*parts, before, *map(written_out, self._near(history=True))]

    def _linear(self, node: Attend, plan: str) -> Partial | None:
        """What streams contribute to an attend: sums of weight * v, and of the weights where it divides by them."""
        v, scale = self._tensor(node.v), self._scale(node)
        if not dense.wants_sum(node):
            found = self._streamed(plan, v, "")
            return None if found is None else Partial(multiply(found, scale))
        one = Named(torch.ones((), dtype=self.frame.compute, device=self.frame.device), ())
        if "value" in node.mask.axes:
            found, total = self._streamed(plan, v, ""), self._streamed(plan, one, "ones.")
        else:
            width = v.size("value")
            sums = self._streamed(plan, join([spread(v, "value", width), one], "value", [width, 1]), "")
            total = None if sums is None else picked(sums, "value", width)
            found = None if sums is None else cut(sums, "value", 0, width)
            if found is not None and "value" not in v.axes:
                found = picked(found, "value", 0)
        if found is None or total is None:
            return None
        return Partial(multiply(found, scale), multiply(total, scale))

    def _stabilised(self, node: Attend, plan: str) -> Partial:
        """What streams contribute to a softmax whose score does not depend on the row."""
        score = contract(*dense.dots(self.frame, self._tensor(node.q), self._tensor(node.k)), "key")
        column = spread(multiply(score, self._scale(node)), "time", self.frame.length)
        numerator, denominator, top, after = run_stabilised(
            plan, self.site.streams, column, self._tensor(node.v), self.frame, self.state, self.want_state
        )
        self._keep(after, "")
        return Partial(numerator, denominator, top)

    def _streamed(self, plan: str, v: Named, prefix: str) -> Named | None:
        """Streams with weights linear in the score; under the plan `advance`, what the state alone contributes."""
        node = self.site.node
        if isinstance(node, MaskTimes):
            q = k = Named(torch.ones((), dtype=self.frame.compute, device=self.frame.device), ())
            key = None
        else:
            left, right = (node.q, node.k) if isinstance(node, Attend) else (node.a, node.b)
            q, k, key = self._tensor(left), self._tensor(right), self._key_size(node.mask, left, right)
        state = None if self.state is None else within(self.state, prefix)
        found: Named | None
        if plan == "advance":
            found, after = advance_streams(self.site.streams, q, k, v, self.frame, state, key, self.want_state)
        else:
            found, after = run_streams(plan, self.site.streams, q, k, v, self.frame, state, key, self.want_state)
        self._keep(after, prefix)
        return found

    def _whole(self, line: Line) -> Mask:
        band, sums = self.site.band(self.evaluator), self._sums[id(line)]
        return Mask(self.site.node.mask, band, line, (0, line.length), self.evaluator, sums)

    def _near(self, history: bool) -> list[Mask]:
        """The near parts; `history`: what they see of earlier positions alone."""
        line = self._line
        columns = (0, line.new if history else line.length)
        if history and line.new == 0:
            return []
        sums = self._sums[id(line)]
        near = [(part.mask, band_of(part.lo, part.hi, self.evaluator)) for part in self.site.near]
        return [Mask(mask, band, line, columns, self.evaluator, sums) for mask, band in near]

    def _remembered(self) -> Line:
        """The line of the cache and the new positions."""
        cache = self._cache
        if cache is None or not (self.want_state or self.state is not None):
            return self._fresh
        line = cache.line(self.frame, self._past)
        return cache.hold(
            line, self.evaluator, self.frame, self._past, [name for name in cache.held if not self._solves(name)]
        )

    def _solves(self, name: str) -> bool:
        return isinstance(self.site.node, Solve) and name == "x"

    def _renew(self) -> None:
        """The cache behind the new positions."""
        cache = self._cache
        if cache is not None and self.want_state:
            results = [name for name in cache.held if self._solves(name)]
            line = cache.hold(self._line, self.evaluator, self.frame, self._past, results)
            self._keep(cache.renewed(line, self.evaluator, self.frame, self.slots), "cache.")

    def _keep(self, after: Mapping[str, Tensor], prefix: str) -> None:
        self.after.update({prefix + name: x for name, x in after.items()})

    def _by_fft(self, mask: Mask) -> bool:
        whole = mask.columns == (0, mask.line.length)
        return self.plan == "toeplitz" and whole and self.frame.length >= SHORT

    def _convolved(self, mask: Mask, x: Named) -> Named:
        causal = mask.band.lo is not None and mask.band.lo >= 0
        x = spread(x.to(self.frame.compute), "time", mask.line.length)
        return convolve(mask.expr, x, mask.line, self.evaluator, causal)

    def _tensor(self, expr: Expr) -> Named:
        return self._existing(self.evaluator.tensor(expr)).to(self.frame.compute)

    def _existing(self, x: Named) -> Named:
        """x, 0 past the end of a row: a weight of 0 does not remove what is not finite."""
        valid = self.frame.valid()
        return x if valid is None or "time" not in x.axes else select(valid, x, 0)

    def _over(self, line: Line, expr: Expr) -> Named:
        """A tensor over a line, or a static one."""
        found = line.held.get(expr)
        if found is None:
            found = self._existing(self.evaluator.tensor(expr))
        return found.to(self.frame.compute) if isinstance(self.site.node, Attend | Solve) else found

    def _scale(self, node: Attend) -> Named:
        return self._tensor(node.scale)

    def _key_size(self, *exprs: Expr) -> int:
        return self.evaluator.axis_size("key") if any("key" in expr.axes for expr in exprs) else 1

    def _size(self, axis: str) -> int:
        known = {"batch": self.frame.batch, "time": self.frame.length}
        return known[axis] if axis in known else self.evaluator.axis_size(axis)

    @staticmethod
    def _less(right: Named, known: Named | None) -> Named:
        return right if known is None else add(right, negative(known))


def within(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose names start with a prefix, without it."""
    return {name[len(prefix) :]: x for name, x in state.items() if name.startswith(prefix)}
