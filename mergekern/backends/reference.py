"""The meaning of every operation in plain torch: read first, optimised never, equal bit for bit.

fused.py holds the formulas. Every product and sum below is one torch operation, so each is rounded
once, in the order in which the experts stand in the recipe.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from mergekern.backends import BLOCK, CHUNK, Bracket, Counts, Margin, Speculation, nothing
from mergekern.backends.functions import run
from mergekern.backends.philox import coins
from mergekern.fused import (
    EVERY_INDEX,
    KEEP_ALL,
    Batch,
    ExpertScalars,
    Findings,
    FusedOp,
    Tile,
    Window,
)

_LANES = 16  # partial sums of a reduction


class ReferenceBackend:
    name = "reference"
    lanes = 1
    ranked = CHUNK
    together = False
    batched = 4 * CHUNK

    def pin(self, memory: torch.Tensor) -> Callable[[], None]:
        return nothing

    def fuse(self, op: FusedOp, tile: Tile, out: torch.Tensor) -> Findings:
        if op.rule == "function":
            return run(op, tile, out, self.fuse, _finite)
        rule = task_vector if op.rule == "task_vector" else linear_combination
        rounded = round_to(rule(op, tile), out.dtype)
        out.copy_(rounded)
        inputs = (tile.base, *tile.experts)
        bad = [i - 1 for i, x in enumerate(inputs) if x is not None and not _finite(x)]
        return Findings(tuple(bad), overflow=not _finite(rounded))

    def speculate(
        self, op: FusedOp, tile: Tile, margins: Sequence[Margin], out: torch.Tensor | None
    ) -> Speculation:
        kept = torch.zeros((len(margins), 2, 2), dtype=torch.int64, device="cpu")
        marked = torch.zeros(tile.numel, dtype=torch.bool, device="cpu")
        for k, d in enumerate(_deltas(tile, op.work)):
            windows = (margins[k].strict, op.experts[k].window, margins[k].wide)
            for cut in (0, 1):
                strict, given, wide = (reached(d, w, tile.offset)[cut] for w in windows)
                kept[k, cut] = torch.stack([strict.sum(), given.sum()])
                marked |= wide & ~given
        packed = torch.from_numpy(np.packbits(marked.numpy(), bitorder="little"))
        found = Findings() if out is None else self.fuse(op, tile, out)
        return Speculation(found, kept, packed)

    def compact(
        self, tile: Tile, open_: torch.Tensor, most: int
    ) -> tuple[torch.Tensor, Tile] | None:
        bits = np.unpackbits(open_.numpy(), count=tile.numel, bitorder="little")
        index = torch.from_numpy(bits).nonzero()[:, 0]
        if index.numel() > most:
            return None
        base = None if tile.base is None else tile.base[index]
        return index, Tile(tile.tensor, 0, base, tuple(x[index] for x in tile.experts))

    def fuse_batch(self, op: FusedOp, batch: Batch) -> dict[int, Findings]:
        found = {}
        for tile in range(len(batch)):
            numel = int(batch.numel[tile])
            base, *experts = (
                None if dtype is None else _at(int(address), numel, dtype)
                for address, dtype in zip(
                    batch.inputs[tile], (batch.base, *batch.experts), strict=True
                )
            )
            here = Tile(
                "", int(batch.offset[tile]), base, tuple(x for x in experts if x is not None)
            )
            out = _at(int(batch.outs[tile]), numel, batch.out)
            if batch.ranks is not None and batch.windows is not None:
                deltas = _deltas(here, op.work)
                for k, (d, pair) in enumerate(zip(deltas, batch.ranks[tile], strict=True)):
                    batch.windows[tile, k] = _ranked(d, pair.tolist(), batch.by_index)
            seen = self.fuse(_op_of(op, batch, tile), here, out)
            if seen != Findings():
                found[tile] = seen
        return found

    def magnitudes(self, tile: Tile, expert: int, work: torch.dtype) -> torch.Tensor:
        return magnitude_bits(_deltas(tile, work)[expert])

    def count(
        self, tile: Tile, brackets: list[Bracket], work: torch.dtype, tallies: list[torch.Tensor]
    ) -> list[Counts]:
        deltas = _deltas(tile, work)
        return [
            _count(magnitude_bits(deltas[b.expert]), b, tally)
            for b, tally in zip(brackets, tallies, strict=True)
        ]

    def masked_sums(self, op: FusedOp, tile: Tile) -> torch.Tensor:
        sums = []
        for d, expert in zip(_deltas(tile, op.work), op.experts, strict=True):
            kept = drop(trim(d, expert.window, tile.offset), op, expert, tile.offset)
            sums.append(torch.stack([block_sums(d.abs()), block_sums(kept.abs())], dim=1))
        return torch.stack(sums, dim=1)

    def gram(self, tile: Tile, work: torch.dtype) -> torch.Tensor:
        rows = [x.double() for x in _deltas(tile, work)]
        return torch.stack([torch.stack([block_sums(a * b) for b in rows], 1) for a in rows], 1)


def _at(address: int, numel: int, dtype: torch.dtype) -> torch.Tensor:
    """The tensor at an address; not empty."""
    raw = (ctypes.c_char * (numel * dtype.itemsize)).from_address(address)
    return torch.frombuffer(raw, dtype=dtype)


def _op_of(op: FusedOp, batch: Batch, tile: int) -> FusedOp:
    """The op with the columns of one tile."""
    op = replace(op, name_hash=int(batch.name_hash[tile]))
    if batch.windows is None:
        return op
    windows = [Window(*cuts) for cuts in batch.windows[tile].tolist()]
    pairs = zip(op.experts, windows, strict=True)
    return replace(op, experts=tuple(replace(expert, window=window) for expert, window in pairs))


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
    assert tile.base is not None
    base = tile.base.to(op.work)
    values, ballots = [], []
    for d, expert in zip(_deltas(tile, op.work), op.experts, strict=True):
        d = drop(trim(d, expert.window, tile.offset), op, expert, tile.offset)
        values.append(d * _scalar(expert.coef, op))
        ballots.append(d * _scalar(expert.vote, op))
    agree = elect(op, ballots)
    mixed = combine(op, values, agree)
    return base + _scalar(op.scale, op) * mixed


def elect(op: FusedOp, ballots: list[torch.Tensor]) -> list[torch.Tensor]:
    """Which experts take part in each element; a sum that is not below zero counts as positive."""
    if op.elect == "none":
        return [torch.ones_like(u, dtype=torch.bool) for u in ballots]
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
        return num / torch.where(den == 0, 1.0, den)
    return num / _scalar(op.divisor, op)


def linear_combination(op: FusedOp, tile: Tile) -> torch.Tensor:
    total = torch.zeros(tile.numel, dtype=op.work, device="cpu")
    for x, expert in zip(tile.experts, op.experts, strict=True):
        total = total + x.to(op.work) * _scalar(expert.coef, op)
    return total / _scalar(op.divisor, op)


def trim(d: torch.Tensor, window: Window, offset: int) -> torch.Tensor:
    low, high = reached(d, window, offset)
    return torch.where(low & ~high, d, 0.0)


def reached(d: torch.Tensor, window: Window, offset: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where |d| reaches the window's lower cut, and where its upper one."""
    index = torch.arange(offset, offset + d.numel(), device="cpu")
    bits = magnitude_bits(d)
    cuts = ((window.lo, window.lo_last), (window.hi, window.hi_last))
    # Not bits >= cut + 1: the sum may be 2**63, no number of torch's.
    low, high = (torch.where(index > last, bits > cut, bits >= cut) for cut, last in cuts)
    return low, high


def drop(d: torch.Tensor, op: FusedOp, expert: ExpertScalars, offset: int) -> torch.Tensor:
    if expert.keep_below >= KEEP_ALL:
        return d
    index = torch.arange(offset, offset + d.numel(), device="cpu")
    return torch.where(
        coins(op.seed, op.name_hash, expert.index, index) < expert.keep_below, d, 0.0
    )


def round_to(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rounded once, to nearest even. torch rounds fp64 twice on its way to bf16 and fp16, hence the
    search among the neighbours of what it gives."""
    twice = x.to(dtype)
    if x.dtype != torch.float64 or dtype not in (torch.float16, torch.bfloat16):
        return twice
    bits = twice.view(torch.int16).long() & 0xFFFF
    best, best_error = twice, (_value(twice) - x).abs()
    for step in (-1, 1):
        other = ((bits & 0x7FFF) + step).clamp(min=0) | (bits & 0x8000)
        other = other.to(torch.int16).view(dtype)
        error = (_value(other) - x).abs()
        closer = (error < best_error) | ((error == best_error) & (bits % 2 == 1))
        closer &= ~other.isnan()
        best, best_error = torch.where(closer, other, best), torch.where(closer, error, best_error)
    return best


def _value(x: torch.Tensor) -> torch.Tensor:
    """In fp64, infinity as the number that would follow the largest finite one."""
    beyond = 2.0 ** (16 if x.dtype == torch.float16 else 128)
    return torch.where(x.isinf(), x.double().sign() * beyond, x.double())


# whole tiles


def magnitude_bits(d: torch.Tensor) -> torch.Tensor:
    return d.abs().view(torch.int64 if d.dtype == torch.float64 else torch.int32).long()


def block_sums(x: torch.Tensor) -> torch.Tensor:
    """Sums per BLOCK elements in fp64: lane i mod 16 in order, then the lanes in order."""
    blocks = -(-x.numel() // BLOCK)
    padded = torch.zeros(blocks * BLOCK, dtype=torch.float64, device="cpu")
    padded[: x.numel()] = x.double()
    rows = padded.view(blocks, BLOCK // _LANES, _LANES)
    lanes = torch.zeros(blocks, _LANES, dtype=torch.float64, device="cpu")
    for row in range(rows.shape[1]):
        lanes = lanes + rows[:, row]
    total = torch.zeros(blocks, dtype=torch.float64, device="cpu")
    for lane in range(_LANES):
        total = total + lanes[:, lane]
    return total


def _count(bits: torch.Tensor, bracket: Bracket, tally: torch.Tensor) -> Counts:
    # Not compared with the bracket's end, which may be 2**63: no number of torch's.
    bins = (bits - bracket.low) >> bracket.shift
    inside = (bins >= 0) & (bins < bracket.bins)
    tally += torch.bincount(bins[inside], minlength=bracket.bins)
    chunks = [int(part.sum()) for part in inside.split(CHUNK)] if bits.numel() else []
    return Counts(
        int((bins >= bracket.bins).sum()), torch.tensor(chunks, dtype=torch.int64, device="cpu")
    )


def _deltas(tile: Tile, work: torch.dtype) -> list[torch.Tensor]:
    wide = [x.to(work) for x in tile.experts]
    return wide if tile.base is None else [x - tile.base.to(work) for x in wide]


def _scalar(value: float, op: FusedOp) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64, device="cpu").to(op.work)


def _finite(x: torch.Tensor) -> bool:
    return bool(x.isfinite().all())
