"""The times of other implementations at the shapes of `sma bench --suite auto`, of the same arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from sma_compiler.bench.auto import Beside, now, read, write
from sma_compiler.bench.auto_rows import AutoRow
from sma_compiler.bench.peer_rows import ROWS, Goal, Row
from sma_compiler.bench.peer_run import both, call, forward
from sma_compiler.bench.peers import PEERS, Arguments, Peer, PeerMissing
from sma_compiler.interface import library
from sma_compiler.tune.setting import from_shape
from sma_compiler.tune.timers import Timer, by_events

FASTER = Goal(1.0, 1.0)
OTHERS = {
    "simple_gla": ("fla chunk_simple_gla", "fla fused_chunk_simple_gla"),
    "lightning": ("fla chunk_lightning_attn",),
    "hgrn2": ("fla chunk_gla, hgrn2",),
    "delta_net": ("fla chunk_delta_rule",),
    "gated_delta_net": ("fla chunk_gated_delta_rule",),
    "kda": ("fla chunk_kda",),
    "rwkv7": ("fla chunk_rwkv7",),
    "prefix_lm": ("flex, prefix",),
}
"""The peers of ops that the speed tables leave out, from the same packages; the fastest counts."""
FIXED = {"lightning": ("s",)}
"""What peers take no gradients of."""


def peer_row(row: AutoRow) -> Row | None:
    """A shape as the speed tables have theirs, with the peers that the op has there or elsewhere; None: it has none."""
    sizes = {**row.sizes, "group": row.sizes.get("group", row.sizes.get("head", 1))}
    table = next((one for one in ROWS if one.spec == row.op), None)
    if table is not None:
        return replace(table, name=row.name, sizes=sizes, forward=FASTER, both=FASTER, beside=())
    if row.op not in OTHERS:
        return None
    return Row(row.name, row.op, sizes, OTHERS[row.op], FASTER, FASTER, fixed=FIXED.get(row.op, ()))


def peer_times(row: Row, arguments: Arguments, timer: Timer = by_events) -> dict[str, Beside]:
    """Seconds of each peer, forward and with gradients, or why there are none."""
    found = {}
    for name in row.peers:
        try:
            found[name] = _beside(row, PEERS[name](), arguments, timer)
        except PeerMissing as error:
            found[name] = Beside(reason=str(error))
    return found


def _beside(row: Row, peer: Peer, arguments: Arguments, timer: Timer) -> Beside:
    times: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for what, make in (("forward", forward), ("both", both)):
        try:
            taken = timer({what: make(row, peer, arguments)})[what]
            if isinstance(taken, Exception):
                raise taken
            times[what] = taken
        except Exception as error:  # a peer may fail in any way
            reasons.setdefault((str(error).strip() or type(error).__name__).splitlines()[0], what)
    why = "; ".join(f"{what}: {reason}" for reason, what in reasons.items())
    return Beside(times.get("forward"), times.get("both"), why, now())


def run_peers(rows: Sequence[AutoRow], path: Path, device: str, tick: Callable[[str], None]) -> None:
    """Add to a file's measurements those of the peers, where it has none yet, and of the op's call beside them."""
    for row in rows:
        tick(row.name)
        found = read(path)
        before, own = found.get(row.name), peer_row(row)
        if before is not None and own is not None and not any(one.forward for one in before.peers.values()):
            given = library(row.op).program, row.shape(device), torch.bfloat16, torch.device(device)
            arguments = from_shape(*given, training=False, seed=0).arguments.values
            ours = Peer(partial(call, own, own.op))
            called = _beside(own, ours, arguments, by_events)
            found[row.name] = replace(before, peers=peer_times(own, arguments), called=called)
            write(path, found)
