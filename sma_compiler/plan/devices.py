"""What devices can do, as the cost model needs it: constants, each with the date it was measured.

An unknown GPU is taken for `GPU` below, an unknown processor for `CPU`. That changes which plan is taken where two are
close, never a result; `sma tune` measures instead.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """Rates a second, of the whole device, and fixed costs in seconds.

    matrix: floating-point operations of matrix products of 16-bit operands on tensor cores (fp32 on a CPU).
    single: the same of fp32 operands in full precision. simple: simple operations on fp32 numbers that are in
    registers. exps: exponentials. bandwidth: bytes of memory, read and written. call: one operation of torch that does
    next to nothing. step: one position of a recurrence written in torch, without its arithmetic. launch: one kernel.
    processors: multiprocessors (cores). shared: bytes of shared memory of each. registers: of each, 32-bit.
    latency: of one turn of a kernel's loop, whatever is in it. host, host_backward: what a call of kernels and its
    gradients take the host at least. torch: how many times as long as its parts a plan of torch takes.
    measured: when, or where the numbers are from.
    """

    name: str
    matrix: float
    single: float
    simple: float
    exps: float
    bandwidth: float
    call: float
    step: float
    launch: float
    processors: int
    shared: int
    registers: int
    latency: float
    host: float
    host_backward: float
    torch: float
    measured: str


H100 = Device(
    name="NVIDIA H100 80GB HBM3",
    matrix=7.93e14,
    single=5.0e13,
    simple=2.97e13,
    exps=3.7e12,
    bandwidth=3.02e12,
    call=8e-6,
    step=6e-5,
    launch=4e-6,
    processors=132,
    shared=232448,
    registers=65536,
    latency=2.12e-06,
    host=4e-5,
    host_backward=2e-4,
    torch=2.81,
    measured="2026-11-21: copies and matrix products; 2026-11-22: fitted to bench/measured/h100.json",
)

GPU = Device(
    name="some GPU",
    matrix=2.5e14,
    single=1.5e13,
    simple=9e12,
    exps=2.4e12,
    bandwidth=1.5e12,
    call=1e-5,
    step=8e-5,
    launch=5e-6,
    processors=108,
    shared=166912,
    registers=65536,
    latency=1.5e-6,
    host=6e-5,
    host_backward=3e-4,
    torch=1.5,
    measured="never: four fifths of the data sheet of an A100, the middle of the GPUs that Triton runs on",
)

CPU = Device(
    name="some CPU",
    matrix=8e10,
    single=5.2e10,
    simple=9e8,
    exps=4e8,
    bandwidth=1.2e10,
    call=1.2e-5,
    step=1.5e-4,
    launch=0.0,
    processors=1,
    shared=0,
    registers=0,
    latency=0.0,
    host=0.0,
    host_backward=0.0,
    torch=1.0,
    measured="2026-11-22: one core of an AMD EPYC server, torch 2.13",
)

DEVICES = {device.name: device for device in (H100,)}
"""GPUs that were measured, by the names that torch gives them."""
ROWS = {"cpu": CPU, "h100": H100, "gpu": GPU}
"""All rows, by the names that the command line takes."""
TARGETS = {"h100": "sm_90", "gpu": "sm_80"}
"""What kernels are emitted for, by the same names."""


def device_row(kind: str, name: str = "") -> Device:
    """The constants for a device. kind: "cpu" or "cuda". name: as torch names it."""
    if kind == "cpu":
        return CPU
    return DEVICES.get(name, GPU)
