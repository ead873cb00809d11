"""Small tensors whose thresholds a batch finds: what a stable sort keeps, on every backend."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import INTEGERS, KINDS, tile
from ranked_batches import batch_of, op_of, spec_of

from mergekern.backends import CHUNK
from mergekern.backends.cpu import CpuBackend, instruction_sets
from mergekern.backends.reference import ReferenceBackend
from mergekern.batches import fuse_batch
from mergekern.dtypes import FLOAT32, of_torch, work_dtype
from mergekern.fused import Batch, FusedOp

BACKENDS = [CpuBackend(threads, name) for name in instruction_sets() for threads in (1, 3)]
REFERENCE = ReferenceBackend()
NUMELS = [*range(1, 20), 31, 511, 512, 513, 1024, 4095, 4096, 4097]


@pytest.mark.parametrize("ties", ["index", "keep"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("experts", [1, 2, 3, 4, 5])
def test_every_backend_keeps_the_same(experts: int, dtype: torch.dtype, ties: str) -> None:
    work = work_dtype([of_torch(dtype)])
    for kind in KINDS:
        given = [tile(n, [dtype] * (experts + 1), kind, seed=n) for n in NUMELS]
        for gamma in (0.0, 0.1):
            spec = spec_of(experts, ties, gamma)
            wanted = [torch.zeros(n, dtype=dtype) for n in NUMELS]
            reference = batch_of(given, spec, wanted)
            REFERENCE.fuse_batch(op_of(experts, work), reference)
            for backend in BACKENDS:
                outs = [torch.full((n,), 7, dtype=dtype) for n in NUMELS]
                batch = batch_of(given, spec, outs)
                backend.fuse_batch(op_of(experts, work), batch)
                assert np.array_equal(batch.windows, reference.windows)
                integer = INTEGERS[dtype.itemsize]
                for out, want in zip(outs, wanted, strict=True):
                    assert torch.equal(out.view(integer), want.view(integer))


@pytest.mark.parametrize("number", [CHUNK - 1, CHUNK])
def test_the_largest(number: int) -> None:
    given = [tile(number, [torch.bfloat16] * 3, "near", seed) for seed in range(3)]
    outs = [torch.zeros(number, dtype=torch.bfloat16) for _ in given]
    spec = spec_of(2, "index", 0.01)
    found = []
    for backend in (REFERENCE, *BACKENDS):
        batch = batch_of(given, spec, outs)
        backend.fuse_batch(op_of(2, FLOAT32), batch)
        found.append(batch.windows)
    assert all(np.array_equal(windows, found[0]) for windows in found)


def test_nan_is_ranked_first_and_found() -> None:
    given = [tile(900, [torch.float32] * 3, "near", seed) for seed in range(3)]
    given[1].experts[1][40:90] = torch.nan
    outs = [torch.zeros(900) for _ in given]
    spec = spec_of(2, "index", 0.0)
    wanted = batch_of(given, spec, outs)
    seen = REFERENCE.fuse_batch(op_of(2, FLOAT32), wanted)
    for backend in BACKENDS:
        batch = batch_of(given, spec, outs)
        assert backend.fuse_batch(op_of(2, FLOAT32), batch) == seen
        assert np.array_equal(batch.windows, wanted.windows)
    assert list(seen) == [1] and seen[1].non_finite == (1,)


def test_what_was_found_is_kept_for_others() -> None:
    given = [tile(900, [torch.float32] * 3, "near", seed) for seed in range(3)]
    outs = [torch.zeros(900) for _ in given]
    op, known = op_of(2, FLOAT32), {}
    calls = []

    class Watched(CpuBackend):
        def fuse_batch(self, op: FusedOp, batch: Batch):
            calls.append(batch.ranks is not None)
            return super().fuse_batch(op, batch)

    for ties in ("index", "index", "keep"):
        fuse_batch(Watched(1), op, batch_of(given, spec_of(2, ties, 0.0), outs), known, "these")
    assert calls == [True, False, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"windows": None}, "need a column"),
        ({"offset": np.array([CHUNK])}, "whole tensors"),
        ({"numel": np.array([CHUNK + 1])}, "whole tensors"),
        ({"numel": np.array([1])}, "or 0"),
        ({"ranks": np.full((1, 2, 2), -1)}, "or 0"),
        ({"ranks": np.zeros((1, 2), np.int64)}, "column must be"),
    ],
)
def test_what_cannot_be_ranked(change: dict[str, object], message: str) -> None:
    given = [tile(100, [torch.float32] * 3, "near")]
    batch = replace(batch_of(given, spec_of(2, "index", 0.0), [torch.zeros(100)]), **change)
    with pytest.raises(ValueError, match=message):
        CpuBackend(1).fuse_batch(op_of(2, FLOAT32), batch)
