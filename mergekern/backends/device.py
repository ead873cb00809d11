"""What the backends for GPUs have in common: checks at the door, the tables that a launch takes,
and what comes back from it.

A launch handles many tiles at once. All it needs to know of them lies in a few small tables, which
go to the device in one copy; what it found comes back in another. Kernels are launched on torch's
current stream, and hold no state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from mergekern.backends import BLOCK, CHUNK, Bracket, Counts, Margin, Speculation
from mergekern.backends.checks import (
    check_batch,
    check_inputs,
    check_open,
    check_out,
    check_tile,
)
from mergekern.fused import Batch, ExpertScalars, Findings, FusedOp, Tile

COLUMNS = ("base", "out", "marks", "offset", "numel", "name_hash", "first")  # then the experts

CUTS = 4  # of a window: lo, lo_last, hi, hi_last


@dataclass(frozen=True)
class Pass:
    """One launch over n tiles of K experts each. Tensors lie on the device.

    Block b of the launch handles `span` elements of the tile t with first[t] <= b < first[t + 1],
    from its element (b - first[t]) * span on. (Sums go by blocks of BLOCK, counts by CHUNK.)

    op:       its kinds, scale, divisor and seed; scalars of experts and names lie in the tables
    base, experts, out: dtypes. Without base, no deltas are taken; without out, nothing is merged
    segments: int64 [n, len(COLUMNS) + K]: addresses of base, output and marks (0 where there is
              none); index of the first element in its tensor; elements; hash of the name; number
              of the first block; addresses of the experts
    scalars:  fp64 [K, 3]: coef, vote, share
    coins:    int64 [K, 2]: index, keep_below (KEEP_ALL where nothing is dropped)
    windows:  int64 [n, K, W, CUTS], W = 1: the given windows, or 3: given, strict and wide ones;
              None where nothing is trimmed
    found:    int32 [n, 2 + K], zeros: not 0 where the base or an expert holds NaN or Inf (when it
              is merged), and last where the output does
    kept:     int64 [n, K, 2, 2], zeros: Speculation.kept, with W = 3
    """

    op: FusedOp
    base: torch.dtype | None
    experts: tuple[torch.dtype, ...]
    out: torch.dtype | None
    blocks: int
    segments: torch.Tensor
    scalars: torch.Tensor
    coins: torch.Tensor
    windows: torch.Tensor | None
    found: torch.Tensor
    kept: torch.Tensor


class Kernels(Protocol):
    """The launches of one kind of kernels.

    span: how many elements of a tile a block handles; a multiple of 8 that divides CHUNK
    """

    name: str
    span: int

    def fuse(self, todo: Pass) -> None:
        """fused.py's op over every tile; with W = 3, counts and marks (Backend.speculate) too.

        Marks: bit i % 8 of byte i // 8 is set for an open element, bits behind the last are 0.
        """

    def count(
        self,
        todo: Pass,
        brackets: torch.Tensor,
        above: torch.Tensor,
        inside: torch.Tensor,
        tallies: torch.Tensor,
    ) -> None:
        """Backend.count() over the one tile of `todo`.

        brackets: int64 [Q, 5]: expert, low, shift, bins, first bin in tallies (-1: not wanted)
        above, inside: int64 [chunks, Q], to be written: magnitudes per CHUNK at or beyond the
                  bracket's end, and in it
        tallies:  int64, zeros: the histograms of all brackets, one behind the other
        """

    def masked_sums(self, todo: Pass, out: torch.Tensor) -> None:
        """Backend.masked_sums() over the one tile of `todo`: fp64 [blocks of BLOCK, K, 2]."""

    def gram(self, todo: Pass, out: torch.Tensor) -> None:
        """Backend.gram() over the one tile of `todo`: fp64 [blocks of BLOCK, K, K]."""


class DeviceBackend:
    """Merges what lies in the memory of one device. Same bits as every other backend."""

    lanes = 1

    def __init__(self, kernels: Kernels, device: torch.device) -> None:
        self.name = kernels.name
        self.device = device
        self._kernels = kernels

    def fuse(self, op: FusedOp, tile: Tile, out: torch.Tensor) -> Findings:
        check_tile(tile, op.work, self.device, deltas=op.rule == "task_vector")
        check_out(tile, out, self.device)
        todo = self.start(op, batch_of(op, tile, out), windows_of(op))
        return findings(todo.found).get(0, Findings())

    def speculate(
        self, op: FusedOp, tile: Tile, margins: Sequence[Margin], out: torch.Tensor | None
    ) -> Speculation:
        check_tile(tile, op.work, self.device)
        if op.rule != "task_vector" or len(margins) != len(tile.experts):
            raise ValueError(f"{tile.tensor}: want a task_vector op, a margin for every expert")
        if out is not None:
            check_out(tile, out, self.device)
        marks = torch.empty(-(-tile.numel // 8), dtype=torch.uint8, device=self.device)
        batch = batch_of(op, tile, out)
        todo = self.start(op, batch, windows_of(op, margins), np.array([marks.data_ptr()]))
        found = Findings() if out is None else findings(todo.found).get(0, Findings())
        return Speculation(found, todo.kept[0].cpu(), marks)

    def compact(self, tile: Tile, open_: torch.Tensor) -> tuple[torch.Tensor, Tile]:
        check_inputs(tile, self.device)
        check_open(tile, open_)
        byte = open_.nonzero()[:, 0]  # most are 0: only the others become eight places each
        bit = torch.arange(8, dtype=torch.uint8, device=self.device)
        is_set = (open_[byte, None] >> bit) & 1 == 1
        index = (byte[:, None] * 8 + bit)[is_set]
        index = index[index < tile.numel]
        base = None if tile.base is None else tile.base[index]
        return index, Tile(tile.tensor, 0, base, tuple(x[index] for x in tile.experts))

    def fuse_batch(self, op: FusedOp, batch: Batch) -> dict[int, Findings]:
        check_batch(op, batch)
        windows = windows_of(op) if batch.windows is None else batch.windows[:, :, None]
        return findings(self.start(op, batch, windows).found)

    def start(
        self,
        op: FusedOp,
        batch: Batch,
        windows: np.ndarray | None,
        marks: np.ndarray | None = None,
    ) -> Pass:
        """Launch an op over tiles on this device, and do not wait for it.

        windows: int64 [n or 1, K, W, CUTS], see Pass; marks: addresses, with W = 3
        """
        todo = self._pass(op, batch, windows, marks)
        if todo.blocks:
            self._kernels.fuse(todo)
        return todo

    def magnitudes(self, tile: Tile, expert: int, work: torch.dtype) -> torch.Tensor:
        check_tile(tile, work, self.device)
        assert tile.base is not None
        delta = tile.experts[expert].to(work) - tile.base.to(work)
        bits = delta.abs().view(torch.int64 if work == torch.float64 else torch.int32)
        return bits.cpu().long()

    def count(
        self, tile: Tile, brackets: list[Bracket], work: torch.dtype, tallies: list[torch.Tensor]
    ) -> list[Counts]:
        check_tile(tile, work, self.device)
        if [t.shape for t in tallies] != [(self.lanes, b.bins) for b in brackets]:
            raise ValueError(f"{tile.tensor}: a tally is [{self.lanes}, bins]")
        sizes = [b.bins for b in brackets]
        first = np.cumsum([0, *sizes])
        table = np.array(
            [
                (b.expert, b.low, b.shift, b.bins, at)
                for b, at in zip(brackets, first, strict=False)
            ],
            np.int64,
        )
        chunks = -(-tile.numel // CHUNK)
        seen = torch.zeros((2, chunks, len(brackets)), dtype=torch.int64, device=self.device)
        bins = torch.zeros(int(first[-1]), dtype=torch.int64, device=self.device)
        todo = self._looking(tile, work)
        self._kernels.count(todo, self._upload(table), seen[0], seen[1], bins)
        above, inside = seen.cpu()
        for tally, counted in zip(tallies, bins.cpu().split(sizes), strict=True):
            tally[0] += counted
        return [
            Counts(int(above[:, q].sum()), inside[:, q].contiguous()) for q in range(len(brackets))
        ]

    def masked_sums(self, op: FusedOp, tile: Tile) -> torch.Tensor:
        check_tile(tile, op.work, self.device)
        shape = (-(-tile.numel // BLOCK), len(tile.experts), 2)
        out = torch.empty(shape, dtype=torch.float64, device=self.device)
        todo = self._pass(op, batch_of(op, tile, None), windows_of(op))
        self._kernels.masked_sums(todo, out)
        return out.cpu()

    def gram(self, tile: Tile, work: torch.dtype) -> torch.Tensor:
        check_tile(tile, work, self.device, deltas=False)
        experts = len(tile.experts)
        shape = (-(-tile.numel // BLOCK), experts, experts)
        out = torch.empty(shape, dtype=torch.float64, device=self.device)
        self._kernels.gram(self._looking(tile, work), out)
        return out.cpu()

    def _looking(self, tile: Tile, work: torch.dtype) -> Pass:
        """A pass that merges nothing and trims nothing."""
        experts = tuple(ExpertScalars(k, 1.0) for k in range(len(tile.experts)))
        op = FusedOp("task_vector", experts, work=work)
        return self._pass(op, batch_of(op, tile, None), None)

    def _pass(
        self,
        op: FusedOp,
        batch: Batch,
        windows: np.ndarray | None,
        marks: np.ndarray | None = None,
    ) -> Pass:
        tiles, experts = len(batch), len(batch.experts)
        blocks = -(-batch.numel // self._kernels.span)
        segments = np.zeros((tiles, len(COLUMNS) + experts), np.int64)
        segments[:, COLUMNS.index("base")] = batch.inputs[:, 0].view(np.int64)
        segments[:, COLUMNS.index("out")] = batch.outs.view(np.int64)
        segments[:, COLUMNS.index("marks")] = 0 if marks is None else marks
        segments[:, COLUMNS.index("offset")] = batch.offset
        segments[:, COLUMNS.index("numel")] = batch.numel
        segments[:, COLUMNS.index("name_hash")] = batch.name_hash
        segments[:, COLUMNS.index("first")] = np.cumsum(blocks) - blocks
        segments[:, len(COLUMNS) :] = batch.inputs[:, 1:].view(np.int64)
        scalars = np.array([(e.coef, e.vote, e.share) for e in op.experts], np.float64)
        coins = np.array([(e.index, e.keep_below) for e in op.experts], np.int64)
        columns = [segments, scalars.view(np.int64), coins]
        if windows is not None:
            columns.append(np.broadcast_to(windows, (tiles, *windows.shape[1:])))
        tables = self._upload(np.concatenate([column.reshape(-1) for column in columns]))
        split = list(tables.split([column.size for column in columns]))
        found = torch.zeros((tiles, 2 + experts), dtype=torch.int32, device=self.device)
        kept = torch.zeros((tiles, experts, 2, 2), dtype=torch.int64, device=self.device)
        return Pass(
            op=op,
            base=batch.base,
            experts=batch.experts,
            out=batch.out if batch.outs.any() else None,
            blocks=int(blocks.sum()),
            segments=split[0].view(segments.shape),
            scalars=split[1].view(torch.float64).view(experts, 3),
            coins=split[2].view(experts, 2),
            windows=None if windows is None else split[3].view(tiles, *windows.shape[1:]),
            found=found,
            kept=kept,
        )

    def _upload(self, table: np.ndarray) -> torch.Tensor:
        host = torch.from_numpy(np.ascontiguousarray(table))
        if self.device.type == "cpu":
            return host
        return host.pin_memory().to(self.device, non_blocking=True)


def batch_of(op: FusedOp, tile: Tile, out: torch.Tensor | None) -> Batch:
    """A tile as the only one of a batch."""
    inputs = (tile.base, *tile.experts)
    return Batch(
        base=None if tile.base is None else tile.base.dtype,
        experts=tuple(x.dtype for x in tile.experts),
        out=torch.bfloat16 if out is None else out.dtype,
        inputs=np.array([[0 if x is None else x.data_ptr() for x in inputs]], np.uint64),
        outs=np.array([0 if out is None else out.data_ptr()], np.uint64),
        offset=np.array([tile.offset]),
        numel=np.array([tile.numel]),
        name_hash=np.array([op.name_hash], np.uint32),
    )


def windows_of(op: FusedOp, margins: Sequence[Margin] = ()) -> np.ndarray | None:
    """int64 [1, K, W, CUTS]: an op's windows, beside their margins where there are any."""
    given = [expert.window for expert in op.experts]
    if not margins and all(window.open for window in given):
        return None
    rows = (
        [(w, m.strict, m.wide) for w, m in zip(given, margins, strict=True)]
        if margins
        else [(w,) for w in given]
    )
    cuts = [[(w.lo, w.lo_last, w.hi, w.hi_last) for w in row] for row in rows]
    return np.array([cuts], np.int64)


def findings(flags: torch.Tensor) -> dict[int, Findings]:
    """What Pass.found says, by tile. Waits for the launch, where it lies on the device."""
    found: dict[int, Findings] = {}
    raised = flags.cpu().numpy() != 0
    for tile in np.flatnonzero(raised.any(1)).tolist():
        inputs = np.flatnonzero(raised[tile, :-1]) - 1
        found[tile] = Findings(tuple(inputs.tolist()), bool(raised[tile, -1]))
    return found
