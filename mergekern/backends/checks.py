"""What kernels take on trust, checked before they run. A caller's mistake, hence ValueError."""

from __future__ import annotations

import numpy as np
import torch

from mergekern.backends import CHUNK
from mergekern.fused import Batch, FusedOp, Tile

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
    for tensor in (*tile.experts, *(() if tile.base is None else (tile.base,))):
        if not tensor.is_contiguous() or tensor.numel() != tile.numel:
            raise ValueError(f"{tile.tensor}: inputs must be {tile.numel} contiguous elements")
        if tensor.dtype not in FLOATS or tensor.device != device:
            raise ValueError(
                f"{tile.tensor}: cannot read {tensor.dtype} on {tensor.device} from {device}"
            )


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
