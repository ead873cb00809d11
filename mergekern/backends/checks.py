"""What kernels take on trust, checked before they run. A caller's mistake, hence ValueError."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mergekern.backends import CHUNK, Margin
from mergekern.fused import KEEP_ALL, Batch, FusedOp, Pruning, Tile

MOST_RANKS = 1 << 31  # of a row: they are counted in 32 bits
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_tile(tile: Tile, work: torch.dtype, device: torch.device, *, deltas: bool = True) -> None:
    """A tile that something is computed of, in dtype `work`."""
    if deltas and tile.base is None:
        raise ValueError(f"{tile.tensor}: deltas need a base")
    if tile.offset % CHUNK:
        raise ValueError(
            f"{tile.tensor}: a tile starts at a multiple of {CHUNK}, not {tile.offset}"
        )
    check_inputs(tile, device)
    if work != torch.float64 and torch.float64 in {
        x.dtype for x in (tile.base, *tile.experts) if x is not None
    }:
        raise ValueError(f"{tile.tensor}: float64 inputs are computed in float64")


def check_inputs(tile: Tile, device: torch.device) -> None:
    check_masks(tile, device)
    for tensor in (*tile.experts, *(() if tile.base is None else (tile.base,))):
        if not tensor.is_contiguous() or tensor.numel() != tile.numel:
            raise ValueError(f"{tile.tensor}: inputs must be {tile.numel} contiguous elements")
        if tensor.dtype not in FLOATS or tensor.device != device:
            raise ValueError(
                f"{tile.tensor}: cannot read {tensor.dtype} on {tensor.device} from {device}"
            )


def check_masks(tile: Tile, device: torch.device) -> None:
    if tile.masks and len(tile.masks) != len(tile.experts):
        raise ValueError(f"{tile.tensor}: want a mask, or None, for each expert, or no masks")
    wanted = (torch.uint8, -(-tile.numel // 8), device)
    for mask in tile.masks:
        if mask is None:
            continue
        found = (mask.dtype, mask.numel(), mask.device)
        if found != wanted or not mask.is_contiguous():
            raise ValueError(
                f"{tile.tensor}: a mask is {wanted[1]} contiguous bytes on {device}, "
                f"not {found[1]} of {found[0]} on {found[2]}"
            )


def check_margins(op: FusedOp, tile: Tile, margins: Sequence[Margin]) -> None:
    looked_at = 1 if tile.spread else len(tile.experts)
    if op.rule != "task_vector" or not len(margins) == len(op.experts) == looked_at:
        raise ValueError(f"{tile.tensor}: want a task_vector op, a margin for every expert")


def check_pruning(pruning: Pruning, tile: Tile) -> None:
    if len(pruning.odds) != len(tile.experts):
        raise ValueError(f"{tile.tensor}: {len(pruning.odds)} odds for {len(tile.experts)} experts")
    if any(not 0 <= odds.smallest <= odds.largest <= KEEP_ALL for odds in pruning.odds):
        raise ValueError(f"{tile.tensor}: odds rise with the rank, from 0 to {KEEP_ALL}")
    if not 0 < pruning.length < MOST_RANKS or pruning.stride < 1:
        raise ValueError(f"{tile.tensor}: a row has 1 to {MOST_RANKS - 1} elements")
    if tile.offset % pruning.panel or tile.numel % pruning.panel:
        raise ValueError(f"{tile.tensor}: only whole rows of {pruning.length} are ranked")


def check_out(tile: Tile, out: torch.Tensor, device: torch.device) -> None:
    if not out.is_contiguous() or out.numel() != tile.numel:
        raise ValueError(f"{tile.tensor}: out must be {tile.numel} contiguous elements")
    if out.dtype not in FLOATS or out.device != device:
        raise ValueError(f"{tile.tensor}: cannot write {out.dtype} on {out.device} from {device}")


def check_open(tile: Tile, open_: torch.Tensor) -> None:
    if open_.dtype != torch.uint8 or open_.numel() != -(-tile.numel // 8):
        raise ValueError(f"{tile.tensor}: want one bit for each of {tile.numel} elements")


def check_batch(op: FusedOp, batch: Batch, ranked: int = CHUNK, *, together: bool = False) -> None:
    """A batch; that the addresses are good is the caller's word. The rest: see Backend"""
    count, experts = len(batch), len(batch.experts)
    columns: list[tuple[np.ndarray, type, tuple[int, ...]]] = [
        (batch.inputs, np.uint64, (count, 1 + experts)),
        (batch.outs, np.uint64, (count,)),
        (batch.offset, np.int64, (count,)),
        (batch.numel, np.int64, (count,)),
        (batch.name_hash, np.uint32, (count,)),
    ]
    if batch.windows is not None:
        columns.append((batch.windows, np.int64, (count, experts, 4)))
    if batch.ranks is not None:
        columns.append((batch.ranks, np.int64, (1 if batch.together else count, experts, 2)))
    for column, dtype, shape in columns:
        if column.dtype != dtype or column.shape != shape or not column.flags.c_contiguous:
            raise ValueError(
                f"a batch's column must be {np.dtype(dtype)} {list(shape)}, in C order"
            )
    if op.rule == "task_vector" and batch.base is None:
        raise ValueError("a batch of deltas needs a base")
    if (batch.offset % CHUNK).any():
        raise ValueError(f"every tile of a batch starts at a multiple of {CHUNK}")
    if batch.together and not together:
        raise ValueError("this backend ranks no tiles together")
    if batch.ranks is not None:
        _check_ranks(batch, batch.ranks, ranked)
    given = {*batch.experts, *(() if batch.base is None else (batch.base,))}
    if not given <= set(FLOATS) or (torch.float64 in given and op.work != torch.float64):
        raise ValueError(f"a batch of {sorted(map(str, given))} is not computed in {op.work}")


def _check_ranks(batch: Batch, ranks: np.ndarray, most: int) -> None:
    if batch.windows is None or not batch.windows.flags.writeable or batch.base is None:
        raise ValueError("ranks are those of deltas, and need a column for windows")
    if batch.offset.any() or (batch.numel > most).any():
        raise ValueError(f"only whole tensors of no more than {most} elements are ranked")
    numel = batch.numel.sum(keepdims=True) if batch.together else batch.numel
    if (ranks < 0).any() or (ranks > numel[:, None, None]).any():
        raise ValueError("a rank is one of a tensor's elements, or 0")
