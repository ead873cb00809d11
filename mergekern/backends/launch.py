"""The tables of one launch on a GPU.

A launch handles many tiles at once. All it needs to know of them lies in a few small tables, which
go to the device in one copy; what it found comes back in another. Kernels are launched on torch's
current stream, and hold no state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mergekern.arrays import Array, address, dtype_of
from mergekern.backends import Margin
from mergekern.dtypes import BFLOAT16, DType
from mergekern.fused import Batch, Findings, FusedOp, Tile
from mergekern.lazily import torch

COLUMNS = ("base", "out", "marks", "offset", "numel", "name_hash", "first")  # then the experts

CUTS = 4  # of a window: lo, lo_last, hi, hi_last


@dataclass(frozen=True)
class Pass:
    """One launch over n tiles of K experts each. Tensors lie on the device.

    Block b of the launch handles `span` elements of the tile t with first[t] <= b < first[t + 1],
    from its element (b - first[t]) * span on. (Sums go by blocks of BLOCK, counts by CHUNK.)

    op:       its kinds, scale, divisor and seed; scalars of experts and names lie in the tables
    base, experts, out: dtypes. Without base, no deltas are taken; without out, nothing is merged
    segments: int64 [n, len(COLUMNS) + K]: addresses of base, output and marks (0 where there are
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
    base: DType | None
    experts: tuple[DType, ...]
    out: DType | None
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

    def gather(
        self, todo: Pass, index: torch.Tensor, starts: torch.Tensor, lines: torch.Tensor
    ) -> None:
        """Elements here and there of all tiles, behind one another.

        index:  int64 [m], not empty: their places in their tiles, tile after tile; -1 for a gap
        starts: int64 [n + 1]: where those of each tile begin
        lines:  int64 [1 + K]: addresses of base and experts, [m] each, to be written
        """

    def scatter(
        self, todo: Pass, index: torch.Tensor, starts: torch.Tensor, lines: torch.Tensor
    ) -> None:
        """The other way round: lines[0], [m] outputs, to their places in the tiles' outputs."""

    def masked_sums(self, todo: Pass, out: torch.Tensor) -> None:
        """Backend.masked_sums() over the one tile of `todo`: fp64 [blocks of BLOCK, K, 2]."""

    def gram(self, todo: Pass, out: torch.Tensor) -> None:
        """Backend.gram() over the one tile of `todo`: fp64 [blocks of BLOCK, K, K]."""


def tabulate(
    op: FusedOp,
    batch: Batch,
    windows: np.ndarray | torch.Tensor | None,
    marks: np.ndarray | None,
    span: int,
    device: torch.device,
) -> Pass:
    """The tables of a launch, on the device.

    windows: int64 [n or 1, K, W, CUTS], see Pass; a tensor is on the device, and has n rows
    marks:   addresses, with W = 3
    """
    tiles, experts = len(batch), len(batch.experts)
    blocks = -(-batch.numel // span)
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
    if isinstance(windows, np.ndarray):
        columns.append(np.broadcast_to(windows, (tiles, *windows.shape[1:])))
    tables = upload(np.concatenate([column.reshape(-1) for column in columns]), device)
    split = list(tables.split([column.size for column in columns]))
    there = windows.contiguous() if isinstance(windows, torch.Tensor) else None
    if isinstance(windows, np.ndarray):
        there = split[3].view(tiles, *windows.shape[1:])
    found = torch.zeros((tiles, 2 + experts), dtype=torch.int32, device=device)
    kept = torch.zeros((tiles, experts, 2, 2), dtype=torch.int64, device=device)
    return Pass(
        op=op,
        base=batch.base,
        experts=batch.experts,
        out=batch.out if batch.outs.any() else None,
        blocks=int(blocks.sum()),
        segments=split[0].view(segments.shape),
        scalars=split[1].view(torch.float64).view(experts, 3),
        coins=split[2].view(experts, 2),
        windows=there,
        found=found,
        kept=kept,
    )


def upload(table: np.ndarray, device: torch.device) -> torch.Tensor:
    """A small table, on the device. Does not wait for it to get there."""
    host = torch.from_numpy(np.ascontiguousarray(table))
    if device.type == "cpu":
        return host
    return host.pin_memory().to(device, non_blocking=True)


def batch_of(op: FusedOp, tile: Tile, out: Array | None) -> Batch:
    """A tile as the only one of a batch."""
    inputs = (tile.base, *tile.experts)
    return Batch(
        base=None if tile.base is None else dtype_of(tile.base),
        experts=tuple(dtype_of(x) for x in tile.experts),
        out=BFLOAT16 if out is None else dtype_of(out),
        inputs=np.array([[0 if x is None else address(x) for x in inputs]], np.uint64),
        outs=np.array([0 if out is None else address(out)], np.uint64),
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
