"""Masks in plain torch: packed bits, and those of a random drop by rank (fused.Pruning)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mergekern.arrays import Array, to_host
from mergekern.backends.philox import coins
from mergekern.fused import KEEP_ALL, Odds, Pruning
from mergekern.lazily import torch


def masks_of(
    pruning: Pruning, deltas: Sequence[torch.Tensor], offset: int
) -> tuple[np.ndarray | None, ...]:
    """Backend.prune() of whole rows, the first of which begins at `offset`."""
    index = torch.arange(offset, offset + deltas[0].numel(), device="cpu")
    masks: list[np.ndarray | None] = []
    for d, odds in zip(deltas, pruning.odds, strict=True):
        if odds.smallest >= KEEP_ALL:
            masks.append(None)
            continue
        bound = bounds(odds, ranks(d, pruning), pruning.length)
        thrown = coins(pruning.seed, pruning.name_hash, odds.index, index)
        masks.append(packed((thrown < bound) & (d != 0)))
    return tuple(masks)


def ranks(d: torch.Tensor, pruning: Pruning) -> torch.Tensor:
    """The rank of every element in its row, 0 for the smallest magnitude."""
    bits = d.abs().view(torch.int64 if d.dtype == torch.float64 else torch.int32)
    order = bits.view(-1, pruning.length, pruning.stride).argsort(dim=1, stable=True)
    return order.argsort(dim=1).reshape(-1)


def bounds(odds: Odds, rank: torch.Tensor, length: int) -> torch.Tensor:
    """What an element's coin must lie below."""
    if length == 1:
        return torch.full_like(rank, (odds.smallest + odds.largest) // 2)
    return odds.smallest + (odds.largest - odds.smallest) * rank // (length - 1)


def packed(marked: torch.Tensor) -> np.ndarray:
    return np.packbits(marked.numpy(), bitorder="little")


def unpacked(mask: Array, numel: int) -> torch.Tensor:
    bits = np.unpackbits(to_host(mask), count=numel, bitorder="little")
    return torch.from_numpy(bits).bool()
