"""One task vector that stands for many, in plain torch; fused.Unified has the formula."""

from __future__ import annotations

from mergekern.arrays import as_tensor
from mergekern.backends import CHUNK
from mergekern.backends.masks import packed
from mergekern.backends.rounding import round_to
from mergekern.backends.sums import block_sums
from mergekern.backends.thinned import deltas_of
from mergekern.dtypes import DType, to_torch
from mergekern.fused import Findings, Tile, Unified
from mergekern.lazily import torch


def unify(tile: Tile, work: DType, into: Unified) -> Findings:
    """Backend.unify()."""
    deltas = deltas_of(tile, work)
    unified = elect(deltas)
    rounded = round_to(unified, to_torch(into.stored))
    stored = rounded.to(to_torch(work))
    marks = [((d > 0) & (stored > 0)) | ((d < 0) & (stored < 0)) for d in deltas]
    if into.out is not None:
        as_tensor(into.out).copy_(rounded)
    for mask, mark in zip(into.masks, marks, strict=True):
        if mask is not None:
            as_tensor(mask).copy_(torch.from_numpy(packed(mark)))
    if into.sums is not None:
        kept = [torch.where(mark, stored, 0.0) for mark in marks]
        pairs = zip(deltas, kept, strict=True)
        sums = [torch.stack([_chunk_sums(d.abs()), _chunk_sums(k.abs())], 1) for d, k in pairs]
        as_tensor(into.sums).copy_(torch.stack(sums, 1).reshape(-1))
    inputs = enumerate((tile.base, *tile.experts), -1)
    bad = tuple(i for i, x in inputs if x is not None and not _finite(as_tensor(x)))
    return Findings(bad, overflow=not _finite(rounded))


def elect(deltas: list[torch.Tensor]) -> torch.Tensor:
    """Of the deltas on the side of their sum the largest; 0 where the sum is."""
    total, high, low = (torch.zeros_like(deltas[0]) for _ in range(3))
    for d in deltas:
        total = total + d
        high = torch.where(d > high, d, high)
        low = torch.where(d < low, d, low)
    return torch.where(total > 0, high, torch.where(total < 0, low, 0.0))


def _chunk_sums(x: torch.Tensor) -> torch.Tensor:
    """Sums per CHUNK elements in fp64: those of its blocks in order."""
    found = torch.zeros(-(-x.numel() // CHUNK), dtype=torch.float64, device="cpu")
    for chunk in range(len(found)):
        for block in block_sums(x[chunk * CHUNK : (chunk + 1) * CHUNK]):
            found[chunk] = found[chunk] + block
    return found


def _finite(x: torch.Tensor) -> bool:
    return bool(x.isfinite().all())
