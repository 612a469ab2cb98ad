"""The tunable numbers of chunked kernels, chosen from sizes alone.

Those for an H100 are the best that were measured there in bf16 with Triton 3.6. For sm_90 a program has at least 64
value channels, padded where there are fewer: of some narrower products Triton 3.6 makes code that reads outside of its
shared memory, or that is wrong for tensors that do not begin at a multiple of 16 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

MULTIPROCESSORS = 132
"""Of an H100: how many programs run at once, times those that fit on one."""


@dataclass(frozen=True)
class Config:
    """chunk: positions of a chunk. outer: channels of a program along the axis that programs share among them.

    programs: how many should run at once, where sequences are cut into parts for it; 0: they are not.
    scores: whether Q K^T is made ahead, where many programs would make it again. assembly: whether the target has PTX.
    registers: of a thread, at most, so that more programs are there at once; 0: as many as there are.
    share: how many programs share the heads of a group, whose gradients of q and k are made together.
    every: chunks from one state that is kept for gradients to the next, for gates that differ by both axes.
    """

    chunk: int
    outer: int
    warps: int
    stages: int
    programs: int = 0
    scores: bool = False
    assembly: bool = False
    registers: int = 0
    share: int = 1
    every: int = 1


@dataclass(frozen=True)
class Recurrence:
    """elements: of a state that a program holds in registers. warps: at most."""

    elements: int
    warps: int
    stages: int = 1


@dataclass(frozen=True)
class PairConfig:
    """A quadratic kernel. rows, columns: of a tile. chunk: positions that decays are summed over ahead.

    least: channels of a tile where a head has fewer. held: whether a program holds its rows in registers.
    """

    rows: int
    columns: int
    warps: int
    stages: int
    chunk: int
    assembly: bool = False
    least: int = 16
    held: bool = False


AnyConfig = Config | Recurrence | PairConfig

CACHED = 8 * MULTIPROCESSORS
"""Programs that share caches: those of an H100 eight times over, so that the last to end matter little."""
SHARED = 8
"""Heads of a group from which on their gradients of q and k are made together."""
RECURRENT = Recurrence(elements=2048, warps=1, stages=2)
"""Of a walk: 64 numbers a thread, so that a position is little more than the wait for its tensors."""
STEP = Recurrence(elements=8192, warps=4)
"""Of a decoding step: 64 numbers a thread, in flight at once."""


LONG = 256
"""Chunks of a sequence that every walk cuts into parts, where there are fewer programs than multiprocessors; walks of
gradients where they are at most half as many, since what they make for it costs them more."""
MIDDLE = 32
"""Chunks from which on forward walks cut it that have at most half as many programs as there are multiprocessors."""
SHORT = 16
"""Chunks from which on the walks that do most do: two launches more cost the host as much as they save elsewhere."""


SMALL_TILES = 4096
"""Positions below which gradients of heads of 64 channels have small tiles: of others many would cross the diagonal."""
RESIDENT = 12
"""Programs of one warp that run at once on a multiprocessor where gates differ by both axes of channels."""
SHARED_MEMORY = 227 * 1024
"""Bytes that programs of a multiprocessor of an H100 share among them."""
AT_ONCE = 32
"""Programs that a multiprocessor holds at most."""


def power_of_two(n: int) -> int:
    """The next power of two."""
    return 1 << max(n - 1, 0).bit_length()


def forward(sizes: Mapping[str, int], dtype: str, target: str, *, normalised: bool, varying: bool) -> Config:
    """The configuration of the forward kernels.

    Args:
        sizes: by axis; with `group`, the heads that q and k have.
        dtype: of the tensors.
        target: the GPU.
        normalised: whether rows are divided by the sum of their weights.
        varying: whether gates vary in time.
    """
    value = max(16, power_of_two(sizes["value"]))
    rows = sizes["batch"] * sizes["head"]
    if dtype == "float32":
        found = Config(chunk=16, outer=min(16, value), warps=8 if varying and sizes["key"] > 64 else 4, stages=1)
    elif target != "sm_90":
        found = Config(chunk=64, outer=min(32, value), warps=4, stages=1)
    elif value >= 512:
        found = Config(chunk=64, outer=128, warps=8, stages=2, scores=True)
    elif sizes["key"] > 128:
        alone = sizes.get("group", sizes["head"]) == sizes["head"]
        found = Config(chunk=64, outer=64, warps=8 if alone else 4, stages=2 if alone else 1, scores=not alone)
    else:
        narrow = sizes["key"] <= 64
        shared = sizes["head"] // sizes.get("group", sizes["head"]) >= SHARED and not narrow
        programs = rows * -(-sizes["value"] // 64)
        # where two programs could share a multiprocessor, a third stage takes the room of the second
        cut = programs < MULTIPROCESSORS and sizes["time"] >= LONG * 64
        crowded = (varying or normalised) and not narrow and (cut or (programs > MULTIPROCESSORS and not shared))
        found = Config(chunk=64, outer=64, warps=4, stages=2 if crowded else 3, scores=shared)
        if 2 * programs <= MULTIPROCESSORS and sizes["time"] >= MIDDLE * 64:
            found = replace(found, programs=(2 if narrow else 1) * MULTIPROCESSORS)
    programs = rows * -(-sizes["value"] // found.outer)
    if programs < MULTIPROCESSORS and sizes["time"] >= LONG * found.chunk:
        found = replace(found, programs=4 * MULTIPROCESSORS)
    return replace(found, assembly=target.startswith("sm_"))


def cached(sizes: Mapping[str, int], target: str) -> PairConfig:
    """The configuration of the kernels for new positions; `rows` is at most, `columns` slots of the cache."""
    wide = max(sizes["key"], sizes["value"])
    columns = 64 if wide <= 128 else 32
    return PairConfig(rows=64, columns=columns, warps=4, stages=3 if target == "sm_90" else 2, chunk=64)


def backward(sizes: Mapping[str, int], dtype: str, target: str) -> Config:
    """What the walks of gradients have in common; `gradient` says what each has of its own."""
    if dtype == "float32":
        found = Config(chunk=16, outer=16, warps=4, stages=1)
    elif target != "sm_90":
        found = Config(chunk=64, outer=32, warps=4, stages=1)
    else:
        found = Config(chunk=64, outer=64, warps=4, stages=1)
    programs = sizes["batch"] * sizes["head"] * -(-sizes["key"] // found.outer)
    if 2 * programs <= MULTIPROCESSORS and sizes["time"] >= SHORT * found.chunk:
        found = replace(found, programs=(4 if sizes["time"] >= LONG * found.chunk else 2) * MULTIPROCESSORS)
    return replace(found, assembly=target.startswith("sm_"))


def gradient(
    common: Config, inner: int, *, counts: bool, pairs: bool, varying: bool, normalised: bool, computed: bool
) -> Config:
    """The configuration of one walk of gradients.

    Args:
        common: of all of them.
        inner: channels of the axis that its scores contract.
        counts: whether it makes sums for gates and factors.
        pairs: whether those of pairs inside chunks are among them.
        varying: whether gates vary in time.
        normalised: whether rows are divided by the sum of their weights.
        computed: whether operands are computed from tensors.
    """
    if common.chunk < 64 or common.outer < 64:
        return replace(common, warps=8) if (counts or normalised) and inner > 64 and common.chunk < 64 else common
    if power_of_two(inner) > 256:
        return replace(common, warps=8)
    if inner > 128:
        return replace(common, stages=1)
    if computed:
        return replace(common, stages=1 if counts or normalised else 2)
    if inner <= 64 or not (varying or normalised):
        return replace(common, stages=3)
    return replace(common, stages=1 if counts and (varying or not pairs) else 2)


def by_channel(
    common: Config,
    inner: int,
    outer: int,
    *,
    decayed: bool,
    more: bool = False,
    alone: bool = False,
    computed: bool = False,
    backward: bool = False,
) -> Config:
    """The configuration of a walk whose gates differ by channels, of its inner axis (`decayed`) or of its outer one.

    Of the outer ones, pairs take most of its registers, and Triton 3.6 cannot prefetch for loops that hold such
    branches. inner: channels of the axis that its scores contract. more: whether its outputs sum over them too.
    alone: whether a program has one chunk, and loops over inner channels. computed: see `gradient`. backward: whether
    the walk is from the end.
    """
    if common.chunk < 64:
        return replace(common, stages=1)
    if not decayed:
        found = replace(common, outer=min(common.outer, 64))
        return (
            replace(found, warps=4, stages=1 if computed and inner > 64 else 2)
            if alone
            else replace(found, warps=8, stages=1)
        )
    warps = 8 if inner > (128 if backward else 256) else 4
    stages = 1 if inner > 256 else 3 if 64 < inner <= 128 and not more else 2
    made = max(inner, outer) > 64
    return replace(common, outer=min(common.outer, 64), warps=warps, stages=stages, scores=made)


def shared(common: Config, sizes: Mapping[str, int], dtype: str, target: str) -> Mapping[str, Config]:
    """The kernels that make the gradients of q and k for all heads that share them, from the states of every chunk.

    With those of the walks of dV and of the states, which keep theirs; where a state is so large that the walk of dV
    would spill, `dstates` keeps them, and dV is made by chunks. Empty where each head makes its own: only few share
    them, or the programs would not fit.
    """
    heads = sizes["head"] // sizes.get("group", sizes["head"])
    if heads < SHARED or dtype == "float32" or target != "sm_90" or sizes["value"] > 128:
        return {}
    narrow = sizes["value"] <= 64
    walk = replace(common, warps=4 if sizes["key"] <= 128 else 8, stages=2)
    wide = replace(common, warps=8, stages=3 if narrow else 2)
    if narrow:
        wide = replace(wide, outer=max(64, power_of_two(sizes["key"])))
    chunks = sizes["batch"] * -(-sizes["time"] // common.chunk) * sizes.get("group", sizes["head"])
    programs = chunks * -(-sizes["key"] // wide.outer)
    while 2 * programs * wide.share <= MULTIPROCESSORS and heads % (2 * wide.share) == 0:
        wide = replace(wide, share=2 * wide.share)
    apart = {"dstates": replace(walk, stages=3)} if sizes["key"] > 128 else {}
    cut = common.programs if sizes["time"] >= LONG * common.chunk else 0
    return {
        **apart,
        "states": replace(walk, stages=3 if apart else 4, programs=cut),
        "dv": replace(walk, stages=1, warps=4) if apart else replace(walk, stages=3),
        "dq": replace(wide, warps=4) if narrow and sizes["key"] <= 128 else wide,
        "dk": wide,
    }


def solve(sizes: Mapping[str, int], dtype: str, target: str, *, keys: int, values: int) -> Config:
    """The configuration of a walk of `solve`: as many stages as two programs of an H100's multiprocessor have room for.

    keys, values: how many tensors of key and of value channels it reads.
    """
    found = replace(backward(sizes, dtype, target), programs=0)
    if found.chunk < 64 or found.outer < 64:
        return found
    width = power_of_two(sizes["key"])
    alone = width > 128
    stage = 2 * found.chunk * (keys * width + values * found.outer + found.chunk)
    room = SHARED_MEMORY // (1 if alone else 2) - 12 * 1024
    return replace(found, warps=8 if alone else 4, stages=min(3, max(1, room // stage)))


def wide_products(dtype: str, target: str) -> bool:
    """Whether products of the linear family are made in fp64; see `wide`."""
    return dtype == "float32" and target == "sm_90"


def recurrent_backward(sizes: Mapping[str, int], *, exact: bool) -> Config:
    """The configuration of the backward walks of the recurrent plan, which keep states of each chunk for gates.

    exact: whether tensors are fp32. States between are made again for every position, from the start of its chunk.
    """
    inner = power_of_two(max(sizes["key"], sizes["value"], 16))
    chunk = 8 if exact else 16
    outer = max(1, RECURRENT.elements // (inner if exact else 2 * inner))
    return Config(chunk=chunk, outer=outer, warps=RECURRENT.warps, stages=RECURRENT.stages)


def scan(
    sizes: Mapping[str, int], dtype: str, target: str, *, narrow: bool, gradients: bool = False, parts: bool = False
) -> Config:
    """The configuration of the kernels of gates that differ by both axes; `outer` counts values.

    A thread carries some channels over some positions, 64 numbers of a tile, or 32 where gradients need many tiles at
    once (16 in fp32 but for sm_90: ptxas needs more registers for what rounding takes): so few registers that many
    programs wait for memory at a time, and still so many that none are spilled, which costs more than anything else.
    `RESIDENT` programs of one warp fit on a multiprocessor.

    Where states are small, gradients have one of every tile from memory; else they make them again from each 16th.

    narrow: whether some tensors have one number a position, which Triton 3.6 cannot prefetch. parts: whether sequences
    are cut although there are programs enough, then in two.
    """
    keys, values = power_of_two(sizes["key"]), power_of_two(sizes["value"])
    few = keys <= 16 and dtype != "float32"
    outer = min(16 if few else 32, values)
    warps = min(8, max(1, keys * outer // (256 if gradients and keys > 16 else 512)))
    held = 32 if gradients else 64
    if gradients and dtype == "float32" and target != "sm_90":
        held = 16
    chunk = min(16, max(1, held * 32 * warps // (keys * outer)))
    found = Config(chunk=chunk, outer=outer, warps=warps, stages=1 if narrow else 3)
    if gradients:
        found = replace(found, every=1 if few else 16)
    if gradients and warps == 1 and dtype != "float32" and target.startswith("sm_"):
        found = replace(found, registers=65536 // (32 * RESIDENT) // 8 * 8)
    programs = sizes["batch"] * sizes["head"] * -(-sizes["value"] // outer)
    if parts or (programs * warps < 8 * MULTIPROCESSORS and sizes["time"] >= 2048):
        found = replace(found, programs=max(2 * RESIDENT * MULTIPROCESSORS // warps, 2 * programs if parts else 0))
    return found


def scan_again(back: Config) -> Config:
    """The configuration of the kernel that keeps states for one that makes gradients, and has half as many tiles."""
    found = replace(back, registers=0)
    return replace(found, chunk=2 * back.chunk) if back.every > 1 else replace(found, outer=2 * back.outer)


def columns(sizes: Mapping[str, int], *, narrow: bool, parts: bool) -> Config:
    """The configuration of sums in units of exponentials: a warp has some channels, a thread one position at a time.

    Sequences are cut where programs are few, or `parts` are asked for, so that as many run as a GPU holds. narrow: see
    `scan`. A part has `every` positions a few times over; gradients keep the state before them and make those between
    again, so few that what all programs have of them at a time stays in the cache of an H100.
    """
    outer = min(128, power_of_two(sizes["value"]))
    programs = sizes["batch"] * -(-sizes["value"] // outer)
    cut = parts or (programs < 8 * MULTIPROCESSORS and sizes["time"] >= 2048)
    found = Config(chunk=1, outer=outer, warps=1, stages=1 if narrow else 3, every=4)
    return replace(found, programs=AT_ONCE * MULTIPROCESSORS if cut else 0)


def pairs(
    sizes: Mapping[str, int], dtype: str, target: str, *, weighed: bool, paths: bool, computed: bool
) -> PairConfig:
    """The configuration of the quadratic forward kernel.

    On an H100 two programs of four warps share a multiprocessor: one weighs pairs while the other multiplies. With
    what is read of paths, two of 128 channels fit on it only where queries are held in registers. Operands that are
    computed take so many registers that one of eight warps is better.

    weighed: whether masks give live pairs weights. paths: whether some are made ahead. computed: whether some of q, k
    and v are not tensors as they are.
    """
    wide = max(power_of_two(sizes["key"]), power_of_two(sizes["value"]))
    if dtype == "float32":
        found = PairConfig(rows=32, columns=32 if wide <= 64 else 16, warps=4, stages=1, chunk=32)
    elif target != "sm_90":
        found = PairConfig(rows=64, columns=32, warps=4, stages=1, chunk=32)
    elif wide > 128:
        found = PairConfig(rows=128, columns=32 if weighed else 64, warps=8, stages=2, chunk=64, least=64)
    elif computed:
        found = PairConfig(rows=128, columns=64 if weighed else 128, warps=8, stages=3, chunk=64, least=64)
    else:
        found = PairConfig(rows=64, columns=64, warps=4, stages=3, chunk=64, least=64, held=paths and wide > 64)
    return replace(found, assembly=target.startswith("sm_"))


def pairs_backward(
    sizes: Mapping[str, int],
    dtype: str,
    target: str,
    *,
    weighed: bool,
    paths: bool,
    computed: bool,
    sums: bool,
    tables: bool,
    softmax: bool = True,
    near: bool = False,
) -> Mapping[str, PairConfig]:
    """The configurations of the quadratic gradients, by kernel.

    weighed, paths, computed: see `pairs`. sums: whether pairs are summed for the mask's own. tables: whether it looks
    pairs up. softmax: whether weights are exponentials of scores. near: whether only pairs near to one another are
    live: where a program has so few tiles to go over, two programs on a multiprocessor, of four warps, hide where they
    begin and end.
    """
    forward = pairs(sizes, dtype, target, weighed=weighed, paths=paths, computed=computed)
    wide = max(power_of_two(sizes["key"]), power_of_two(sizes["value"]))
    side = min(64 if wide <= 128 else 16, forward.chunk)
    lags = replace(forward, rows=side, columns=side, warps=8, stages=1)
    if dtype == "float32":
        queries = replace(forward, rows=16) if paths and wide > 64 else forward
        keys = replace(forward, rows=16 if computed else 32, columns=16, warps=4 if wide <= 64 else 8)
    elif target != "sm_90":
        queries = replace(forward, columns=forward.chunk, stages=1)
        keys = replace(queries, rows=forward.chunk, columns=forward.rows)
    elif wide > 128:
        queries = replace(forward, rows=32 if weighed else 64, columns=64, stages=1 if weighed else 2)
        keys = replace(queries, rows=64, columns=32)
    elif wide <= 64 and sizes["time"] < SMALL_TILES:
        queries = keys = replace(forward, rows=64, columns=64, warps=4, stages=2, held=False)
    else:
        queries = replace(
            forward, rows=128, columns=32 if tables else 64, warps=8, held=False, stages=2 if tables else 3
        )
        narrow = (sums and tables) or computed or (paths and not softmax)
        keys = replace(queries, rows=32 if narrow else 64, columns=64 if narrow else 128, stages=3)
        if near and wide > 64 and not (narrow or computed):
            keys = replace(keys, rows=32, columns=64, warps=4)
        if not (weighed or computed) and (near or wide <= 64):
            queries = replace(queries, rows=64, warps=4, held=near)
    return {"again": forward, "dq": queries, "dkv": keys, "lags": lags}
