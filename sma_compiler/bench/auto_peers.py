"""The times of other implementations at the shapes of `sma bench --suite auto`, of the same arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from sma_compiler.bench.auto import read, write
from sma_compiler.bench.auto_rows import AutoRow
from sma_compiler.bench.peer_rows import ROWS, Goal, Row
from sma_compiler.bench.peer_run import both, forward
from sma_compiler.bench.peers import PEERS, Arguments
from sma_compiler.interface import library
from sma_compiler.tune.setting import from_shape
from sma_compiler.tune.timers import Timer, by_events

FASTER = Goal(1.0, 1.0)
OTHERS = {
    "simple_gla": "fla chunk_simple_gla",
    "lightning": "fla chunk_lightning_attn",
    "hgrn2": "fla chunk_gla, hgrn2",
    "delta_net": "fla chunk_delta_rule",
    "gated_delta_net": "fla chunk_gated_delta_rule",
    "kda": "fla chunk_kda",
    "rwkv7": "fla chunk_rwkv7",
    "prefix_lm": "flex, prefix",
}
"""The peers of ops that the speed tables leave out, from the same packages."""
FIXED = {"lightning": ("s",)}
"""What peers take no gradients of."""


def peer_row(row: AutoRow) -> Row | None:
    """A shape as the speed tables have theirs, with the peers that the op has there or elsewhere; None: it has none."""
    sizes = {**row.sizes, "group": row.sizes.get("group", row.sizes.get("head", 1))}
    table = next((one for one in ROWS if one.spec == row.op), None)
    if table is None and row.op not in OTHERS:
        return None
    goals = {"forward": FASTER, "both": FASTER}
    if table is None:
        return Row(row.name, row.op, sizes, (OTHERS[row.op],), **goals, fixed=FIXED.get(row.op, ()))
    return replace(table, name=row.name, sizes=sizes, beside=(), **goals)


def peer_times(row: Row, arguments: Arguments, timer: Timer = by_events) -> dict[str, tuple[float, float]]:
    """Seconds of each peer, forward and with gradients; without those that fail."""
    found = {}
    for name in row.peers:
        try:
            peer = PEERS[name]()
            times = timer({"forward": forward(row, peer, arguments), "both": both(row, peer, arguments)})
        except Exception:  # a peer may fail in any way
            continue
        one, other = times["forward"], times["both"]
        if isinstance(one, float) and isinstance(other, float):
            found[name] = one, other
    return found


def run_peers(rows: Sequence[AutoRow], path: Path, device: str, tick: Callable[[str], None]) -> None:
    """Add to a file's measurements those of the peers, where it has none yet."""
    for row in rows:
        tick(row.name)
        found = read(path)
        before, own = found.get(row.name), peer_row(row)
        if before is not None and own is not None and not before.peers:
            given = library(row.op).program, row.shape(device), torch.bfloat16, torch.device(device)
            arguments = from_shape(*given, training=False, seed=0).arguments.values
            found[row.name] = replace(before, peers=peer_times(own, arguments))
            write(path, found)
