"""What kernels take on trust, checked before they run. A caller's mistake, hence ValueError."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mergekern.arrays import Array, device_of, dtype_of, is_contiguous
from mergekern.backends import CHUNK, Margin
from mergekern.dtypes import FLOAT64, INT64, MERGEABLE, UINT8, DType
from mergekern.fused import KEEP_ALL, Batch, FusedOp, Pruning, Tile, Unified

MOST_RANKS = 1 << 31  # of a row: they are counted in 32 bits


def check_tile(tile: Tile, work: DType, device: str, *, deltas: bool = True) -> None:
    """A tile that something is computed of, in dtype `work`."""
    if deltas and tile.base is None:
        raise ValueError(f"{tile.tensor}: deltas need a base")
    if tile.offset % CHUNK:
        raise ValueError(
            f"{tile.tensor}: a tile starts at a multiple of {CHUNK}, not {tile.offset}"
        )
    check_inputs(tile, device)
    if work != FLOAT64 and FLOAT64 in {
        dtype_of(x) for x in (tile.base, *tile.experts) if x is not None
    }:
        raise ValueError(f"{tile.tensor}: float64 inputs are computed in float64")


def check_inputs(tile: Tile, device: str) -> None:
    check_masks(tile, device)
    for array in (*tile.experts, *(() if tile.base is None else (tile.base,))):
        if not is_contiguous(array) or len(array) != tile.numel:
            raise ValueError(f"{tile.tensor}: inputs must be {tile.numel} contiguous elements")
        found, where = dtype_of(array), device_of(array)
        if found not in MERGEABLE or where != device:
            raise ValueError(f"{tile.tensor}: cannot read {found} on {where} from {device}")


def check_masks(tile: Tile, device: str) -> None:
    if tile.masks and len(tile.masks) != len(tile.experts):
        raise ValueError(f"{tile.tensor}: want a mask, or None, for each expert, or no masks")
    wanted = (UINT8, -(-tile.numel // 8), device)
    for mask in tile.masks:
        if mask is None:
            continue
        found = (dtype_of(mask), len(mask), device_of(mask))
        if found != wanted or not is_contiguous(mask):
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


def check_out(tile: Tile, out: Array, device: str) -> None:
    if not is_contiguous(out) or len(out) != tile.numel:
        raise ValueError(f"{tile.tensor}: out must be {tile.numel} contiguous elements")
    found, where = dtype_of(out), device_of(out)
    if found not in MERGEABLE or where != device:
        raise ValueError(f"{tile.tensor}: cannot write {found} on {where} from {device}")


def check_unified(tile: Tile, into: Unified, device: str) -> None:
    if into.stored not in MERGEABLE or len(into.masks) != len(tile.experts):
        raise ValueError(f"{tile.tensor}: want floats, and a mask or None for each expert")
    chunks, masked = -(-tile.numel // CHUNK), (UINT8, -(-tile.numel // 8))
    wanted = [
        (into.out, (into.stored, tile.numel)),
        *((mask, masked) for mask in into.masks),
        (into.sums, (FLOAT64, chunks * len(tile.experts) * 2)),
    ]
    for array, (dtype, length) in wanted:
        if array is None:
            continue
        found = (dtype_of(array), len(array), device_of(array))
        if found != (dtype, length, device) or not is_contiguous(array):
            raise ValueError(
                f"{tile.tensor}: want {length} contiguous elements of {dtype} on {device}, not "
                f"{found[1]} of {found[0]} on {found[2]}"
            )


def check_open(tile: Tile, open_: Array) -> None:
    if (dtype_of(open_), len(open_)) != (UINT8, -(-tile.numel // 8)) or not is_contiguous(open_):
        raise ValueError(f"{tile.tensor}: want one bit for each of {tile.numel} elements")


def check_put(values: Array, index: Array, out: Array, device: str) -> None:
    given, wanted, places = (dtype_of(x) for x in (values, out, index))
    if given != wanted or wanted not in MERGEABLE or places != INT64:
        raise ValueError(f"cannot put {given} into {wanted} by {places}")
    if any(device_of(x) != device or not is_contiguous(x) for x in (values, index, out)):
        raise ValueError(f"values, index and out must be contiguous, on {device}")
    ends = index[:: max(1, len(index) - 1)].tolist()
    if len(values) != len(index) or not all(0 <= end < len(out) for end in ends):
        raise ValueError(f"want an index for each of {len(values)} values, within out")


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
    if not given <= set(MERGEABLE) or (FLOAT64 in given and op.work != FLOAT64):
        raise ValueError(f"a batch of {sorted(map(str, given))} is not computed in {op.work}")


def _check_ranks(batch: Batch, ranks: np.ndarray, most: int) -> None:
    if batch.windows is None or not batch.windows.flags.writeable or batch.base is None:
        raise ValueError("ranks are those of deltas, and need a column for windows")
    if batch.offset.any() or (batch.numel > most).any():
        raise ValueError(f"only whole tensors of no more than {most} elements are ranked")
    numel = batch.numel.sum(keepdims=True) if batch.together else batch.numel
    if (ranks < 0).any() or (ranks > numel[:, None, None]).any():
        raise ValueError("a rank is one of a tensor's elements, or 0")
