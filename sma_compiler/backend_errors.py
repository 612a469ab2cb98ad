"""Mistakes about backends: Triton asked for where it cannot run an op, and what its kernels do not do.

One class for each, as in `call_errors`; each says what to write instead.
"""

from __future__ import annotations

from sma_compiler.call_errors import Mistake


class NoKernel(Mistake):
    """`backend="triton"` for an op, a plan or sizes that no kernel exists for."""

    def __init__(self, op: str, plan: str, reason: str) -> None:
        super().__init__(
            f"{op}: no Triton kernel for plan={plan!r}: {reason}\n"
            '  Write backend="auto", which takes the torch backend where there is no kernel.'
        )


class TritonNeedsGPU(Mistake):
    """`backend="triton"` with tensors that are on no GPU."""

    def __init__(self, op: str, device: object) -> None:
        super().__init__(
            f'{op}: backend="triton" needs tensors on a GPU, but they are on {device}: move them to "cuda", or write '
            'backend="auto" (TRITON_INTERPRET=1 runs kernels on the CPU, slowly, to look at their arithmetic)'
        )


class TritonMissing(Mistake):
    """`backend="triton"` where Triton is not installed."""

    def __init__(self, op: str) -> None:
        super().__init__(f'{op}: backend="triton" needs the package triton: pip install "triton>=3.6,<3.10"')


class NoDoublePrecision(Mistake):
    """`backend="triton"` with double-precision tensors."""

    def __init__(self, op: str, name: str) -> None:
        super().__init__(
            f"{op}: Triton kernels take bfloat16, float16 and float32, but {name!r} is float64: "
            'convert it, or write backend="torch"'
        )


class KernelTooLarge(Mistake):
    """A kernel that needs more of the GPU than it has. `reason`: more of what."""

    def __init__(self, op: str, plan: str, reason: str) -> None:
        self.reason = f"it does not fit on this GPU: {reason}"
        super().__init__(
            f"{op}: the Triton kernel for plan={plan!r} does not fit on this GPU: {reason}\n"
            '  Write plan="auto" and backend="auto", which take the torch backend there.'
        )


class NoDoubleBackward(Mistake):
    """A gradient of a gradient through Triton kernels."""

    def __init__(self, op: str) -> None:
        super().__init__(
            f"{op}: Triton kernels have first derivatives only; for a gradient of a gradient, "
            'call the op with backend="torch"'
        )


class NoForwardMode(Mistake):
    """Forward-mode differentiation (`jvp`) of Triton kernels."""

    def __init__(self, op: str) -> None:
        super().__init__(
            f"{op}: Triton kernels have reverse-mode derivatives only; for jvp and forward-mode differentiation, "
            'call the op with backend="torch"'
        )


class WrongKernel(Mistake):
    """A kernel whose results are not those of the torch backend (checked under SMA_SELF_CHECK=1)."""

    def __init__(self, op: str, plan: str, device: object, failures: str) -> None:
        super().__init__(
            f"{op}: the Triton kernel for plan={plan!r} computes something else than the torch backend on {device}; "
            f'do not use it: write backend="torch", and report this with the versions that `sma doctor` prints\n'
            f"{failures}"
        )


class UnsafeCache(Mistake):
    """A cache folder that others own or may write to, or that cannot be made."""

    def __init__(self, folder: object, what: str) -> None:
        super().__init__(
            f"the cache folder {folder} {what}: kernels and tuning records are loaded from it, so it must be yours "
            "alone (chmod 700), or set SMA_CACHE_DIR to another folder"
        )


class RecordsUnusable(Mistake):
    """The file of tuning records cannot be read or written: another process holds it, or the disk refuses."""

    def __init__(self, path: object, what: str) -> None:
        super().__init__(
            f"the tuning records in {path} cannot be used ({what}): end the process that holds the file, or set "
            "SMA_CACHE_DIR to a folder on a local disk"
        )
