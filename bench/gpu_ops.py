"""The ops that are checked and measured on a GPU."""

from __future__ import annotations

import numpy as np
import torch
from parts.fused import ties_op
from settings import DENSITY

from mergekern.arrays import dtype_of
from mergekern.fused import Batch, ExpertScalars, FusedOp, Tile


def linear_op(experts: int) -> FusedOp:
    rows = tuple(ExpertScalars(k, 1 / experts) for k in range(experts))
    return FusedOp("linear_combination", rows)


def sum_op(experts: int) -> FusedOp:
    return FusedOp("task_vector", tuple(ExpertScalars(k, 0.5) for k in range(experts)), scale=0.3)


def given_thresholds(tile: Tile) -> FusedOp:
    """Thresholds from the head of the tile, as bench/limits.py takes them."""
    assert tile.base is not None
    n = min(tile.numel, 1 << 19)
    head = Tile("w", 0, tile.base[:n].cpu(), tuple(x[:n].cpu() for x in tile.experts))
    return ties_op(head)


def ranked(tile: Tile, out: torch.Tensor) -> tuple[FusedOp, Batch]:
    """TIES whose thresholds are found and gone by in one call."""
    assert tile.base is not None
    inputs = (tile.base, *tile.experts)
    experts = len(tile.experts)
    ranks = np.array([[(max(1, int(DENSITY * tile.numel)), 0)] * experts], np.int64)
    batch = Batch(
        base=dtype_of(tile.base),
        experts=tuple(dtype_of(x) for x in tile.experts),
        out=dtype_of(out),
        inputs=np.array([[x.data_ptr() for x in inputs]], np.uint64),
        outs=np.array([out.data_ptr()], np.uint64),
        offset=np.zeros(1, np.int64),
        numel=np.array([tile.numel]),
        name_hash=np.zeros(1, np.uint32),
        windows=np.zeros((1, experts, 4), np.int64),
        ranks=ranks,
    )
    rows = tuple(ExpertScalars(k, 1.0) for k in range(experts))
    return FusedOp("task_vector", rows, elect="mass", combine="mean"), batch
