"""The meaning of every operation in plain torch: read first, optimised never, equal bit for bit.

fused.py holds the formulas. Every product and sum below is one torch operation, so each is rounded
once, in the order in which the experts stand in the recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from mergekern.arrays import Array, as_tensor, at
from mergekern.backends import CHUNK, Bracket, Counts, Margin, Speculation, Sums, nothing
from mergekern.backends.functions import run
from mergekern.backends.masks import masks_of, packed, unpacked
from mergekern.backends.rounding import round_to
from mergekern.backends.sums import block_sums
from mergekern.backends.thinned import (
    deltas_of,
    magnitude_bits,
    masks_kept,
    reached,
    thinned,
    variance,
    wide,
)
from mergekern.backends.unbatched import op_of, tiles_of
from mergekern.backends.unified import unify
from mergekern.dtypes import DType, to_torch
from mergekern.fused import (
    EVERY_INDEX,
    Batch,
    Findings,
    FusedOp,
    Pruning,
    Tile,
    Unified,
)
from mergekern.lazily import torch


class ReferenceBackend:
    name = "reference"
    lanes = 1
    ranked = CHUNK
    together = False
    batched = 4 * CHUNK

    def share(self, count: int) -> ReferenceBackend:
        return self

    def pin(self, memory: np.ndarray) -> Callable[[], None]:
        return nothing

    def fuse(self, op: FusedOp, tile: Tile, out: Array) -> Findings:
        if op.rule == "function":
            return run(op, tile, out, self.fuse, _finite)
        rule = task_vector if op.rule == "task_vector" else linear_combination
        tile, out = tile.as_tensors(), as_tensor(out)
        out.copy_(round_to(rule(op, tile), out.dtype))
        inputs = enumerate((tile.base, *tile.experts), -1)
        bad = tuple(i for i, x in inputs if x is not None and not _finite(x))
        return Findings(bad, overflow=not _finite(out))

    def speculate(
        self, op: FusedOp, tile: Tile, margins: Sequence[Margin], out: Array | None
    ) -> Speculation:
        kept = np.zeros((len(margins), 2, 2), np.int64)
        marked = torch.zeros(tile.numel, dtype=torch.bool, device="cpu")
        for k, d in enumerate(_looked_at(tile, op.work)):
            windows = (margins[k].strict, op.experts[k].window, margins[k].wide)
            for cut in (0, 1):
                strict, given, wide = (reached(d, w, tile.offset)[cut] for w in windows)
                kept[k, cut] = int(strict.sum()), int(given.sum())
                marked |= wide & ~given
        found = Findings() if out is None else self.fuse(op, tile, out)
        return Speculation(found, kept, packed(marked))

    def compact(self, tile: Tile, open_: Array, most: int) -> tuple[Array, Tile] | None:
        index = np.flatnonzero(unpacked(open_, tile.numel))
        if len(index) > most:
            return None
        base = None if tile.base is None else at(tile.base, index)
        experts = tuple(at(x, index) for x in tile.experts)
        return index, replace(tile, offset=0, base=base, experts=experts)

    def put(self, values: Array, index: Array, out: Array) -> None:
        as_tensor(out)[as_tensor(index)] = as_tensor(values)

    def prune(self, pruning: Pruning, tile: Tile) -> tuple[np.ndarray | None, ...]:
        return masks_of(pruning, deltas_of(tile, pruning.work), tile.offset)

    def fuse_batch(self, op: FusedOp, batch: Batch) -> dict[int, Findings]:
        found = {}
        for number, tile, out in tiles_of(batch):
            if batch.ranks is not None and batch.windows is not None:
                deltas = deltas_of(tile, op.work)
                for k, (d, pair) in enumerate(zip(deltas, batch.ranks[number], strict=True)):
                    batch.windows[number, k] = _ranked(d, pair.tolist(), batch.by_index)
            seen = self.fuse(op_of(op, batch, number), tile, out)
            if seen != Findings():
                found[number] = seen
        return found

    def magnitudes(self, tile: Tile, expert: int, work: DType) -> np.ndarray:
        return magnitude_bits(_looked_at(tile, work)[expert]).numpy()

    def count(
        self, tile: Tile, brackets: list[Bracket], work: DType, tallies: list[np.ndarray]
    ) -> list[Counts]:
        deltas = _looked_at(tile, work)
        return [
            _count(magnitude_bits(deltas[b.expert]), b, tally)
            for b, tally in zip(brackets, tallies, strict=True)
        ]

    def masked_sums(self, op: FusedOp, tile: Tile, *, keep: bool = False) -> Sums:
        pairs = zip(deltas_of(tile, op.work), thinned(op, tile), strict=True)
        sums = [torch.stack([block_sums(d.abs()), block_sums(t.abs())], dim=1) for d, t in pairs]
        return Sums(torch.stack(sums, dim=1).numpy(), masks_kept(op, tile) if keep else ())

    def energies(self, op: FusedOp, tile: Tile, *, keep: bool = False) -> Sums:
        squares = [d.double() * d.double() for d in thinned(op, tile)]
        sums = torch.stack([block_sums(square) for square in squares], 1).numpy()
        return Sums(sums, masks_kept(op, tile) if keep else ())

    def unify(self, tile: Tile, work: DType, into: Unified) -> Findings:
        return unify(tile.as_tensors(), work, into)

    def gram(self, tile: Tile, work: DType) -> np.ndarray:
        rows = [x.double() for x in deltas_of(tile, work)]
        products = [torch.stack([block_sums(a * b) for b in rows], 1) for a in rows]
        return torch.stack(products, 1).numpy()


def _ranked(d: torch.Tensor, ranks: list[int], by_index: bool) -> list[int]:
    """lo, lo_last, hi and hi_last of the window that keeps what two ranks say; see Batch."""
    bits = magnitude_bits(d)
    order = bits.argsort(descending=True, stable=True)
    cuts = [0, EVERY_INDEX, EVERY_INDEX, EVERY_INDEX]
    for side, rank in enumerate(ranks):
        if rank:
            place = int(order[rank - 1])
            beyond = 0 if by_index else side  # of an upper cut: it is kept, what is larger is not
            last = place if by_index and place < len(d) - 1 else EVERY_INDEX
            cuts[2 * side : 2 * side + 2] = [int(bits[place]) + beyond, last]
    return cuts


# one element


def task_vector(op: FusedOp, tile: Tile) -> torch.Tensor:
    base = wide(tile.base, op.work)
    values, ballots = [], []
    for d, expert in zip(thinned(op, tile), op.experts, strict=True):
        values.append(d * _scalar(expert.coef, op))
        ballots.append(d * _scalar(expert.vote, op))
    agree = elect(op, ballots)
    mixed = combine(op, values, agree)
    return base + _scalar(op.scale, op) * mixed


def elect(op: FusedOp, ballots: list[torch.Tensor]) -> list[torch.Tensor]:
    """Which experts take part in each element; a sum that is not below zero counts as positive."""
    if op.elect in ("none", "any"):
        return [(u != 0) | (op.elect == "none") for u in ballots]
    total = torch.zeros_like(ballots[0])
    for u in ballots:
        total = total + (u if op.elect == "mass" else u.sign())
    return [torch.where(total < 0, u < 0, u > 0) for u in ballots]


def combine(op: FusedOp, values: list[torch.Tensor], agree: list[torch.Tensor]) -> torch.Tensor:
    num = torch.zeros_like(values[0])
    den = torch.zeros_like(values[0])
    for v, a, expert in zip(values, agree, op.experts, strict=True):
        kept = torch.where(a, v, 0.0)
        larger = magnitude_bits(kept) > magnitude_bits(num)
        num = torch.where(larger, kept, num) if op.combine == "max" else num + kept
        den = den + torch.where(a, _scalar(expert.share, op), 0.0)
    if op.combine == "mean":
        den = torch.where(den == 0, 1.0, den)
        least = _scalar(op.least, op)
        return num / (torch.where(den < least, least, den) if op.least else den)
    return num / _scalar(op.divisor, op)


def linear_combination(op: FusedOp, tile: Tile) -> torch.Tensor:
    total = torch.zeros(tile.numel, dtype=to_torch(op.work), device="cpu")
    for x, expert in zip(tile.experts, op.experts, strict=True):
        total = total + wide(x, op.work) * _scalar(expert.coef, op)
    return total / _scalar(op.divisor, op)


# whole tiles


def _count(bits: torch.Tensor, bracket: Bracket, tally: np.ndarray) -> Counts:
    # Not compared with the bracket's end, which may be 2**63: no number of torch's.
    bins = (bits - bracket.low) >> bracket.shift
    inside = (bins >= 0) & (bins < bracket.bins)
    tally += torch.bincount(bins[inside], minlength=bracket.bins).numpy()
    chunks = [int(part.sum()) for part in inside.split(CHUNK)] if bits.numel() else []
    return Counts(int((bins >= bracket.bins).sum()), np.array(chunks, np.int64))


def _looked_at(tile: Tile, work: DType) -> list[torch.Tensor]:
    deltas = deltas_of(tile, work)
    return [variance(deltas)] if tile.spread else deltas


def _scalar(value: float, op: FusedOp) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64, device="cpu").to(to_torch(op.work))


def _finite(x: Array) -> bool:
    return bool(as_tensor(x).isfinite().all())
