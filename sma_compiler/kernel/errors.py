"""Why an op has no Triton kernel."""

from __future__ import annotations

from sma_compiler.errors import SmaError


class NoTritonKernel(SmaError):
    """An op, a plan or sizes that this version emits no Triton for."""

    def __init__(self, op: str, plan: str, reason: str) -> None:
        self.op = op
        self.plan = plan
        self.reason = reason
        super().__init__(f"{op} has no Triton kernel for plan={plan!r}: {reason}")


class UnknownOption(SmaError):
    """A dtype or a target that kernels are not emitted for."""

    def __init__(self, what: str, given: str, known: tuple[str, ...]) -> None:
        super().__init__(f"no {what} {given!r}: kernels are emitted for {', '.join(known)}")
