"""Where values will be used: conditions that selections put on what they select from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sma_compiler.ir.nodes import Expr
from sma_compiler.torch_plans.named import Named
from sma_compiler.torch_plans.named_ops import any_over, both


@dataclass(frozen=True, eq=False)
class Guard:
    """`holds`: where a value will be used. `parts`: the nodes (`Traits.parts`) that are selected in all of it."""

    holds: Named
    parts: frozenset[Expr]


class Guards:
    """Makes guards, each once: equal conditions are the same object."""

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], Guard] = {}

    def meet(
        self, guard: Guard | None, holds: Named, name: tuple[object, ...], parts: frozenset[Expr] = frozenset()
    ) -> Guard:
        """The guard and one more condition, which `name` identifies."""
        if guard is None:
            return self._once(("meet", None, *name), lambda: Guard(holds, parts))
        return self._once(("meet", guard, *name), lambda: Guard(both(guard.holds, holds), guard.parts | parts))

    def without(self, guard: Guard | None, axis: str) -> Guard | None:
        """The guard of an operand of which an axis is contracted: used where any entry of the result is."""
        if guard is None or axis not in guard.holds.axes:
            return guard
        return self._once(("without", guard, axis), lambda: Guard(any_over(guard.holds, axis), frozenset()))

    def renamed(self, guard: Guard | None, new: str, old: str) -> Guard | None:
        """The guard of the operand of `Rename(x, old, new)`."""
        kept = self.without(guard, old)
        if kept is None or new not in kept.holds.axes:
            return kept
        return self._once(("renamed", kept, new, old), lambda: Guard(kept.holds.rename(new, old), frozenset()))

    def _once(self, key: tuple[object, ...], make: Callable[[], Guard]) -> Guard:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]
