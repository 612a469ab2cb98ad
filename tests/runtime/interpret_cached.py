"""Decodes with a cache through the Triton backend in Triton's interpreter; prints errors as JSON. A process of its own:
the interpreter is chosen when Triton is imported."""

from __future__ import annotations

import json
import math
import sys

import torch
from torch import Tensor

import sma_compiler as sma
from sma_compiler.call_errors import CapacityExceeded
from sma_compiler.kernel import config
from sma_compiler.runtime import again, cached, execute, state_layout
from sma_compiler.runtime.kernels import Kernel
from sma_compiler.runtime.load import load

SPECS = {
    "document_window": """
op document_window(q, k, v, doc: int[time], w: int):
    return attend((0 <= i - j < w) * documents(doc), q, k, v, normalize=softmax, scale=1 / sqrt(key))
""",
    "bias": """
op bias(q, k, v, c: [time, head], s: [head], g: [time], z: [time, head, value]):
    L = causal * exp(sum(g[t], j < t <= i) - s * sqrt(1 + i - j)) * exp(c[j] * s)
    return silu(z) * attend(L, l2norm(q), silu(k), v, normalize=softmax, scale=3) + v
""",
    "returning": """
op returning(q, k, v, doc: int[time], on: bool[time]):
    return attend(causal * (doc[i] == doc[j]) * on[j], q, k, v, normalize=softmax)
""",
}
LIBRARY = ("attention", "sliding_window", "document", "forgetting")
OPS = (*LIBRARY, *SPECS)
TIME, WIDTH, GROUPS = 18, 6, 1
SIZES = {"H": 2, "K": 12, "V": 20}
MUTANTS = {
    "attention": (
        ("oldest + n < SLOTS", "oldest + n <= SLOTS"),
        ("p_n[None, :] < hi_m[:, None]", "p_n[None, :] + 1 < hi_m[:, None]"),
        ("b_norm * b_before", "b_norm"),
        ("seen + SLOTS - 1 - last", "seen + SLOTS - last"),
    ),
    "forgetting": (
        ("tl.where(i_s == PARTS, T, 0)", "tl.where(i_s == 0, T, 0)"),
        ("b_max = b_max + b_decay_part", "b_max = b_max"),
        ("b_max = b_max + b_total", "b_max = b_max"),
        ("oldest + n + 1", "oldest + n"),
    ),
    "sliding_window": (("p_n[None, :] >= lo_m[:, None]", "p_n[None, :] > lo_m[:, None]"),),
    "document": (("== c_m[:, None]", "<= c_m[:, None]"),),
}
"""Parts of the emitted text, and what would be wrong in their place."""
Given = dict[str, Tensor | int | float]


def compiled(name: str) -> sma.CompiledOp:
    """An op of the library or of `SPECS`, anew."""
    return sma.library(name) if name in LIBRARY else sma.compile(SPECS[name])


def given(op: sma.CompiledOp, dtype: torch.dtype = torch.float32, rows: int = 1) -> Given:
    """Random arguments: two query heads share a key, runs end at odd places, some log gates are -inf and -1e3."""
    torch.manual_seed(0)
    sizes = {"batch": rows, "time": TIME, "head": SIZES["H"], "key": SIZES["K"], "value": SIZES["V"]}
    found: Given = {}
    for decl in op.params:
        if decl.number:
            found[decl.name] = WIDTH
            continue
        shape = [GROUPS if axis == "head" and decl.name in "kv" else sizes[axis] for axis in decl.dims]
        x = torch.randn(shape)
        if decl.name == "doc":
            x = (torch.arange(TIME) // 5 + torch.arange(rows)[:, None]) % 3
        elif decl.name == "on":
            x = x > -0.8
        elif decl.name in "qkv":
            x = x.to(dtype)
        elif decl.name in ("slope", "s"):
            x = 0.3 * x.abs()
        elif decl.name in "gf":
            x[:, 1], x[:, 16], x[:, 3] = -math.inf, -math.inf, -1e3
            x = x if decl.name == "f" else -x.abs()
        found[decl.name] = x
    return found


def part(op: sma.CompiledOp, arguments: Given, where: slice | int) -> Given:
    """The arguments of some positions, or of one without its axis."""
    long = {decl.name for decl in op.params if "time" in decl.dims}
    return {name: x[:, where] if name in long and isinstance(x, Tensor) else x for name, x in arguments.items()}


def error(found: Tensor, expected: Tensor) -> float:
    """Relative error in the mean square; infinite where it is not finite."""
    if not bool(found.isfinite().all()):
        return math.inf
    return float((found.double() - expected).norm() / expected.norm())


def empty(op: sma.CompiledOp, capacity: int, rows: int = 1) -> sma.State:
    numbers = {decl.name: WIDTH for decl in op.params if decl.number}
    return op.empty_state(rows, capacity=capacity, **SIZES, **numbers)


def steps(op: sma.CompiledOp, arguments: Given, capacity: int, backends: tuple[str, ...]) -> float:
    """Steps in place from the start, by one backend after another."""
    state = empty(op, capacity)
    places = [x.data_ptr() for x in state.values()]
    found = []
    for time in range(TIME):
        backend = backends[time // 3 % len(backends)]
        y, after = op.step(**part(op, arguments, time), state=state, inplace=True, backend=backend)
        assert after is state
        found.append(y)
    assert [x.data_ptr() for x in state.values()] == places
    assert state["position"].tolist() == [TIME]
    return error(torch.stack(found, 1), op.reference(**arguments))


def calls(op: sma.CompiledOp, arguments: Given) -> float:
    """A prefill, several new positions, and a step that leaves its state as it is; by one backend after another."""
    worst = 0.0
    expected = op.reference(**arguments)
    for first, second in (("triton", "torch"), ("torch", "triton")):
        y, state = op(**part(op, arguments, slice(0, 7)), return_state=True, backend=first)
        y2, state = op(**part(op, arguments, slice(7, 17)), initial_state=state, return_state=True, backend=second)
        before = state.clone()
        y3, after = op.step(**part(op, arguments, 17), state=state, backend=first)
        assert all(torch.equal(x, before[name]) for name, x in state.items())
        assert after["position"].tolist() == [TIME]
        worst = max(worst, error(torch.cat((y, y2, y3[:, None]), 1), expected))
    return worst


def ragged(op: sma.CompiledOp) -> float:
    """Rows of one state that have seen different numbers of positions."""
    arguments = given(op, rows=2)
    counts, state = (4, 11), empty(op, TIME, 2)
    for row, count in enumerate(counts):
        own = {name: x[row : row + 1] if isinstance(x, Tensor) else x for name, x in arguments.items()}
        alone = op.empty_state(1, capacity=TIME, **SIZES)
        for time in range(count):
            _, alone = op.step(**part(op, own, time), state=alone, inplace=True, backend="triton")
        for name, x in state.items():
            x[row] = alone[name][0]
    now = {name: x[[0, 1], list(counts)] if isinstance(x, Tensor) else x for name, x in arguments.items()}
    y, _ = op.step(**now, state=state, inplace=True, backend="triton")
    expected = op.reference(**arguments)[[0, 1], list(counts)]
    return error(y, expected)


def shared(op: sma.CompiledOp) -> float:
    """A cache with as many heads as keys have, in their dtype: half the bytes for half the heads."""
    arguments = given(op, torch.float16)
    state = op.empty_state(1, capacity=TIME + 2, G=GROUPS, **SIZES).to(torch.float16)
    assert state["attend0.cache.k"].shape[2] == GROUPS
    own = op.empty_state(1, G=GROUPS, **SIZES).to(torch.float16)
    y, own = op(**part(op, arguments, slice(0, 7)), initial_state=own, return_state=True, backend="triton")
    y2, own = op(**part(op, arguments, slice(7, TIME)), initial_state=own, return_state=True, backend="torch")
    assert own["attend0.cache.k"].shape == (1, TIME, GROUPS, SIZES["K"])
    assert own["attend0.cache.v"].dtype == torch.float16
    found = []
    for time in range(TIME):
        backend = "torch" if time in (2, 7) else "triton"
        found.append(op.step(**part(op, arguments, time), state=state, inplace=True, backend=backend)[0])
    expected = op.reference(**arguments)
    return max(error(torch.stack(found, 1), expected), error(torch.cat((y, y2), 1), expected))


def full() -> float:
    """A position that has no slot is an error, or where nobody looks at values, NaN in a cache left as it is."""
    op = sma.library("attention")
    arguments, state = given(op), empty(op, 3)
    for time in range(3):
        op.step(**part(op, arguments, time), state=state, inplace=True, backend="triton")
    before = state.clone()
    try:
        op.step(**part(op, arguments, 3), state=state, inplace=True, backend="triton")
        return math.inf
    except CapacityExceeded:
        pass
    kernel = op.program.kernels.find("auto", {**dict.fromkeys(("batch", "time"), 1)}, "float32", "sm_90")
    assert kernel.cached is not None
    cache = [x for name, x in state.items() if ".cache." in name]
    y = kernel.cached(*part(op, arguments, slice(3, 4)).values(), tuple(cache), state["position"], inplace=True)
    assert bool(y.isnan().all())
    assert all(torch.equal(x, before[name]) for name, x in state.items())
    return 0.0


def replayed(op: sma.CompiledOp) -> float:
    """Steps as a GPU makes them: no values are looked at, and the third step plays a tape of the second."""
    looking = again.replayable, cached._check_room, state_layout._check_window
    again.replayable, cached._check_room, state_layout._check_window = lambda _: True, lambda *_: None, lambda *_: None
    found = steps(op, given(op), TIME, ("triton",))
    again.replayable, cached._check_room, state_layout._check_window = looking
    tapes = op.program.replays._tapes.values()
    return found if tapes and all(tapes) else math.inf


def mutants(name: str) -> float:
    """The least error that a planted mistake makes."""
    op = compiled(name)
    arguments = given(op)
    steps(op, arguments, TIME + 3, ("triton",))
    kernel = next(x for x in op.program.kernels._found.values() if isinstance(x, Kernel) and x.cached is not None)
    with open(str(kernel.module.__file__), encoding="utf-8") as file:
        text = file.read()
    least = math.inf
    for right, wrong in MUTANTS[name]:
        assert right in text, right
        planted = Kernel(kernel.name, load(text.replace(right, wrong)))
        for key in op.program.kernels._found:
            op.program.kernels._found[key] = planted
        try:
            found = steps(op, arguments, TIME + 3, ("torch", "triton", "triton"))
        except CapacityExceeded:
            found = math.inf
        least = min(least, found)
    return -least


def main(names: list[str]) -> None:
    """Print the errors of every op; of mutants the negative of the least."""
    config.cached = lambda *_: config.PairConfig(rows=16, columns=8, warps=4, stages=1, chunk=16)
    execute.check_values = lambda *_: None
    found = {}
    for name in names:
        op = compiled(name)
        found[f"{name} steps"] = steps(op, given(op), TIME + 3, ("triton",))
        if name in ("attention", "sliding_window"):
            found[f"{name} turns"] = steps(op, given(op), TIME, ("triton", "torch", "triton"))
        found[f"{name} calls"] = calls(op, given(op))
        found[f"{name} replayed"] = replayed(compiled(name))
    if "attention" in names:
        half = compiled("attention")
        found["half steps"] = 1e-3 * steps(half, given(half, torch.float16), 18, ("triton",))
        found["attention ragged"] = ragged(compiled("attention"))
        found["half shared"] = 1e-3 * shared(compiled("attention"))
        found["attention full"] = full()
    for name in MUTANTS:
        if name in names:
            found[f"{name} mutants"] = mutants(name)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:] or list(OPS))
