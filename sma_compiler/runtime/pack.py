"""Packs of sequences: `cu_seqlens` to padded rows and back.

A pack holds its sequences one after another along time, in a batch of 1. It is run as padded rows: sequences are put
in buckets by length, rounded up to a power of two, so that less than half of a bucket is padding, and each bucket is
one call of the plan. While torch traces the call, lengths are unknown: then there is one bucket of S rows of T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from sma_compiler.runtime.args import readable


@dataclass(frozen=True)
class Bucket:
    """Some sequences of a pack as padded rows.

    sequences: [R] int64, which ones; None: all in order.
    places: [R, N] int64, the position in the pack of every column (any valid position where there is padding).
    lengths: [R] int64.
    valid: [R, N] bool, false where there is padding.
    """

    sequences: Tensor | None
    places: Tensor
    lengths: Tensor
    valid: Tensor

    @property
    def rows(self) -> int:
        """R, the number of sequences."""
        return self.places.shape[0]

    def pad(self, x: Tensor, time: int) -> Tensor:
        """Padded rows of a tensor of the pack: batch 1 becomes R, time T becomes N, padding is zero.

        `time` is the dimension of time; batch is dimension 0.
        """
        x = x.squeeze(0).movedim(time - 1, 0)  # [T, ...]
        rows = x[self.places]  # [R, N, ...]
        valid = self.valid.reshape(*self.valid.shape, *(1 for _ in rows.shape[2:]))
        return torch.where(valid, rows, torch.zeros((), dtype=x.dtype, device=x.device)).movedim(1, time)

    def pick(self, state: Tensor) -> Tensor:
        """The rows of a tensor with one row a sequence."""
        return state if self.sequences is None else state.index_select(0, self.sequences)


@dataclass(frozen=True)
class Pack:
    """A pack as buckets.

    back: [T] int64, where position t of the pack lies in the buckets' columns laid end to end.
    order: [S] int64, where sequence s lies in the buckets' rows laid end to end; None: in order.
    """

    buckets: tuple[Bucket, ...]
    back: Tensor
    order: Tensor | None

    def unpad(self, rows: Sequence[Tensor], time: int) -> Tensor:
        """The tensor of the pack from each bucket's [R, ..., N, ...]: batch 1, time T at dimension `time`."""
        columns = [part.movedim(time, 1).flatten(0, 1) for part in rows]  # [R * N, ...]
        return torch.cat(columns).index_select(0, self.back).movedim(0, time - 1).unsqueeze(0)

    def gather(self, rows: Sequence[Tensor]) -> Tensor:
        """One row a sequence, in the order of the pack, from each bucket's [R, ...]."""
        together = torch.cat(list(rows))
        return together if self.order is None else together.index_select(0, self.order)


def make_pack(cu_seqlens: Tensor, length: int) -> Pack:
    """The buckets of a pack of T = `length` >= 1 positions, from checked `cu_seqlens` [S + 1]."""
    bounds = cu_seqlens.to(torch.int64)
    if not readable(cu_seqlens):
        return _one_bucket(bounds, length, length)
    lengths = [end - start for start, end in pairwise(bounds.tolist())]
    groups: dict[int, list[int]] = {}
    for sequence, size in enumerate(lengths):
        groups.setdefault(max(size - 1, 0).bit_length(), []).append(sequence)
    if len(groups) == 1:
        return _one_bucket(bounds, length, max(1, max(lengths)))
    buckets = []
    order = torch.empty(len(lengths), dtype=torch.int64)
    base = torch.empty(len(lengths), dtype=torch.int64)  # where each sequence's columns begin
    rows = columns = 0
    for _, sequences in sorted(groups.items()):
        chosen = torch.tensor(sequences)
        widest = max(1, max(lengths[sequence] for sequence in sequences))
        order[chosen] = rows + torch.arange(len(sequences))
        base[chosen] = columns + widest * torch.arange(len(sequences))
        rows += len(sequences)
        columns += len(sequences) * widest
        on_device = chosen.to(bounds.device)
        buckets.append(_bucket(bounds, on_device, bounds[on_device], bounds[on_device + 1], length, widest))
    return Pack(tuple(buckets), _back(bounds, base.to(bounds.device), length), order.to(bounds.device))


def _one_bucket(bounds: Tensor, length: int, widest: int) -> Pack:
    bucket = _bucket(bounds, None, bounds[:-1], bounds[1:], length, widest)
    base = widest * torch.arange(bucket.rows, device=bounds.device)
    return Pack((bucket,), _back(bounds, base, length), None)


def _bucket(bounds: Tensor, sequences: Tensor | None, starts: Tensor, ends: Tensor, length: int, widest: int) -> Bucket:
    columns = torch.arange(widest, device=bounds.device)
    lengths = ends - starts
    valid = columns < lengths[:, None]
    places = (starts[:, None] + columns).clamp(max=length - 1)
    return Bucket(sequences, places, lengths, valid)


def _back(bounds: Tensor, base: Tensor, length: int) -> Tensor:
    """[T]: base of the position's sequence + the position's place in it; the last of empty sequences is passed over."""
    positions = torch.arange(length, device=bounds.device)
    sequence = torch.searchsorted(bounds, positions, right=True) - 1
    sequence = sequence.clamp(0, bounds.shape[0] - 2)
    return base[sequence] + positions - bounds[sequence]
