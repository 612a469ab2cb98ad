"""Mistakes that only the facts of a mask can show; raised when an op is compiled."""

from __future__ import annotations

from sma_compiler.errors import SpecError
from sma_compiler.source import Span


class MaskMayBeNegative(SpecError):
    """Softmax over a mask that is not proven to be 0 or more everywhere."""

    def __init__(self, span: Span, low: float) -> None:
        super().__init__(
            f"normalize=softmax needs a mask that is 0 or more; this one is only proven to be {low:g} or more",
            span,
            "write it as exp(...), a comparison, or a product of these; abs(...) and relu(...) are 0 or more too",
        )


class SolveNotStrict(SpecError):
    """`solve` with a mask that is not proven to be strictly lower triangular."""

    def __init__(self, span: Span) -> None:
        super().__init__(
            "solve(L, a, b, u) needs a mask that is 0 for i <= j; this one is not proven to be",
            span,
            "multiply it by `strict` (i > j)",
        )
