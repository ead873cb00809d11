"""Batches whose windows are named by ranks."""

from __future__ import annotations

import numpy as np
import torch
from cases import same_bits

from mergekern.arrays import dtype_of
from mergekern.backends.device import DeviceBackend
from mergekern.backends.reference import ReferenceBackend
from mergekern.dtypes import DType
from mergekern.fused import EVERY_INDEX, Batch, ExpertScalars, Findings, FusedOp, Tile
from mergekern.spec import Spec
from mergekern.trimming import cut_ranks

DENSITIES = (0.2, 0.5, 1.0, 0.9, 0.01)


def spec_of(experts: int, ties: str, gamma: float) -> Spec:
    density = tuple(DENSITIES[k % 5] for k in range(experts))
    one = (1.0,) * experts
    return Spec("task_vector", one, density, (gamma,) * experts, one, ties=ties)


def batch_of(given: list[Tile], spec: Spec, outs: list[torch.Tensor]) -> Batch:
    numel = np.array([t.numel for t in given])
    ranks = cut_ranks(spec, numel)
    inputs = [[x.data_ptr() for x in (t.base, *t.experts) if x is not None] for t in given]
    assert given[0].base is not None
    return Batch(
        base=dtype_of(given[0].base),
        experts=tuple(dtype_of(x) for x in given[0].experts),
        out=dtype_of(outs[0]),
        inputs=np.array(inputs, np.uint64),
        outs=np.array([out.data_ptr() for out in outs], np.uint64),
        offset=np.zeros(len(given), np.int64),
        numel=numel,
        name_hash=np.arange(len(given), dtype=np.uint32),
        windows=np.full((*ranks.shape[:2], 4), -7),
        ranks=ranks,
        by_index=spec.ties == "index",
    )


def op_of(experts: int, work: DType) -> FusedOp:
    scalars = tuple(ExpertScalars(k, 0.3 + k, 0.3 + k) for k in range(experts))
    return FusedOp("task_vector", scalars, "mass", "mean", work=work)


def assert_same(
    backend: DeviceBackend, given: list[Tile], spec: Spec, work: DType, dtype: torch.dtype
) -> dict[int, Findings]:
    """That a device finds, merges and reports what the reference does."""
    op = op_of(len(given[0].experts), work)
    wanted = [torch.full((t.numel,), 7, dtype=dtype) for t in given]
    outs = [torch.zeros_like(x, device=backend.device) for x in wanted]
    there = [_moved(t, backend.device) for t in given]
    reference, batch = batch_of(given, spec, wanted), batch_of(there, spec, outs)
    want = ReferenceBackend().fuse_batch(op, reference)
    assert backend.fuse_batch(op, batch) == want
    for number, (t, mine, theirs) in enumerate(zip(given, outs, wanted, strict=True)):
        if number not in want:
            assert same_bits(mine.cpu(), theirs)
            last = batch.windows[number][:, [1, 3]]
            last[last == t.numel - 1] = EVERY_INDEX  # the last one of all keeps all
            batch.windows[number][:, [1, 3]] = last
            assert np.array_equal(batch.windows[number], reference.windows[number])
    return want


def _moved(t: Tile, device: torch.device) -> Tile:
    base = None if t.base is None else t.base.to(device)
    return Tile(t.tensor, t.offset, base, tuple(x.to(device) for x in t.experts))
